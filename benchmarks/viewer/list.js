// The list of episodes: only the rows in sight exist, whatever the number of episodes.

const HEIGHT = 58;
const scroller = $(".scroller");
const spacer = $(".spacer");
const pool = [];
let listed = [];
let chosen = -1; // place in `listed`

const SORTS = {
  "task": (a, b) => rows.task[a] - rows.task[b] || a - b,
  "reward, low first": (a, b) => (rows.reward[a] ?? -Infinity) - (rows.reward[b] ?? -Infinity) || a - b,
  "reward, high first": (a, b) => (rows.reward[b] ?? -Infinity) - (rows.reward[a] ?? -Infinity) || a - b,
  "calls, most first": (a, b) => rows.calls[b] - rows.calls[a] || a - b,
  "time, longest first": (a, b) => rows.seconds[b] - rows.seconds[a] || a - b,
  "agent": (a, b) => rows.player[a] - rows.player[b] || a - b,
};
const sorter = $(".sort select");
for (const name of Object.keys(SORTS)) sorter.append(el("option", {}, name));

/** "bad", "low", "fair" or "good": how a reward stands between the worst, nothing, and the best. */
function grade(reward) {
  if (reward === null || reward < 0) return "bad";
  const share = reward / HIGH;
  return share < 0.02 ? "low" : share < 0.6 ? "fair" : "good";
}

function blank() {
  const fields = { pill: el("span", { class: "pill" }), name: el("span", { class: "who" }), task: el("span", { class: "what" }),
    item: el("span", { class: "item" }), mark: el("span", { class: "mark" }), calls: el("span", { class: "calls" }) };
  const node = el("div", { class: "row", role: "option" }, fields.pill,
    el("span", { class: "words" }, el("span", { class: "line" }, fields.name, fields.task), fields.item),
    el("span", { class: "end" }, fields.mark, fields.calls));
  node.addEventListener("click", () => { choose(node.place); openChosen(); });
  spacer.append(node);
  return { node, fields, id: -1 };
}

function fill(row, place) {
  const id = listed[place];
  row.node.place = place;
  row.node.style.transform = `translateY(${place * HEIGHT}px)`;
  row.node.hidden = false;
  row.node.setAttribute("aria-selected", String(place === chosen));
  row.node.id = `row-${place}`;
  if (row.id === id) return;
  row.id = id;
  const { pill, name, task, item, mark, calls } = row.fields;
  const reward = rows.reward[id];
  pill.textContent = reward === null ? "–" : reward.toFixed(2).replace("-", "−");
  pill.className = `pill ${grade(reward)}`;
  name.textContent = playerOf(id).label;
  task.textContent = [`task ${taskOf(id).index}`, playerOf(id).where].filter(Boolean).join(" · ");
  item.textContent = taskOf(id).positive;
  mark.textContent = failed(id) ? stopOf(id).replaceAll("_", " ") : rows.rank[id] ? `★ ${rows.rank[id]}` : "missed";
  mark.className = failed(id) ? "mark failed" : rows.rank[id] ? "mark hit" : "mark";
  calls.textContent = rows.calls[id] ? many(rows.calls[id], "call") : "";
}

function drawRows() {
  const first = Math.max(0, Math.floor(scroller.scrollTop / HEIGHT) - 4);
  const last = Math.min(listed.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / HEIGHT) + 4);
  while (pool.length < last - first) pool.push(blank());
  // A row keeps its element while it is in sight: place modulo the pool's size.
  const used = new Set();
  for (let place = first; place < last; place += 1) {
    const row = pool[place % pool.length];
    used.add(row);
    fill(row, place);
  }
  for (const row of pool) if (!used.has(row)) row.node.hidden = true;
}

let waiting = false;
scroller.addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawRows(); });
}, { passive: true });
new ResizeObserver(drawRows).observe(scroller);

/** Filter, count, sort and draw anew; the chosen episode stays chosen where it is still listed. */
function refresh() {
  const held = listed[chosen];
  const { passing, bins } = filtered();
  listed = passing.sort(SORTS[sorter.value]);
  chosen = held === undefined ? -1 : listed.indexOf(held);
  spacer.style.height = `${Math.max(listed.length * HEIGHT, 1)}px`;
  for (const row of pool) row.id = -1;
  drawFilters(bins);
  const mean = listed.length ? listed.reduce((sum, id) => sum + (rows.reward[id] ?? 0), 0) / listed.length : null;
  $(".count").textContent = listed.length === total ? many(total, "episode")
    : `${number.format(listed.length)} of ${many(total, "episode")}`;
  if (mean !== null) $(".count").append(el("span", { class: "soft" }, ` · mean ${figure(mean)}`));
  scroller.classList.toggle("empty", !listed.length);
  if (scroller.scrollTop > listed.length * HEIGHT) scroller.scrollTop = 0;
  drawRows();
}

/** Mark a place of the list and bring it into sight. */
function choose(place) {
  if (!listed.length) return;
  chosen = Math.max(0, Math.min(listed.length - 1, place));
  const top = chosen * HEIGHT;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top + HEIGHT > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + HEIGHT - scroller.clientHeight;
  scroller.setAttribute("aria-activedescendant", `row-${chosen}`);
  drawRows();
}

sorter.addEventListener("change", refresh);
