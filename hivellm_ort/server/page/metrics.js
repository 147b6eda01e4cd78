// What the server does now, from its metrics in Prometheus' text format.

import { getText } from "./api.js";

const KEPT = 60; // values of the line
const PREFIX = "hivellm_ort_";
const PARTS = { bases: "models", adapters: "experts", key_values: "answers", prefixes: "cached prompts" };
const element = (id) => document.getElementById(id);
const speeds = [];
let last = null;

/** The samples of a text by name: a list of labels and values. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const parts = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    const samples = found.get(parts[1]) ?? [];
    samples.push({ labels, value: Number(parts[3].replace("Inf", "Infinity")) });
    found.set(parts[1], samples);
  }
  return found;
}

/** Read the metrics once, and show them. */
export async function update() {
  const samples = parse(await getText("metrics"));
  const now = performance.now();
  const sum = (name) => (samples.get(PREFIX + name) ?? []).reduce((total, sample) => total + sample.value, 0);
  const tokens = sum("step_tokens_total");
  if (last && tokens >= last.tokens) speeds.push((1000 * (tokens - last.tokens)) / (now - last.now));
  last = { tokens, now };
  speeds.splice(0, speeds.length - KEPT);

  const share = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");
  const show = (id, text) => (element(id).textContent = text);
  show("m-active", `${sum("active_requests")} of ${sum("batch_rows_limit")}`);
  show("m-queued", sum("queued_requests"));
  show("m-speed", speeds.length ? Math.round(speeds.at(-1)).toLocaleString("en") : "–");
  show("m-experts", sum("loaded_experts"));
  show("m-cached", share(sum("cached_tokens_total"), sum("prompt_tokens_total")));
  show("m-written", sum("completion_tokens_total").toLocaleString("en"));
  show("m-forced", share(sum("forced_tokens_total"), sum("completion_tokens_total")));
  show("m-memory", size(sum("memory_bytes")));
  const parts = (samples.get(`${PREFIX}memory_bytes`) ?? []).filter((sample) => sample.value > 0);
  show("m-parts", parts.map(({ labels, value }) => `${PARTS[labels.part] ?? labels.part} ${size(value)}`).join(", "));
  draw();
}

function draw() {
  const most = Math.max(1, ...speeds);
  const points = speeds.map((speed, index) => {
    const x = 120 - (speeds.length - 1 - index) * (120 / (KEPT - 1));
    return `${x.toFixed(1)},${(27 - (25 * speed) / most).toFixed(1)}`;
  });
  element("m-line").firstElementChild.setAttribute("points", points.join(" "));
}

/** Bytes as people read them. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, bytes > 0 ? Math.floor(Math.log2(bytes) / 10) : 0);
  return `${(bytes / 1024 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}
