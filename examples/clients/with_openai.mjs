// OpenAI's client for JavaScript: an answer, a stream, and an object.
// npm install openai && node with_openai.mjs http://127.0.0.1:8000/v1 json

import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const api = new OpenAI({ baseURL, apiKey: "none" });
const messages = [{ role: "user", content: "Describe a kettle in JSON" }];

const answer = await api.chat.completions.create({ model, messages, max_tokens: 40 });
console.log(answer.choices[0].message.content);

for await (const chunk of await api.chat.completions.create({ model, messages, max_tokens: 40, stream: true })) {
  process.stdout.write(chunk.choices[0].delta.content ?? "");
}
console.log();

const schema = {
  type: "object",
  properties: { available: { type: "boolean" } },
  required: ["available"],
  additionalProperties: false,
};
const response_format = { type: "json_schema", json_schema: { name: "product", strict: true, schema } };
const parsed = await api.chat.completions.parse({ model, messages, response_format });
console.log(parsed.choices[0].message.parsed);
