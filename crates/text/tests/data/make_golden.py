"""Makes tokens.json and templates.json: run it in any directory, with the packages `tokenizers` and `transformers`."""
import json
import pathlib

import tokenizers
from transformers.utils import chat_template_utils as ctu

out = pathlib.Path(__file__).resolve().parent
ROOT = out.parents[3]
texts = [
 "", " ", "  ", "Hello, world!", " leading", "trailing ", "a\n\nb\r\n\tc", "It's they'll WE'VE don't 'S", "123 4567 8.9e-3", "naïve café Ångström ﬁne ǅ",
 "👩‍👩‍👧‍👦 🇪🇺 🏳️‍🌈 👍🏽", "日本語のテキスト 中文文本 한국어", "שלום עולם مرحبا بالعالم", "e\u0301e\u0301 a\u030a\u0327", "\u00a0\u2003\u3000\u200b\ufeff x",
 "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀𓀀", "\u0000\u0001\u007f\u0080\ufffd\U0010ffff", "▁▁ <0x41> <0x0A>", "<s>inside</s> <|im_start|>user\nhi<|im_end|> <|im_end", "ไทย हिन्दी தமிழ்",
 "def f(x):\n    return x ** 2  # square\n", "٣٤ Ⅷ ½ ²", "a" * 300, "word " * 100, "\u2028\u2029\u0085 \u001c\u001f",
]
cases = []
for name in ["tiny-llama", "tinyllama-tokenizer"]:
    t = tokenizers.Tokenizer.from_file(f"{ROOT}/tests/data/{name}/tokenizer.json")
    for text in texts:
        ids = t.encode(text, add_special_tokens=False).ids
        special = t.encode(text, add_special_tokens=True).ids
        cases.append(dict(tokenizer=name, text=text, ids=ids, special_ids=special, decoded=t.decode(special, skip_special_tokens=True)))
json.dump(cases, open(f"{out}/tokens.json", "w"), ensure_ascii=True, indent=0)

chatml = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
alternate = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate user/assistant') }}
    {%- endif -%}
    {%- if m.role == 'user' -%}
        [INST] {{ (system if loop.first else '') ~ m.content.strip() }} [/INST]
    {%- else -%}
        {{ ' ' + m.content + eos_token }}
    {%- endif -%}
{%- endfor -%}
"""
tools_t = """{%- if tools %}
    {{- '<tools>\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' }}
    {%- endfor %}
    {{- '</tools>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1, multi=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role in ["user", "system"] %}
        {{- '<' + message.role + '>' + message.content + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content if message.content is string else '' %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<assistant>' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments | tojson }}
            {{- '}' }}
        {%- endfor %}
        {{- '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<results>' }}{%- endif %}
        {{- message.content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '</results>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
last={{ ns.last }}
{%- if add_generation_prompt %}<assistant>{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}
"""
generation = """{% for m in messages %}
  {%- if m.role == 'assistant' %}
    {% generation %}
    {{ m.content }}|
    {% endgeneration %}
  {%- else %}
    {{ m.content }}#
  {%- endif %}
{% endfor %}"""
user = [dict(role="user", content="Hello ünï ☃")]
conv = [dict(role="system", content="  Be brief. \u001f"), dict(role="user", content=" hi "), dict(role="assistant", content="hello"), dict(role="user", content="<b>&amp; \"q\" 'x'</b>")]
call = [dict(role="user", content="weather?"),
        dict(role="assistant", content=None, tool_calls=[dict(type="function", id="c1", function=dict(name="get", arguments=dict(city="Zürich <&> \"x\"", n=1, f=1.0, big=1e20, t=True, z=None, l=[1, [2, {}], []])))]),
        dict(role="tool", content="sunny"), dict(role="tool", content="warm"),
        dict(role="assistant", content="<think>hm</think>\n\nSunny."), dict(role="user", content="<r>ok</r>")]
tool = [dict(type="function", function=dict(name="get", description="Gets é \u2028 \t\x01\x7f", parameters=dict(type="object", properties=dict(city=dict(type="string", enum=["a", "b"])), required=["city"])))]
cases = []
def case(name, template, messages=user, tools=None, agp=True, args=None):
    kw = dict(args or {})
    try:
        compiled = ctu._compile_jinja_template(template)
        out = compiled.render(messages=messages, tools=tools, documents=None, add_generation_prompt=agp, bos_token="<s>", eos_token="</s>", **kw)
        rendered = {"Ok": out}
    except Exception as e:
        rendered = {"Err": str(e)}
    cases.append(dict(name=name, template=template, messages=messages, tools=tools, add_generation_prompt=agp, args=args, rendered=rendered))
case("chatml", chatml); case("chatml conversation", chatml, conv); case("chatml closed", chatml, conv, agp=False)
case("alternating", alternate, conv); case("alternating raises", alternate, conv[1:2] * 2); case("alternating no system", alternate, conv[1:])
case("tools", tools_t, call, tool); case("tools no thinking", tools_t, call, tool, args=dict(enable_thinking=False)); case("no tools", tools_t, conv)
case("generation tags", generation, conv)
for name, t in {
 "tojson indent": "{{ tools | tojson(indent=2) }}",
 "tojson indent 4": "{{ tools[0].function | tojson(indent=4) }}|{{ [] | tojson(indent=4) }}|{{ {} | tojson(indent=4) }}",
 "tojson separators": "{{ tools | tojson(separators=(',', ':')) }}",
 "tojson ascii": "{{ messages | tojson(ensure_ascii=True) }}{{ '😀' | tojson(ensure_ascii=true) }}",
 "tojson sorted": "{{ tools | tojson(sort_keys=true) }}",
 "tojson scalars": "{{ [1, -2, 1.0, 0.1, 1e16, 1e-5, 123456789012345678, true, false, none, 'x'] | tojson }}",
 "tojson keys": "{{ {1: 'a', 'b': 2, 2.5: 3, none: 4} | tojson }}",
 "tojson concatenation": "{{ 'a' + (tools[0].function.name | tojson) + 'b' }}{% set x = tools | tojson %}{{ x | length }}",
 "no html escape": "{{ '<a href=\"x\">&</a>' }}{{ '<x>' | tojson }}",
 "whitespace control": "  {% if true %}\n  a\n  {% endif %}\n  b {#- c -#}\n d\n\n",
 "trailing newline": "a\n", "two trailing newlines": "a\n\n",
 "python methods": "{{ 'a-b-c'.split('-') | join('+') }} {{ ' x '.strip() }}|{{ 'xxay'.lstrip('x') }}|{{ 'ab'.upper() }}|{{ 'Ab cd'.title() }}|{{ 'abab'.replace('a', 'z', 1) }}|{{ 'abc'.startswith('a') }}|{{ 'abc'.find('c') }}|{{ 'a\nb'.splitlines() | length }}",
 "dict methods": "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b', 'd') }}{{ {'a': 1}.get('b') }}",
 "printing": "{{ true }} {{ false }} {{ none }} {{ 1 }} {{ 1.0 }} {{ 0.5 }} {{ missing }}|",
 "printing containers": "{{ [1, 'a', true, none, 2.0] }} {{ {'k': 'v', 'n': {'x': [1]}} }} {{ \"it's\" }} {{ [\"it's\"] }}",
 "string filter": "{{ true | string }}{{ 12 | string + 'x' }}{{ none | string }}",
 "undefined": "{{ missing is defined }}{{ missing is none }}{{ messages[0].nope is defined }}{{ messages[0].nope or 'd' }}{{ missing | default('x') }}{{ messages[0]['tool_calls'] is not defined }}{% for x in missing %}y{% endfor %}",
 "undefined length": "{{ missing | length }}",
 "loop": "{% for m in [1,2,3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
 "loop controls": "{% for m in range(10) %}{% if m == 2 %}{% continue %}{% endif %}{% if m == 5 %}{% break %}{% endif %}{{ m }}{% endfor %}",
 "loop filter and else": "{% for m in messages if m.role == 'nobody' %}x{% else %}none{% endfor %}",
 "slices": "{{ [1,2,3,4][1:] }}{{ [1,2,3,4][::-1] }}{{ [1,2,3,4][-1] }}{{ 'abc'[:2] }}{{ messages[-1].role }}",
 "filters": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | map(attribute='role') | join(',') }}{{ [3,1,2] | sort | first }}{{ [1,2] | last }}{{ 'a b' | replace(' ', '_') }}{{ 'x' | upper }}{{ [1,1,2] | unique | list | length }}{{ '  a\nb' | indent(2) }}{% for k, v in {'b':1,'a':2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
 "tests": "{{ 'a' is string }}{{ {} is mapping }}{{ [] is sequence }}{{ [] is iterable }}{{ 1 is number }}{{ 1 is integer }}{{ 1.0 is float }}{{ none is none }}{{ true is boolean }}{{ 3 is odd }}{{ 'a' in 'abc' }}{{ 'a' not in ['b'] }}{{ true is true }}{{ false is false }}",
 "macro": "{% macro show(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ show('a') }}{{ show('b', y='c') }}{{ caller is defined }}",
 "set block": "{% set x %}a{{ 1 + 1 }}{% endset %}{{ x }}|{{ x | trim }}",
 "arithmetic": "{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 7 / 2 }} {{ 1 + 2.5 }} {{ 'a' ~ 1 ~ none ~ true }} {{ '%s-%d' | format('a', 3) }} {{ 'x' * 3 }}",
 "inline if": "{{ 'a' if false }}{{ 'b' if true else 'c' }}{{ not true }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}",
 "raw": "{% raw %}{{ x }}{% endraw %}",
 "comment": "a{# c #}b\n{# whole line #}\nc",
 "list append by plus": "{% set x = [1] %}{% set x = x + [2] %}{{ x }}{% set ns = namespace(l=[]) %}{% set ns.l = ns.l + ['q'] %}{{ ns.l }}",
 "do": "{% set x = {'a': 1} %}{{ x.a }}{{ x['a'] }}",
 "string repr of quotes": "{{ ['\u00a0', '\u2028', '\u0007\u0000', '\"', \"'\", 'a\nb', 'é'] }}",
 "unpack": "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% for k, v in [(1, 2)] %}{{ k }}{{ v }}{% endfor %}",
 "dict index": "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}",
 "capitalize": "{{ 'uSER' | capitalize }} {{ 'uSER'.capitalize() }} {{ 'a b' | title }}",
 "trim keeps inside": "{{ '\u00a0 a b \u001c\u2003' | trim }}|{{ 'xxaxx'.strip('x') }}|{{ 'a ' | trim }}",
 "format method": "{{ '{} and {}'.format('a', 1) }}",
 "call arguments": "{{ raise_exception('say ' + messages[0].role) }}",
}.items():
    case(name, t, tools=tool)
json.dump(cases, open(f"{out}/templates.json", "w"), ensure_ascii=True, indent=1)
