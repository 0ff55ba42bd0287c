// Curves of a training run: small charts that share a cursor. Rewards of training and of evaluation stand in one chart.

const WIDE = 420;
const TALL = 190;
const EDGE = { left: 46, right: 12, top: 10, bottom: 24 };

const CHARTS = [
  { title: "Reward", series: [["reward", "training"], ["valid/reward", "valid tasks"]] },
  { title: "NDCG@10 on valid tasks", series: [["valid/ndcg@10", "mean, 95 % interval", "valid/ndcg@10/low", "valid/ndcg@10/high"]] },
  { title: "Entropy a token, nats", series: [["entropy", "policy"], ["sampled_entropy", "sampled tokens"]] },
  { title: "Tool calls an episode", series: [["calls", "training"], ["valid/calls", "valid tasks"]] },
  { title: "Invalid episodes, share", series: [["invalid", "training"]] },
  { title: "Tokens an episode", series: [["tokens", "training"], ["valid/tokens", "valid tasks"]] },
  { title: "Loss", series: [["loss", "training"]] },
  { title: "Gradient norm", series: [["gradient_norm", "before clipping"]] },
];

const cursors = [];

/** Round steps between `low` and `high`, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

/** A running mean that noisy curves are read by; null where there is nothing to smooth. */
function smooth(points) {
  if (points.length < 40) return null;
  const weight = 2 / (points.length / 12 + 1);
  let mean = points[0][1];
  return points.map(([step, value]) => [step, (mean += weight * (value - mean))]);
}

function drawChart({ title, series }) {
  const lines = series.filter(([name]) => given.curves[name]?.length)
    .map(([name, label, low, high]) => ({ label, points: given.curves[name], low: given.curves[low], high: given.curves[high] }));
  if (!lines.length) return null;
  const steps = lines.flatMap(({ points }) => points.map(([step]) => step));
  const heights = lines.flatMap(({ points, low, high }) => [...points, ...(low ?? []), ...(high ?? [])].map(([, value]) => value));
  let [bottom, top] = [Math.min(...heights), Math.max(...heights)];
  if (bottom === top) [bottom, top] = [bottom - 0.5, top + 0.5];
  const [first, last] = [Math.min(...steps), Math.max(...steps, Math.min(...steps) + 1)];
  const x = (step) => EDGE.left + ((WIDE - EDGE.left - EDGE.right) * (step - first)) / (last - first);
  const y = (value) => TALL - EDGE.bottom - ((TALL - EDGE.top - EDGE.bottom) * (value - bottom)) / (top - bottom);
  const path = (points) => points.map(([step, value], place) => `${place ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const svg = el("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": `${title} over steps` });
  const marks = ticks(bottom, top, 4);
  const digits = Math.max(...marks.map((value) => (String(value).split(".")[1] ?? "").length));
  for (const value of marks) {
    svg.append(el("line", { class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: y(value), y2: y(value) }),
      el("text", { x: EDGE.left - 6, y: y(value) + 3.5, "text-anchor": "end" },
        digits > 5 ? value.toExponential(0) : value.toFixed(digits).replace("-", "−")));
  }
  for (const step of ticks(first, last, 5)) if (Number.isInteger(step))
    svg.append(el("text", { x: x(step), y: TALL - 6, "text-anchor": "middle" }, number.format(step)));
  lines.forEach(({ points, low, high }, place) => {
    if (low && high) svg.append(el("path", { class: `band s${place}`, d: `${path(high)}L${path([...low].reverse()).slice(1)}Z` }));
    const soft = smooth(points);
    if (soft) svg.append(el("path", { class: `curve faint s${place}`, d: path(points) }));
    svg.append(el("path", { class: `curve s${place}`, d: path(soft ?? points) }));
    if (points.length < 30) for (const [step, value] of points) svg.append(el("circle", { class: `s${place}`, cx: x(step), cy: y(value), r: 2.6 }));
  });
  const rule = el("line", { class: "cursor", y1: EDGE.top, y2: TALL - EDGE.bottom, visibility: "hidden" });
  svg.append(rule);
  const outputs = lines.map(({ label, points }, place) => el("span", {}, el("i", { class: `key s${place}` }), `${label} `,
    el("b", {}, figure(points[points.length - 1][1]))));
  const nearest = (points, step) => points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
  cursors.push((step) => {
    rule.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const name of ["x1", "x2"]) rule.setAttribute(name, x(Math.max(first, Math.min(last, step))));
    lines.forEach(({ points }, place) => {
      const point = step === null ? points[points.length - 1] : nearest(points, step);
      outputs[place].lastChild.textContent = figure(point[1]);
    });
  });
  const move = (event) => {
    const box = svg.getBoundingClientRect();
    const step = first + (((event.clientX - box.left) / box.width) * WIDE - EDGE.left) / (WIDE - EDGE.left - EDGE.right) * (last - first);
    point(Math.round(Math.max(first, Math.min(last, step))));
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerleave", () => point(null));
  return el("figure", {}, el("figcaption", {}, el("span", {}, title), el("span", { class: "keys" }, ...outputs)), svg);
}

function point(step) {
  for (const cursor of cursors) cursor(step);
  const text = $(".training .at");
  if (text) text.textContent = step === null ? "" : `step ${number.format(step)}`;
}

function drawTraining() {
  const box = $(".training");
  if (box.childElementCount) return;
  const drawn = CHARTS.map(drawChart).filter(Boolean);
  const used = new Set(CHARTS.flatMap(({ series }) => series.flatMap(([name, , low, high]) => [name, low, high])));
  const rest = Object.keys(given.curves).filter((name) => !used.has(name)).sort();
  const more = el("details", { class: "rest" }, el("summary", {}, `${many(rest.length, "more figure")}`));
  more.addEventListener("toggle", () => {
    if (more.open && more.childElementCount === 1)
      more.append(el("div", { class: "charts" }, ...rest.map((name) => drawChart({ title: name, series: [[name, ""]] }))));
  });
  box.append(el("div", { class: "training-head" }, el("h2", {}, given.title), el("span", { class: "at soft", role: "status" })),
    el("div", { class: "charts" }, ...drawn), rest.length ? more : "");
}
