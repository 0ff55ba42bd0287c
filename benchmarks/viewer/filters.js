// Filters: facets with counts, a range of rewards, and search. Counts of a facet hold under all other filters.

const OUTCOMES = ["positive first", "positive in the list", "positive missed"];
const BUCKETS = [[1, 4], [5, 9], [10, 19], [20, Infinity]];

function outcome(id) {
  if (failed(id)) return stopOf(id).replaceAll("_", " ");
  return OUTCOMES[rows.rank[id] === 1 ? 0 : rows.rank[id] > 1 ? 1 : 2];
}

function bucket(known) {
  if (known === null) return null;
  const [low, high] = BUCKETS.find(([, top]) => known <= top);
  return high === Infinity ? `${low} or more` : `${low}–${high}`;
}

const facets = [
  { id: "agent", title: "Agent", of: (id) => [playerOf(id).agent] },
  { id: "step", title: "After step", of: (id) => [playerOf(id).step], numeric: true },
  { id: "outcome", title: "Outcome", of: (id) => [outcome(id)], always: true, first: OUTCOMES },
  { id: "tool", title: "Tool", of: (id) => (toolsOf(id).length ? toolsOf(id).map((t) => given.tools[t]) : ["no tool"]) },
  { id: "kind", title: "User moved by", of: (id) => [taskOf(id).kind] },
  { id: "known", title: "User's history", of: (id) => [bucket(taskOf(id).known)], numeric: true },
  { id: "track", title: "Track", of: (id) => [playerOf(id).track] },
  { id: "dataset", title: "Dataset", of: (id) => [playerOf(id).dataset] },
  { id: "seed", title: "Seed", of: (id) => [playerOf(id).seed], numeric: true },
];

for (const facet of facets) {
  facet.values = [];
  facet.index = new Map();
  facet.chosen = new Set();
  facet.codes = Array.from({ length: total }, (_, id) =>
    facet.of(id).filter((value) => value !== null && value !== undefined).map((value) => {
      if (!facet.index.has(value)) {
        facet.index.set(value, facet.values.length);
        facet.values.push(value);
      }
      return facet.index.get(value);
    }));
  facet.shown = facet.values.length > 1 || (facet.always && facet.values.length > 0);
}
const shownFacets = facets.filter((facet) => facet.shown);

const rewards = rows.reward.filter((value) => value !== null);
const LOW = rewards.reduce((a, b) => Math.min(a, b), 0);
const HIGH = rewards.reduce((a, b) => Math.max(a, b), 1e-9);
const range = { low: LOW, high: HIGH };
const search = { words: [], texts: null, phrase: "" };

const taskHay = given.tasks.map((task) => `task ${task.index} ${task.user} ${task.positive} ${task.kind ?? ""}`.toLowerCase());
const playerHay = given.players.map((player) => player.label.toLowerCase());
const toolHay = given.toolsets.map((tools) => tools.map((tool) => given.tools[tool]).join(" "));

function matches(id) {
  if (search.texts) return search.texts.has(id);
  return search.words.every((word) =>
    taskHay[rows.task[id]].includes(word) || playerHay[rows.player[id]].includes(word)
      || toolHay[rows.toolset[id]].includes(word) || outcome(id).includes(word));
}

/** Ids of the episodes that pass, and the counts of each facet. */
function filtered() {
  const passing = [];
  for (const facet of shownFacets) facet.counts = new Int32Array(facet.values.length);
  const bins = new Int32Array(24);
  const limited = range.low > LOW || range.high < HIGH;
  for (let id = 0; id < total; id += 1) {
    if ((search.words.length || search.texts) && !matches(id)) continue;
    let missing = 0;
    let only = null;
    for (const facet of shownFacets) {
      if (facet.chosen.size && !facet.codes[id].some((code) => facet.chosen.has(code))) {
        missing += 1;
        only = facet;
        if (missing > 1) break;
      }
    }
    if (missing > 1) continue;
    const reward = rows.reward[id];
    const inside = !limited || (reward !== null && reward >= range.low - 1e-9 && reward <= range.high + 1e-9);
    if (missing === 0 && reward !== null) bins[Math.min(23, Math.floor(((reward - LOW) / (HIGH - LOW)) * 24))] += 1;
    if (!inside) continue;
    if (missing === 0) {
      passing.push(id);
      for (const facet of shownFacets) for (const code of facet.codes[id]) facet.counts[code] += 1;
    } else {
      for (const code of only.codes[id]) only.counts[code] += 1;
    }
  }
  return { passing, bins };
}

function order(facet) {
  const codes = facet.values.map((_, code) => code);
  if (facet.numeric) {
    const key = (code) => parseFloat(facet.values[code]);
    return codes.sort((a, b) => key(a) - key(b));
  }
  const place = (code) => {
    const at = (facet.first ?? []).indexOf(facet.values[code]);
    return at < 0 ? Infinity : at;
  };
  return codes.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b)));
}

const MOST = 8;

function drawFacet(facet) {
  const box = facet.box ?? (facet.box = el("fieldset", { "data-facet": facet.id }));
  const codes = order(facet).filter((code) => facet.counts[code] || facet.chosen.has(code) || facet.values.length <= MOST);
  const cut = !facet.open && codes.length > MOST + 1;
  box.replaceChildren(
    el("legend", {}, facet.title),
    ...(cut ? codes.slice(0, MOST) : codes).map((code) => {
      const box = el("input", { type: "checkbox", checked: facet.chosen.has(code), on: { change: () => toggle(facet, code) } });
      return el("label", { class: facet.counts[code] ? "value" : "value none" }, box,
        el("span", { class: "name" }, String(facet.values[code])),
        el("span", { class: "number" }, number.format(facet.counts[code])));
    }),
    cut ? el("button", { class: "more", on: { click: () => { facet.open = true; drawFacet(facet); } } },
      `${codes.length - MOST} more`) : "",
  );
  return box;
}

function toggle(facet, code) {
  if (!facet.chosen.delete(code)) facet.chosen.add(code);
  refresh();
}

let slider = null;

/** The histogram of rewards with its two handles. */
function drawRewards(bins) {
  if (!slider) {
    const step = (HIGH - LOW) / 200 || 0.01;
    const handle = (name, start) => el("input", { type: "range", min: LOW, max: HIGH, step: "any", value: start,
      "aria-label": `${name} reward`, class: name,
      on: { input: (event) => {
        const value = Number(event.target.value);
        if (name === "least") range.low = Math.min(value <= LOW + step ? LOW : value, range.high);
        else range.high = Math.max(value >= HIGH - step ? HIGH : value, range.low);
        refresh();
      } } });
    slider = { bars: el("svg", { viewBox: "0 0 240 44", preserveAspectRatio: "none", "aria-hidden": "true" }),
      low: handle("least", LOW), high: handle("most", HIGH), text: el("output") };
    slider.box = el("fieldset", { "data-facet": "reward" }, el("legend", {}, "Reward"), slider.bars,
      el("div", { class: "handles" }, slider.low, slider.high), slider.text);
  }
  const top = Math.max(1, ...bins);
  slider.bars.replaceChildren(...Array.from(bins, (count, place) => {
    const left = LOW + ((HIGH - LOW) * place) / 24;
    const inside = left + (HIGH - LOW) / 24 > range.low && left < range.high + 1e-12;
    const height = count ? Math.max(1.5, (42 * count) / top) : 0;
    return el("rect", { x: place * 10 + 1, y: 44 - height, width: 8, height, class: inside ? "in" : "out" });
  }));
  slider.low.value = range.low;
  slider.high.value = range.high;
  slider.text.textContent = `${figure(range.low, 2)} to ${figure(range.high, 2)}`;
  return slider.box;
}

function drawFilters(bins) {
  const box = $(".filters");
  const focused = root.activeElement;
  const held = focused?.closest?.("fieldset")?.dataset.facet;
  const place = held && focused.type === "checkbox"
    ? [...focused.closest("fieldset").querySelectorAll("input")].indexOf(focused) : -1;
  const drawn = [drawRewards(bins), ...shownFacets.map(drawFacet)];
  if (!box.childElementCount) box.append(...drawn);
  if (place >= 0) box.querySelector(`fieldset[data-facet="${held}"]`)?.querySelectorAll("input")[place]?.focus();
  const chips = [];
  const chip = (text, drop) => chips.push(el("button", { class: "chip", title: "Take this filter off", on: { click: drop } }, text,
    el("span", { "aria-hidden": "true" }, " ×")));
  for (const facet of shownFacets)
    for (const code of facet.chosen) chip(`${facet.title}: ${facet.values[code]}`, () => toggle(facet, code));
  if (range.low > LOW || range.high < HIGH)
    chip(`Reward ${figure(range.low, 2)} to ${figure(range.high, 2)}`, () => { range.low = LOW; range.high = HIGH; refresh(); });
  if (search.texts) chip(`Text: ${search.phrase}`, () => { search.texts = null; refresh(); });
  if (chips.length > 1) chips.push(el("button", { class: "chip clear", on: { click: clearFilters } }, "Clear all"));
  $(".chips").replaceChildren(...chips);
  $(".filter-button").textContent = chips.length ? `Filters · ${Math.max(1, chips.length - (chips.length > 1))}` : "Filters";
}

function clearFilters() {
  for (const facet of shownFacets) facet.chosen.clear();
  Object.assign(range, { low: LOW, high: HIGH });
  Object.assign(search, { words: [], texts: null });
  $(".search").value = "";
  refresh();
}

/** Look through the texts of all episodes; shows how far it is. */
async function searchTexts(phrase) {
  const wanted = phrase.trim().toLowerCase();
  if (!wanted) return;
  const found = new Set();
  for (let chunk = 0; chunk < given.starts.length; chunk += 1) {
    const { prompts, episodes } = await chunks.pass(chunk);
    const hits = prompts.map((prompt) => prompt.toLowerCase().includes(wanted));
    episodes.forEach(([prompt, turns], place) => {
      const said = turns.some(([action, , observation]) =>
        action.toLowerCase().includes(wanted) || observation.toLowerCase().includes(wanted));
      if (hits[prompt] || said) found.add(given.starts[chunk] + place);
    });
    if (chunk % 8 === 0) $(".count").textContent = `searching the texts: ${Math.round((100 * chunk) / given.starts.length)} %`;
  }
  Object.assign(search, { texts: found, phrase: phrase.trim(), words: [] });
  $(".search").value = "";
  refresh();
}
