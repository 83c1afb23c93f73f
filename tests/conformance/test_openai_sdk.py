"""The official Python SDK against a running server: BASE_URL names it, model `tiny`."""

import json
import os
import time
import urllib.error
import urllib.request

import openai
import pytest

BASE_URL = os.environ["BASE_URL"]
client = openai.OpenAI(base_url=BASE_URL, api_key="none", max_retries=0, timeout=30)
HELLO = [{"role": "user", "content": "Say hello to the world, please."}]
# The simulated model would stop at nothing: it never draws an end token, so max_tokens ends every answer.


def ask(**options):
    return client.chat.completions.create(**({"model": "tiny", "messages": HELLO, "max_tokens": 16} | options))


def post(body: bytes, path="/chat/completions", content_type="application/json"):
    request = urllib.request.Request(BASE_URL + path, data=body, headers={"content-type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def check_error(status, body, *, wanted, names=()):
    """Both shapes: flat, and the nested object that the SDKs read."""
    assert status == wanted, body
    assert body["code"] == wanted and body["message"] and body["type"]
    nested = body["error"]
    assert nested["message"] == body["message"] and nested["type"] and "param" in nested and "code" in nested
    for name in names:
        assert name in body["message"], body["message"]


def test_whole_answer():
    answer = ask()
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "tiny"
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16


def test_stream_equals_whole_answer():
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage():
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_options_need_a_stream():
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        ask(stream_options={"include_usage": True})


def test_several_stop_strings():
    whole = ask(max_tokens=64).choices[0].message.content
    first, second = whole[10:13], whole[20:24]
    wanted = whole[: min(whole.index(first), whole.index(second))]
    for stream in (False, True):
        answer = ask(max_tokens=64, stop=[second, first, "\x00never"], stream=stream)
        if stream:
            chunks = list(answer)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            finish = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
        else:
            text, finish = answer.choices[0].message.content, [answer.choices[0].finish_reason]
        assert (text, finish) == (wanted, ["stop"])


def test_max_completion_tokens_goes_before_max_tokens():
    assert ask(max_completion_tokens=5).usage.completion_tokens == 5


def test_one_choice():
    assert len(ask(n=1).choices) == 1


def test_models():
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_unknown_model():
    with pytest.raises(openai.NotFoundError, match="nothing"):
        ask(model="nothing")
    check_error(*post(json.dumps({"model": "nothing", "messages": HELLO}).encode())[:2], wanted=404)


def test_bad_json():
    check_error(*post(b'{"model": "tiny", ')[:2], wanted=400)


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", "hot"),
        ("max_tokens", "many"),
        ("messages", "hello"),
        ("stream", "yes"),
        ("stop", 7),
        ("top_p", []),
        ("model", 3),
    ],
)
def test_wrong_types_name_the_field(field, value):
    body = {"model": "tiny", "messages": HELLO} | {field: value}
    check_error(*post(json.dumps(body).encode())[:2], wanted=400, names=[field])


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", 2.5),
        ("temperature", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("n", 0),
        ("max_tokens", 0),
        ("top_logprobs", 21),
        ("stop", [""]),
        ("messages", []),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("logit_bias", {"5": 101}),
    ],
)
def test_values_out_of_range_name_the_field(field, value):
    body = {"model": "tiny", "messages": HELLO} | {field: value}
    check_error(*post(json.dumps(body).encode())[:2], wanted=400, names=[field])


def test_unknown_fields_are_named():
    body = {"model": "tiny", "messages": HELLO, "colour": 1, "shape": 2}
    check_error(*post(json.dumps(body).encode())[:2], wanted=400, names=["colour", "shape"])


def test_prompt_that_is_too_long_names_both_numbers():
    with pytest.raises(openai.BadRequestError) as fault:
        ask(messages=[{"role": "user", "content": "many words " * 20000}])
    numbers = [int(word) for word in fault.value.message.replace(",", " ").split() if word.isdigit()]
    assert 8192 in numbers and any(number > 8192 for number in numbers), fault.value.message


def test_body_that_is_too_large():
    with pytest.raises(openai.APIStatusError) as fault:
        ask(messages=[{"role": "user", "content": "x" * 50_000_000}])
    assert fault.value.status_code == 413, fault.value


def test_request_ids():
    answer = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "my-own-id"}
    )
    assert answer.headers["x-request-id"] == "my-own-id"
    status, _, headers = post(b"{")
    assert status == 400 and headers["x-request-id"]


def test_content_parts():
    parts = [{"type": "text", "text": "Say hello "}, {"type": "text", "text": "to the world, please."}]
    assert ask(messages=[{"role": "user", "content": parts}]).choices[0].message.content


def test_repeats_are_cached():
    message = [{"role": "user", "content": "A prompt that nobody else sends. " * 40}]
    cold = ask(messages=message).usage
    warm = ask(messages=message).usage
    # The worker's events reach the router a moment after its answer reaches the client.
    for _ in range(50):
        if warm.prompt_tokens_details.cached_tokens:
            break
        time.sleep(0.02)
        warm = ask(messages=message).usage
    assert cold.prompt_tokens_details.cached_tokens == 0
    assert warm.prompt_tokens_details.cached_tokens >= warm.prompt_tokens - 64 - warm.prompt_tokens % 64


def test_unknown_route():
    status, body, _ = post(b"{}", path="/nothing/here")
    check_error(status, body, wanted=404)


def test_content_type():
    status, body, _ = post(b"{}", content_type="text/plain")
    check_error(status, body, wanted=415)
