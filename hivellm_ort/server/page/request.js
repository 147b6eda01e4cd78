// From the fields of the page to the body of a request, and to code that sends the same.

import { address } from "./api.js";

const element = (id) => document.getElementById(id);

export class FieldError extends Error {
  /** What is wrong with a field of the page, and which one it is. */
  constructor(id, message) {
    super(message);
    this.id = id;
  }
}

// Fields of the page by the fields of a request, for errors that name one.
const FIELDS = {
  response_format: "form-text", json_schema: "form-text", grammar: "form-text", regex: "form-text",
  choice: "form-text", stop: "stop-texts", messages: "question", chat_template_kwargs: "thinking",
};

/** The field of the page that a field of a request came from; null where there is none. */
export function fieldOf(param) {
  const name = (param ?? "").split(/[.[]/)[0];
  return element(FIELDS[name] ?? name)?.closest("#fields, #composer, .bar") ? element(FIELDS[name] ?? name) : null;
}

export const FORMS = {
  json_schema: {
    label: "JSON schema",
    hint: "Every token of the answer has to fit it.",
    example: '{\n  "type": "object",\n  "properties": {"name": {"type": "string"}},\n  "required": ["name"]\n}',
  },
  grammar: { label: "Grammar", hint: "GBNF, as llama.cpp has it.", example: 'root ::= "yes" | "no"' },
  regex: { label: "Regular expression", hint: "The whole answer must match.", example: "[0-9]{4}-[0-9]{2}-[0-9]{2}" },
  choice: { label: "Texts", hint: "One a line.", example: "positive\nnegative" },
};

const lines = (id) => element(id).value.split("\n").filter((line) => line !== "");

function number(id, fields) {
  const input = element(id);
  if (input.validity.badInput) throw new FieldError(id, "This is not a number.");
  if (input.value === "") return;
  const value = Number(input.value);
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
    throw new FieldError(id, `A browser cannot hold this number exactly. The largest is ${Number.MAX_SAFE_INTEGER}.`);
  }
  fields.set(id, JSON.stringify(value));
}

/** JSON as it was written: the server reads numbers and names more strictly than a browser does. */
function json(id, what) {
  const text = element(id).value.trim();
  try {
    JSON.parse(text);
  } catch (error) {
    throw new FieldError(id, text ? `This is not JSON: ${error.message}` : `Write ${what} here.`);
  }
  return text;
}

function form(fields) {
  const kind = element("form").value;
  const text = element("form-text").value;
  const schema = () => `{"name": "answer", "strict": true, "schema": ${json("form-text", "a JSON schema")}}`;
  const given = () => {
    if (text.trim() === "") throw new FieldError("form-text", "Write here what the answer must look like.");
    return JSON.stringify(text);
  };
  if (kind === "none") fields.set("grammar", "false");
  if (kind === "json_object") fields.set("response_format", '{"type": "json_object"}');
  if (kind === "json_schema") {
    fields.set("response_format", `{"type": "json_schema", "json_schema": ${schema()}}`);
  }
  if (kind === "grammar" || kind === "regex") fields.set(kind, given());
  if (kind === "choice") {
    given();
    fields.set("choice", JSON.stringify(lines("form-text")));
  }
}

/**
 * The body of a request: the JSON text of each field, by its name.
 * `turns` are the messages of the conversation without the system message.
 */
export function fieldsOf(turns) {
  const fields = new Map();
  const set = (name, value) => fields.set(name, JSON.stringify(value));
  const system = element("system").value;
  set("model", element("model").value);
  const messages = [...(system.trim() ? [{ role: "system", content: system }] : []), ...turns];
  fields.set("messages", `[\n${messages.map((message) => `    ${JSON.stringify(message)}`).join(",\n")}\n  ]`);
  if (element("schema").value.trim()) set("schema", element("schema").value);
  if (element("thinking").value) {
    fields.set("chat_template_kwargs", `{"enable_thinking": ${element("thinking").value}}`);
  }
  form(fields);
  for (const id of ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"]) number(id, fields);
  if (lines("stop-texts").length) set("stop", lines("stop-texts"));
  if (element("tools").value.trim()) fields.set("tools", json("tools", "a list of tools"));
  if (element("tool_choice").value) set("tool_choice", element("tool_choice").value);
  if (element("logprobs").checked) {
    set("logprobs", true);
    number("top_logprobs", fields);
  }
  set("stream", true);
  fields.set("stream_options", '{"include_usage": true}');
  return fields;
}

/** The body as it is sent. */
export const bodyOf = (fields) =>
  `{\n${[...fields].map(([name, text]) => `  ${JSON.stringify(name)}: ${text}`).join(",\n")}\n}`;

/** The request as a command of a POSIX shell. The key is never part of it. */
export function asCurl(fields, hasKey) {
  return [
    `curl -N ${quoted(address("v1/chat/completions"))} \\`,
    "  -H 'content-type: application/json' \\",
    ...(hasKey ? ['  -H "authorization: Bearer $HIVELLM_API_KEY" \\'] : []),
    `  -d ${quoted(bodyOf(fields))}`,
  ].join("\n");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// Fields that OpenAI's client has by name; it sends others as `extra_body`.
const NAMED = new Set([
  "model", "messages", "temperature", "top_p", "seed", "max_tokens", "stop", "response_format", "tools", "tool_choice",
  "logprobs", "top_logprobs", "stream", "stream_options",
]);

/** The request as a program with OpenAI's client. */
export function asPython(fields, hasKey) {
  const own = [...fields].filter(([name]) => NAMED.has(name));
  const extra = [...fields].filter(([name]) => !NAMED.has(name));
  const key = hasKey ? 'os.environ["HIVELLM_API_KEY"]' : '"none"';
  return [
    ...(hasKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(JSON.stringify(address("v1")))}, api_key=${key})`,
    "stream = client.chat.completions.create(",
    ...own.map(([name, text]) => `    ${name}=${literal(text)},`),
    ...(extra.length
      ? ["    extra_body={", ...extra.map(([name, text]) => `        "${name}": ${literal(text)},`), "    },"]
      : []),
    ")",
    "for chunk in stream:",
    "    if chunk.choices and chunk.choices[0].delta.content:",
    '        print(chunk.choices[0].delta.content, end="", flush=True)',
  ].join("\n");
}

const CONSTANTS = { true: "True", false: "False", null: "None" };

/** JSON as Python writes it. Escapes in texts mean the same to Python once JavaScript has written them anew. */
const literal = (text) =>
  text.replace(/"(?:[^"\\]|\\.)*"|true|false|null/g, (part) => CONSTANTS[part] ?? JSON.stringify(JSON.parse(part)));
