// The page: models, the conversation, what goes wrong, and the metrics.

import { Answer } from "./answer.js";
import { FieldError, FORMS, asCurl, asPython, bodyOf, fieldOf, fieldsOf } from "./request.js";
import { chat, getJson, key, readiness } from "./api.js";
import { make } from "./dom.js";
import { update } from "./metrics.js";

const element = (id) => document.getElementById(id);
const question = element("question");
const POLL_MS = 2000;
const TITLES = { 0: "No connection", 401: "The key is missing or wrong", 429: "The server is busy", 503: "Unavailable" };

const turns = []; // a text of the user, or an Answer
let running = null; // the AbortController of the answer that is being written
let sent = null; // the fields of the last request
let models = [];
let keyWanted = false;

// Models

async function loadModels() {
  try {
    models = (await getJson("v1/models")).data;
  } catch (error) {
    fail(error);
    return;
  }
  clearError();
  const select = element("model");
  const before = select.value;
  const options = models.map(({ id }) => make("option", { value: id }, id));
  select.replaceChildren(make("option", { value: "auto" }, "auto (by the question)"), ...options);
  const first = models.find(({ id }) => id !== "base") ?? models[0];
  select.value = [...select.options].some(({ value }) => value === before) ? before : (first?.id ?? "auto");
  showFacts();
}

function showFacts() {
  const model = models.find(({ id }) => id === element("model").value);
  const facts = model
    ? [model.root, model.parent && `on ${model.parent === "base" ? rootOf("base") : model.parent}`]
    : ["The expert that fits the question answers."];
  element("model-facts").textContent = facts.filter(Boolean).join(" ");
  const known = model ?? models.find(({ provider }) => provider);
  const device = known?.provider?.replace("ExecutionProvider", "").replace("Dml", "DirectML");
  const parts = [device, known?.precision, known?.max_model_len && `context ${known.max_model_len}`];
  element("device").textContent = parts.filter(Boolean).join(" · ");
}

const rootOf = (id) => models.find((model) => model.id === id)?.root ?? id;

// The conversation

async function send() {
  if (running) return;
  const text = question.value;
  const last = turns.at(-1);
  if (!text.trim() && !last?.answered) {
    question.focus();
    return;
  }
  clearError();
  const asked = text.trim() ? [...turns, text] : [...turns];
  try {
    sent = fieldsOf(asked.flatMap((turn) => (turn instanceof Answer ? turn.messages : [{ role: "user", content: turn }])));
  } catch (error) {
    fail(error);
    return;
  }
  showCode();
  const user = text.trim() ? showUser(text) : null;
  if (user) turns.push(text);
  question.value = "";
  const answer = new Answer(sent.has("logprobs"));
  element("turns").append(answer.element);
  follow(true);
  if (!(await write(answer))) {
    // Nothing came of it: the message is there to be sent again.
    answer.element.remove();
    user?.remove();
    if (user) turns.pop();
    question.value ||= text;
    element("welcome").hidden = turns.length > 0;
  }
}

/** Write an answer as it comes. Whether there is anything of it. */
async function write(answer) {
  running = new AbortController();
  busy(true);
  let end = null;
  try {
    for await (const chunk of chat(bodyOf(sent), running.signal, (headers) => begun(answer, headers))) {
      answer.chunk(chunk);
      follow();
    }
  } catch (error) {
    end = error.name === "AbortError" ? "stopped" : "failed";
    if (end === "failed") fail(error);
  }
  running = null;
  answer.close(end);
  busy(false);
  follow();
  if (end !== null && answer.empty) {
    say(end === "stopped" ? "Stopped." : "");
    return false;
  }
  turns.push(answer);
  say(end === null ? `The answer is complete. ${answer.content}` : "The answer is incomplete.");
  return true;
}

function begun(answer, headers) {
  answer.headers(headers);
  say(`${answer.expert} answers.`);
}

function showUser(text) {
  const item = make("li", { className: "turn user" }, make("div", { className: "text" }, text));
  element("turns").append(item);
  element("welcome").hidden = true;
  return item;
}

function busy(is) {
  element("send").hidden = is;
  element("stop").hidden = !is;
  element("new").disabled = is;
  if (!is && document.activeElement === document.body && matchMedia("(hover: hover)").matches) question.focus();
}

/** Keep the end in view where the reader is at the end. */
function follow(always = false) {
  const box = element("scroll");
  if (always || box.scrollHeight - box.scrollTop - box.clientHeight < 120) box.scrollTop = box.scrollHeight;
}

const say = (text) => (element("live").textContent = text);

// What goes wrong

function fail(error) {
  const field = error instanceof FieldError ? element(error.id) : fieldOf(error.param);
  const known = error instanceof FieldError || error.status !== undefined;
  const title = TITLES[error.status] ?? (known ? "This cannot be answered" : "The page has a fault");
  const details = [
    error.status && `status ${error.status}`,
    error.code && `code ${error.code}`,
    error.param && `field ${error.param}`,
  ];
  element("error").replaceChildren(
    make("strong", {}, title),
    make("p", {}, error.status === 401 ? "Type the key of this server in the field “API key”." : error.message),
    make("p", { className: "hint" }, details.filter(Boolean).join(", ")),
  );
  element("error").hidden = false;
  if (error.status === 401) {
    keyWanted = true;
    showStatus("key", "Key needed");
    showSettings(true);
    element("key-section").open = true;
    element("key").focus();
  }
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", "error");
    const section = field.closest("details");
    if (section) {
      section.open = true;
      showSettings(true);
    }
    field.focus();
  }
}

function clearError() {
  element("error").hidden = true;
  element("error").replaceChildren();
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

// Status and metrics

function showStatus(state, text) {
  const chip = element("status");
  if (chip.textContent === text) return;
  chip.dataset.state = state;
  chip.textContent = text;
}

async function poll() {
  if (!document.hidden && !keyWanted) {
    try {
      const state = await readiness();
      showStatus(state, state === "ready" ? "Ready" : "Takes no requests");
      if (element("metrics").open) await update();
      if (!models.length) await loadModels();
    } catch (error) {
      if (error.status === 401) fail(error);
      else showStatus("lost", "Unreachable");
    }
  }
  setTimeout(poll, POLL_MS);
}

// Settings

/** Show or hide them in a narrow window; a wide one shows them always. */
function showSettings(shown) {
  element("settings").classList.toggle("shown", shown);
  element("show-settings").setAttribute("aria-expanded", String(shown));
}

function showForm() {
  const form = FORMS[element("form").value];
  element("form-more").hidden = !form;
  if (!form) return;
  element("form-label").textContent = form.label;
  element("form-hint").textContent = form.hint;
  element("form-text").placeholder = form.example;
}

function showCode() {
  if (!sent) return;
  const python = element("as-python").getAttribute("aria-pressed") === "true";
  element("no-request").hidden = true;
  element("code").hidden = false;
  element("code-text").textContent = (python ? asPython : asCurl)(sent, key.get() !== "");
}

async function copyCode() {
  const text = element("code-text").textContent;
  try {
    await navigator.clipboard.writeText(text);
    element("copy").textContent = "Copied";
  } catch {
    // Browsers allow it on this machine and with TLS only: select the text, to be copied by hand.
    getSelection().selectAllChildren(element("code-text"));
    element("copy").textContent = "Selected";
  }
  setTimeout(() => (element("copy").textContent = "Copy"), 2000);
}

function chooseLanguage(chosen, other) {
  element(chosen).setAttribute("aria-pressed", "true");
  element(other).setAttribute("aria-pressed", "false");
  showCode();
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  void send();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void send();
});
addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
element("stop").addEventListener("click", () => running?.abort());
element("new").addEventListener("click", () => {
  turns.length = 0;
  element("turns").replaceChildren();
  element("welcome").hidden = false;
  clearError();
  question.focus();
});
element("fields").addEventListener("submit", (event) => event.preventDefault());
element("model").addEventListener("change", showFacts);
element("form").addEventListener("change", showForm);
element("key").addEventListener("change", () => {
  key.set(element("key").value.trim());
  keyWanted = false;
  showCode();
  void loadModels();
});
element("as-curl").addEventListener("click", () => chooseLanguage("as-curl", "as-python"));
element("as-python").addEventListener("click", () => chooseLanguage("as-python", "as-curl"));
element("copy").addEventListener("click", () => void copyCode());
element("show-settings").addEventListener("click", () => {
  showSettings(!element("settings").classList.contains("shown"));
  element("settings").scrollIntoView({ block: "start" });
});

element("key").value = key.get();
showForm();
await loadModels();
void poll();
// Focus opens the keyboard of a phone, which covers half of the page.
if (!keyWanted && matchMedia("(hover: hover)").matches) question.focus();
