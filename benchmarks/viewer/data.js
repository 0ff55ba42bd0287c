"use strict";
// What the page was given: an index of all episodes, read at once, and their texts in packed chunks, read when needed.

const given = JSON.parse(document.getElementById("agentrec-data").textContent);
const host = document.getElementById("agentrec-viewer");
const root = host.shadowRoot;
const alone = host.classList.contains("alone");
const rows = given.columns;
const total = rows.player.length;

const $ = (selector) => root.querySelector(selector);

/** An element with text or children; never markup. Attributes are set one by one. */
function el(tag, attributes = {}, ...children) {
  const svg = el.svg.has(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}
el.svg = new Set(["svg", "path", "line", "text", "g", "rect", "circle"]);

const number = new Intl.NumberFormat("en");
const many = (count, noun) => `${number.format(count)} ${noun}${count === 1 ? "" : "s"}`;
/** A figure with at most `digits` decimals and a true minus sign. */
function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const text = Number.isInteger(value) ? String(value) : value.toFixed(digits);
  return text.replace("-", "−");
}

const playerOf = (id) => given.players[rows.player[id]];
const taskOf = (id) => given.tasks[rows.task[id]];
const stopOf = (id) => given.stops[rows.stop[id]];
const failed = (id) => stopOf(id) !== "answered";
const toolsOf = (id) => given.toolsets[rows.toolset[id]];

/** Episodes of the same task, pool and seed of the pool, in the order of agents. */
const rivals = (() => {
  const groups = new Map();
  for (let id = 0; id < total; id += 1) {
    const key = `${playerOf(id).place}|${rows.task[id]}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(id);
  }
  return (id) => groups.get(`${playerOf(id).place}|${rows.task[id]}`).filter((other) => other !== id);
})();

const chunks = (() => {
  const cache = new Map();
  const KEPT = 24;
  async function load(chunk) {
    const packed = atob(document.getElementById(`agentrec-chunk-${chunk}`).textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }
  return {
    /** The chunk's texts, unpacked once and kept for a while. */
    get(chunk) {
      const held = cache.get(chunk) ?? load(chunk);
      cache.delete(chunk);
      cache.set(chunk, held);
      if (cache.size > KEPT) cache.delete(cache.keys().next().value);
      return held;
    },
    /** Without keeping it, for a search through all. */
    pass: (chunk) => cache.get(chunk) ?? load(chunk),
    of(id) {
      let low = 0;
      let high = given.starts.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (given.starts[middle] <= id) low = middle;
        else high = middle - 1;
      }
      return low;
    },
  };
})();

/** The whole episode: prompt, turns, list. */
async function episode(id) {
  const chunk = chunks.of(id);
  const { prompts, names, episodes } = await chunks.get(chunk);
  const [prompt, turns, candidates, ranking, target, terms, metrics, error, info, seed] =
    episodes[id - given.starts[chunk]];
  const name = (item) => names[item] ?? `item ${item}`;
  return { id, prompt: prompts[prompt], turns, candidates, ranking, target, terms, metrics, error, info, seed, name };
}

/** An action in parts: what was thought, said, called and answered, in order. Nothing of the text is lost. */
function parts(action) {
  const found = [];
  const say = (kind, text) => text.trim() && found.push({ kind, text: text.trim() });
  let rest = action;
  const opened = rest.indexOf("<think>");
  const closed = rest.indexOf("</think>");
  if (closed >= 0 && (opened < 0 || opened > closed)) {
    say("thought", rest.slice(0, closed));
    rest = rest.slice(closed + "</think>".length);
  }
  const tags = /<(think|tool_call|answer)>([\s\S]*?)(?:<\/\1>|$)/g;
  let at = 0;
  for (const match of rest.matchAll(tags)) {
    say("prose", rest.slice(at, match.index));
    say({ think: "thought", tool_call: "call", answer: "answer" }[match[1]], match[2]);
    at = match.index + match[0].length;
  }
  say("prose", rest.slice(at));
  return found;
}

/** What came back for an action: one text a call, then remarks. */
function observations(text) {
  const found = [];
  let at = 0;
  const remarks = [];
  for (const match of text.matchAll(/<observation>([\s\S]*?)(?:<\/observation>|$)/g)) {
    remarks.push(text.slice(at, match.index));
    found.push(match[1]);
    at = match.index + match[0].length;
  }
  remarks.push(text.slice(at));
  return { found, remark: remarks.map((part) => part.trim()).filter(Boolean).join("\n") };
}
