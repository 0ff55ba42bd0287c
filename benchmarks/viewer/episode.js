// An episode to read: what was asked, then thought, call and observation turn by turn, then the list that was judged.
// With a second one, both stand side by side, turn beside turn.

const detail = $(".detail");
const shown = { id: null, other: null, raw: false, prompt: false };
let drawing = 0;

/** Text in which pre-formatted lines are kept; long ones scroll by themselves. */
const block = (kind, text) => el("pre", { class: kind, tabindex: text.length > 1500 ? 0 : null }, text);
const labelled = (kind, label, ...content) => el("div", { class: `part ${kind}` }, el("span", { class: "label" }, label), ...content);

function drawCall([name, json], observation) {
  const parameters = JSON.parse(json);
  const entries = Object.entries(parameters);
  const told = observation === undefined ? null : observation;
  const error = told !== null && told.startsWith("Error:");
  return el("div", { class: "call" },
    el("div", { class: "head" }, el("span", { class: "label" }, "call"), el("span", { class: "tool" }, name),
      ...entries.map(([key, value]) => el("span", { class: "argument" }, el("i", {}, `${key} `),
        typeof value === "string" ? value : JSON.stringify(value)))),
    told === null ? "" : el("div", { class: error ? "part observation error" : "part observation" },
      el("span", { class: "label" }, "observation"), block("text", told)));
}

function drawTurn([action, calls, observation, seconds], place) {
  const took = seconds > 0.0005 ? `${figure(seconds, seconds < 1 ? 3 : 1)} s` : "";
  const head = el("div", { class: "turn-head" }, el("span", { class: "turn-number" }, String(place + 1)), el("span", { class: "soft" }, took));
  const box = el("article", { class: "turn" }, head);
  if (shown.raw) {
    box.append(labelled("raw", "action", block("text", action)));
    if (observation) box.append(labelled("raw", "observation", block("text", observation)));
    return box;
  }
  const { found, remark } = observations(observation);
  for (const { kind, text } of parts(action)) {
    if (kind === "thought" || kind === "prose") box.append(labelled(kind, kind === "prose" ? "says" : "thought", block("text", text)));
    else if (kind === "answer") box.append(labelled("answer", "answer", block("text", text)));
    else if (!calls.length) box.append(labelled("prose", "call, not made", block("text", text)));
  }
  calls.forEach((call, number) => box.append(drawCall(call, found[number])));
  const loose = found.slice(calls.length).join("\n");
  const rest = [loose, remark].filter(Boolean).join("\n");
  if (rest) box.append(labelled("remark", "environment", block("text", rest)));
  return box;
}

function drawRanking(whole) {
  const { ranking, target, candidates, name } = whole;
  const numbers = new Map(candidates.map((item, place) => [item, place + 1]));
  const line = (item, place) => el("li", { class: item === target ? "positive" : null },
    el("span", { class: "place" }, place === null ? "–" : String(place + 1)),
    el("span", { class: "item" }, name(item)),
    item === target ? el("span", { class: "star", title: "The item that was taken" }, "★", el("span", {}, " the positive")) : "",
    numbers.has(item) ? el("span", { class: "soft candidate", title: "Number among the candidates" }, `no. ${numbers.get(item)}`) : "");
  const lines = ranking.map(line);
  if (!ranking.includes(target)) lines.push(el("li", { class: "gap" }, ranking.length ? "not in the list" : "no list was given"), line(target, null));
  return el("section", { class: "ranking" }, el("h3", {}, "Ranking"), el("ol", {}, ...lines));
}

function drawFacts(id, whole) {
  const rank = rows.rank[id];
  const facts = [
    ["reward", figure(rows.reward[id]), grade(rows.reward[id])],
    ["positive", failed(id) ? "no list" : rank ? `place ${rank}` : "missed"],
    ["calls", figure(rows.calls[id])],
    ["turns", figure(whole.turns.length)],
    ["time", `${figure(rows.seconds[id], rows.seconds[id] < 10 ? 2 : 0)} s`],
  ];
  if (rows.tokens[id] !== null) facts.push(["tokens", number.format(rows.tokens[id])]);
  if (failed(id)) facts.unshift(["ended by", stopOf(id).replaceAll("_", " "), "bad"]);
  const list = el("dl", { class: "facts" }, ...facts.flatMap(([title, value, kind]) =>
    [el("div", {}, el("dt", {}, title), el("dd", { class: kind ?? null }, value))]));
  const terms = whole.terms.filter(([, value]) => value !== 0);
  const metrics = whole.metrics.map(([title, value]) => `${title} ${figure(value)}`);
  const note = [terms.length ? `reward = ${terms.map(([title, value]) => `${title} ${value > 0 ? "+" : ""}${figure(value)}`).join(", ")}` : "",
    metrics.join(" · ")].filter(Boolean);
  return el("div", {}, list, ...note.map((text) => el("p", { class: "soft small" }, text)),
    whole.error ? el("p", { class: "failure" }, whole.error) : "");
}

function drawPrompt(whole) {
  const box = el("details", { class: "prompt", open: shown.prompt }, el("summary", {}, "What the agent was told"), block("text", whole.prompt));
  box.addEventListener("toggle", () => { shown.prompt = box.open; });
  return box;
}

function drawInfo(whole) {
  const entries = JSON.parse(whole.info);
  if (!Object.keys(entries).length) return "";
  return el("details", { class: "prompt" }, el("summary", {}, "What the agent adds"), block("text", JSON.stringify(entries, null, 2)));
}

function column(id, whole) {
  return el("div", { class: "column" }, el("h3", { class: "player" }, playerOf(id).label,
    el("span", { class: "soft" }, playerOf(id).note ? ` ${playerOf(id).note}` : "")),
    drawFacts(id, whole), ...whole.turns.map(drawTurn), drawRanking(whole), drawInfo(whole));
}

function heading(id) {
  const task = taskOf(id);
  const kind = [task.known === null ? "" : `${many(task.known, "earlier interaction")}`, task.kind ? `moved by ${task.kind}` : ""];
  const others = rivals(id);
  const picker = el("select", { class: "compare", "aria-label": "Compare with", on: { change: (event) => compare(event.target.value === "" ? null : Number(event.target.value)) } },
    el("option", { value: "" }, others.length ? "Compare with …" : "Nobody else played this task"),
    ...others.map((other) => el("option", { value: other, selected: other === shown.other },
      `${playerOf(other).label} · ${failed(other) ? stopOf(other).replaceAll("_", " ") : figure(rows.reward[other], 2)}`)));
  picker.disabled = !others.length;
  return el("header", { class: "heading" },
    el("button", { class: "back icon", on: { click: back } }, "← List"),
    el("div", { class: "titles" }, el("h2", {}, `Task ${task.index}`),
      el("p", { class: "soft" }, [`user ${task.user}`, ...kind.filter(Boolean), playerOf(id).where].filter(Boolean).join(" · "))),
    el("div", { class: "actions" }, picker,
      shown.other === null ? "" : el("button", { class: "icon", title: "End the comparison (Esc)", on: { click: () => compare(null) } }, "×")),
  );
}

/** Show what is chosen; of two calls that overlap, the later one wins. */
async function drawEpisode() {
  const mine = (drawing += 1);
  const { id, other } = shown;
  if (id === null) {
    detail.replaceChildren(el("div", { class: "welcome" }, el("p", {}, total ? "Choose an episode to read it." : "There are no episodes here."),
      total ? el("p", { class: "soft" }, el("kbd", {}, "j"), " ", el("kbd", {}, "k"), " move, ", el("kbd", {}, "c"), " compares, ", el("kbd", {}, "?"), " shows all keys") : ""));
    return;
  }
  try {
    const wholes = await Promise.all([id, ...(other === null ? [] : [other])].map(episode));
    if (mine !== drawing) return;
    const [one, two] = wholes;
    const place = detail.scrollTop;
    const same = detail.shownId === id;
    const prompts = two && two.prompt !== one.prompt ? [drawPrompt(one), drawPrompt(two)] : [drawPrompt(one)];
    detail.replaceChildren(heading(id),
      el("div", { class: "prompts" }, ...prompts),
      el("div", { class: two ? "columns two" : "columns" }, column(id, one), two ? column(other, two) : ""));
    detail.shownId = id;
    detail.scrollTop = same ? place : 0;
    detail.dispatchEvent(new CustomEvent("drawn"));
  } catch (error) {
    if (mine === drawing) detail.replaceChildren(heading(id), el("p", { class: "failure" }, `This episode cannot be shown: ${error.message}`));
  }
}

function open(id) {
  if (shown.id !== id) {
    // While one walks through the list, the comparison stays with the same agent; at its own episodes, with the former.
    const held = shown.other === null ? [] : [rows.player[shown.other], rows.player[shown.id]];
    const others = rivals(id);
    shown.id = id;
    shown.other = held.map((player) => others.find((other) => rows.player[other] === player)).find((other) => other !== undefined) ?? null;
  }
  keep();
  return drawEpisode();
}

function compare(other) {
  shown.other = other;
  keep();
  return drawEpisode();
}

/** Compare with the next of those who played the task. */
function compareNext(step) {
  if (shown.id === null) return;
  const others = rivals(shown.id);
  if (!others.length) return;
  const at = others.indexOf(shown.other);
  compare(others[at < 0 ? (step > 0 ? 0 : others.length - 1) : (at + step + others.length) % others.length]);
}
