// Tokens of an answer: shaded by probability, with what else the model considered.

import { make } from "./dom.js";

const tip = document.getElementById("tip");
const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return `${share >= 99.95 ? "100" : share >= 10 ? share.toFixed(1) : share >= 0.01 ? share.toFixed(2) : "< 0.01"} %`;
};

/** A token as one can see it: spaces and line ends are signs. */
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(nothing)";

/** The tokens of one answer. One of them is in the tab order; arrow keys move among them. */
export class TokenView {
  constructor() {
    this.element = make("div", { className: "tokens", role: "group" });
    this.element.setAttribute("aria-label", "Tokens of the answer. Arrow keys move from token to token.");
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.count = this.forced = 0;
    const token = (event) => event.target.closest?.(".token");
    this.element.addEventListener("pointerover", (event) => token(event) && show(token(event)));
    this.element.addEventListener("pointerleave", () => hide());
    this.element.addEventListener("focusin", (event) => token(event) && this.#focus(token(event)));
    this.element.addEventListener("focusout", () => hide());
    this.element.addEventListener("keydown", (event) => this.#move(event));
  }

  add(entry) {
    // A character of several tokens appears with the last of them.
    const text = this.decoder.decode(Uint8Array.from(entry.bytes), { stream: true });
    const span = make("span", { className: "token", textContent: text, tabIndex: this.count ? -1 : 0, role: "button" });
    span.style.setProperty("--p", Math.exp(entry.logprob).toFixed(4));
    span.classList.toggle("forced", entry.forced === true);
    span.classList.toggle("partial", text === "");
    span.setAttribute("aria-label", `${visible(entry.token)}, ${percent(entry.logprob)}${entry.forced ? ", forced" : ""}`);
    span.entry = entry;
    this.count += 1;
    this.forced += entry.forced === true;
    this.element.append(span);
  }

  #focus(token) {
    for (const other of this.element.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    token.tabIndex = 0;
    show(token);
  }

  #move(event) {
    const token = event.target.closest(".token");
    const to = {
      ArrowRight: token?.nextElementSibling, ArrowLeft: token?.previousElementSibling,
      Home: this.element.firstElementChild, End: this.element.lastElementChild,
    }[event.key];
    if (event.key === "Escape") hide();
    if (!to) return;
    event.preventDefault();
    to.focus();
  }
}

function show(token) {
  const { entry } = token;
  const rows = entry.top_logprobs.map((other) => row(other, other.token === entry.token && other.logprob === entry.logprob));
  tip.replaceChildren(
    make("p", { className: "tip-head" }, make("code", {}, visible(entry.token)), make("strong", {}, percent(entry.logprob))),
    ...(entry.forced ? [make("p", { className: "tip-forced" }, "The grammar left no other token.")] : []),
    ...(rows.length ? [make("ul", {}, ...rows)] : []),
  );
  for (const other of document.querySelectorAll('[aria-describedby="tip"]')) other.removeAttribute("aria-describedby");
  token.setAttribute("aria-describedby", "tip");
  tip.hidden = false;
  const place = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const below = place.bottom + 6 + tip.offsetHeight <= innerHeight;
  tip.style.left = `${Math.max(8, Math.min(place.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? place.bottom + 6 : Math.max(8, place.top - 6 - tip.offsetHeight)}px`;
}

function row(entry, chosen) {
  const bar = make("span", { className: "fill" });
  bar.style.setProperty("--p", Math.exp(entry.logprob).toFixed(4));
  const item = make("li", {}, make("code", {}, visible(entry.token)), bar, make("span", {}, percent(entry.logprob)));
  item.classList.toggle("chosen", chosen);
  return item;
}

function hide() {
  tip.hidden = true;
}

addEventListener("scroll", hide, { capture: true, passive: true });
