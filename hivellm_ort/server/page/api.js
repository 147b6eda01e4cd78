// Requests to the server that this page came from.

const KEY = "hivellm-key";

export class ServerError extends Error {
  /** What the server said instead of an answer. `status` is 0 where it said nothing. */
  constructor(status, { message, param = null, code = null }) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

/** The absolute address of a path. The application may be mounted below a path of another one. */
export const address = (path) => new URL(path, document.baseURI).href.split("#")[0];

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { message: "The server cannot be reached. Check that it still runs." });
  }
  if (!response.ok) throw new ServerError(response.status, await errorOf(response));
  return response;
}

async function errorOf(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    if (typeof error.message === "string") return error;
  } catch {
    // Something between, such as a proxy, answered.
  }
  return { message: `The answer has the status ${response.status}, and no error of this server: ${text.slice(0, 500)}` };
}

export const getJson = async (path) => (await ask(path)).json();
export const getText = async (path) => (await ask(path)).text();

/** Whether requests are taken; the status of the server in words where they are not. */
export async function readiness() {
  try {
    await ask("ready");
    return "ready";
  } catch (error) {
    if (error.status === 503) return "busy";
    throw error;
  }
}

/**
 * Ask for a chat, and give its chunks as they come.
 * `onHeaders` gets the headers of the response before the first chunk.
 */
export async function* chat(body, signal, onHeaders) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body,
    signal,
  });
  onHeaders(response.headers);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(response.status, chunk.error);
    yield chunk;
  }
  throw new ServerError(0, { message: "The connection ended before the answer did. The text may be incomplete." });
}

/** The data of server-sent events. Browsers read them by themselves only where a request has no body. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (text + value).split(/\r?\n\r?\n/);
      text = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { message: "The connection broke before the answer ended. The text may be incomplete." });
  } finally {
    reader.cancel().catch(() => {});
  }
}
