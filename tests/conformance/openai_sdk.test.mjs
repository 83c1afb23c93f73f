// The official Node SDK against a running server: BASE_URL names it, model `tiny`.
import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: "Say hello to the world, please." }];
const ask = (options = {}) => client.chat.completions.create({ model: "tiny", messages, max_tokens: 16, ...options });

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}
const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");

test("whole answer", async () => {
  const answer = await ask({ n: 1 });
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices.length, 1);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 16);
});

test("a stream equals the whole answer", async () => {
  const whole = await ask();
  const chunks = await collect(await ask({ stream: true }));
  assert.equal(textOf(chunks), whole.choices[0].message.content);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
});

test("stream with usage", async () => {
  const chunks = await collect(await ask({ stream: true, stream_options: { include_usage: true } }));
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.completion_tokens, 16);
});

test("the SDK's own accumulation", async () => {
  const answer = await client.chat.completions.stream({ model: "tiny", messages, max_tokens: 16 }).finalChatCompletion();
  assert.equal(answer.choices[0].message.content, (await ask()).choices[0].message.content);
});

test("several stop strings", async () => {
  const whole = (await ask({ max_tokens: 64 })).choices[0].message.content;
  const [first, second] = [whole.slice(10, 13), whole.slice(20, 24)];
  const wanted = whole.slice(0, Math.min(whole.indexOf(first), whole.indexOf(second)));
  const answer = await ask({ max_tokens: 64, stop: [second, first] });
  assert.equal(answer.choices[0].message.content, wanted);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(textOf(await collect(await ask({ max_tokens: 64, stop: [second, first], stream: true }))), wanted);
});

test("a stream that is left early", async () => {
  const stream = await ask({ stream: true, max_tokens: 4000 });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  assert.ok((await ask()).choices[0].message.content);
});

const refused = (status, pattern, options, name = pattern.source) =>
  test(`refused: ${name}`, async () => {
    await assert.rejects(ask(options), (error) => {
      assert.equal(error.status, status);
      assert.match(error.message, pattern);
      return true;
    });
  });
refused(404, /nothing/, { model: "nothing" });
refused(400, /temperature/, { temperature: 3 });
refused(400, /top_p/, { top_p: "much" });
refused(400, /max_tokens/, { max_tokens: 0 });
refused(400, /messages/, { messages: [] });
refused(400, /8192/, { messages: [{ role: "user", content: "many words ".repeat(20000) }] });
refused(413, /./, { messages: [{ role: "user", content: "x".repeat(50_000_000) }] }, "50 MB body");
