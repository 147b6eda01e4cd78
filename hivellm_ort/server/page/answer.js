// One answer on the page: its text, tokens, thoughts, calls of tools, and what is known of how it came about.

import { make } from "./dom.js";
import { TokenView } from "./tokens.js";

const ENDS = {
  length: "cut off at the most tokens",
  tool_calls: "calls tools",
  stop: "complete",
  stopped: "stopped by you",
  failed: "ended by an error",
};
const seconds = (value) => (value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(2)} s`);

export class Answer {
  /** The answer of a request that has just been sent. `tokens` tells whether probabilities were asked for. */
  constructor(tokens) {
    this.begin = performance.now();
    this.first = null;
    this.content = this.reasoning = "";
    this.calls = [];
    this.end = null;
    this.who = make("strong", {}, "…");
    this.text = make("div", { className: "text" });
    this.thoughts = make("div", { className: "text" });
    this.thinking = make("details", { className: "thoughts", hidden: true }, make("summary", {}, "Thoughts"), this.thoughts);
    this.callList = make("div", { className: "calls" });
    this.facts = make("dl", { className: "facts-list" });
    this.routing = make("div");
    this.tokens = tokens ? new TokenView() : null;
    const head = make("div", { className: "head" }, this.who);
    this.element = make("li", { className: "turn assistant" }, head, this.thinking);
    if (this.tokens) {
      head.append(this.#switch());
      this.element.append(this.tokens.element);
      this.text.hidden = true;
    }
    this.element.append(this.text, this.callList, this.facts, this.routing);
    this.element.setAttribute("aria-busy", "true");
  }

  /** Who answers, and why. */
  headers(headers) {
    const name = headers.get("x-hivellm-expert");
    if (name !== null) this.who.textContent = this.expert = decodeURIComponent(name);
    const routing = headers.get("x-hivellm-routing");
    if (routing === null) return;
    const { score, reasons } = JSON.parse(routing);
    this.routing.append(
      make(
        "details",
        { className: "routing" },
        make("summary", {}, `Why ${this.expert}? Score ${score.toFixed(2)}`),
        make("ul", {}, ...reasons.map((reason) => make("li", {}, reason))),
      ),
    );
  }

  /** Add what a chunk has. */
  chunk(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) return;
    const { delta } = choice;
    const written = delta.content || delta.reasoning_content || delta.tool_calls || choice.logprobs;
    if (written && this.first === null) this.first = performance.now();
    if (delta.reasoning_content) {
      this.reasoning += delta.reasoning_content;
      this.thoughts.append(delta.reasoning_content);
      this.thinking.hidden = false;
    }
    if (delta.content) {
      this.content += delta.content;
      this.text.append(delta.content);
    }
    for (const call of delta.tool_calls ?? []) this.#call(call);
    for (const entry of choice.logprobs?.content ?? []) this.tokens?.add(entry);
    if (choice.finish_reason) this.end = choice.finish_reason;
    if (choice.timings) this.timings = choice.timings;
  }

  /** The answer gets nothing more. `end` says why, where the server has not. */
  close(end = null) {
    this.element.removeAttribute("aria-busy");
    this.end = end ?? this.end;
    if (this.usage === undefined && this.timings === undefined && this.first === null) this.tokens?.element.remove();
    const facts = [["End", ENDS[this.end] ?? this.end]];
    if (this.first !== null) facts.push(["First token", seconds((this.first - this.begin) / 1000)]);
    if (this.timings?.tokens_per_second > 0) facts.push(["Speed", `${this.timings.tokens_per_second.toFixed(1)} tokens/s`]);
    if (this.usage) {
      const { prompt_tokens: prompt, completion_tokens: written } = this.usage;
      const cached = this.usage.prompt_tokens_details.cached_tokens;
      const forced = this.usage.completion_tokens_details.forced_tokens;
      facts.push(["Prompt", `${prompt} tokens${cached ? `, ${cached} cached` : ""}`]);
      facts.push(["Answer", `${written} tokens`]);
      if (forced) facts.push(["Forced by grammar", String(forced)]);
    }
    if (this.timings) {
      const { queue, prefill, decode } = this.timings;
      facts.push(["Waited", seconds(queue)], ["Prompt read in", seconds(prefill)], ["Written in", seconds(decode)]);
    }
    this.facts.replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  /** Whether there is anything of it to keep. */
  get empty() {
    return !this.content && !this.reasoning && !this.calls.length;
  }

  /** The answer as a message, and the results of its calls that were written on the page. */
  get messages() {
    if (!this.calls.length) return [{ role: "assistant", content: this.content }];
    const calls = this.calls.map(({ id, name, args }) => ({ id, type: "function", function: { name, arguments: args } }));
    const results = this.calls
      .filter(({ result }) => result.value.trim())
      .map(({ id, result }) => ({ role: "tool", tool_call_id: id, content: result.value }));
    return [{ role: "assistant", content: this.content || null, tool_calls: calls }, ...results];
  }

  /** Whether every call has its result. */
  get answered() {
    return this.calls.length > 0 && this.calls.every(({ result }) => result.value.trim());
  }

  #call({ index, id, function: part }) {
    let call = this.calls[index];
    if (!call) {
      const name = part.name ?? "";
      const argsText = make("pre", { tabIndex: 0 });
      argsText.setAttribute("aria-label", `Arguments of ${name}`);
      const result = make("textarea", { rows: 2, placeholder: "Write what the tool returns, then press Send" });
      const label = make("label", {}, `Result of ${name}`, result);
      this.callList.append(make("div", { className: "call" }, make("p", {}, "Calls ", make("code", {}, name)), argsText, label));
      call = this.calls[index] = { id, name, args: "", argsText, result };
    }
    call.args += part.arguments ?? "";
    call.argsText.textContent = call.args;
  }

  #switch() {
    const both = [make("button", { type: "button" }, "Tokens"), make("button", { type: "button" }, "Text")];
    const choose = (index) => {
      both.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
      this.tokens.element.hidden = index === 1;
      this.text.hidden = index === 0;
    };
    both.forEach((button, index) => button.addEventListener("click", () => choose(index)));
    this.tokens.element.hidden = false;
    both[0].setAttribute("aria-pressed", "true");
    both[1].setAttribute("aria-pressed", "false");
    const group = make("div", { className: "switch", role: "group" }, ...both);
    group.setAttribute("aria-label", "Show the answer as");
    return group;
  }
}
