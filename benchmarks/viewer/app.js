// The page as a whole: tabs, keys, the address that leads back to an episode.

const app = $(".app");
const narrow = matchMedia("(max-width: 860px)");
const hasTraining = Object.keys(given.curves).length > 0;
const help = $(".help");
const field = $(".search");

function show(tab) {
  if (tab === "training" && !hasTraining) return;
  app.dataset.tab = tab;
  $(".training").hidden = tab !== "training";
  $(".panes").hidden = tab === "training";
  for (const button of root.querySelectorAll(".tabs button")) button.setAttribute("aria-selected", String(button.dataset.tab === tab));
  if (tab === "training") drawTraining();
  else drawRows();
}

/** Put what is shown into the address, so that a link or a reload leads back to it. */
function keep() {
  if (!alone) return;
  const state = shown.id === null ? " " : `#episode=${shown.id}${shown.other === null ? "" : `&with=${shown.other}`}`;
  history.replaceState(null, "", state === " " ? location.pathname + location.search : state);
}

function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  const id = Number(state.get("episode") ?? NaN);
  if (!alone || !Number.isInteger(id) || id < 0 || id >= total) return false;
  const other = Number(state.get("with") ?? NaN);
  shown.id = id;
  shown.other = Number.isInteger(other) && rivals(id).includes(other) ? other : null;
  choose(Math.max(0, listed.indexOf(id)));
  app.dataset.pane = "detail";
  drawEpisode();
  return true;
}

function openChosen() {
  if (chosen < 0) return;
  app.dataset.pane = "detail";
  open(listed[chosen]);
}

function back() {
  app.dataset.pane = "list";
  drawRows();
  scroller.focus({ preventScroll: true });
}

const move = (step) => jump(chosen < 0 ? 0 : chosen + step);

function jump(place) {
  if (!listed.length) return;
  choose(place);
  if (!narrow.matches || app.dataset.pane === "detail") open(listed[chosen]);
}

function toggleFilters(wanted) {
  const open = wanted ?? !app.hasAttribute("data-filters");
  app.toggleAttribute("data-filters", open);
  $(".filter-button").setAttribute("aria-expanded", String(open));
  if (open) $(".filters input")?.focus({ preventScroll: true });
}

function escape() {
  if (app.hasAttribute("data-filters")) toggleFilters(false);
  else if (shown.other !== null) compare(null);
  else if (app.dataset.pane === "detail" && narrow.matches) back();
  else if (shown.id !== null) { shown.id = null; keep(); drawEpisode(); back(); }
  else if (search.words.length || search.texts) clearFilters();
}

const KEYS = {
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
  g: () => jump(0), Home: () => jump(0), G: () => jump(listed.length - 1), End: () => jump(listed.length - 1),
  PageDown: () => jump(Math.max(chosen, 0) + 10), PageUp: () => jump(chosen - 10),
  Enter: () => openChosen(), o: () => openChosen(),
  c: () => compareNext(1), C: () => compareNext(-1),
  "/": () => { show("episodes"); field.focus(); field.select(); },
  f: () => toggleFilters(),
  r: () => { shown.raw = !shown.raw; drawEpisode(); },
  l: () => $(".ranking")?.scrollIntoView({ block: "center" }),
  p: () => { shown.prompt = !shown.prompt; drawEpisode(); },
  t: () => show(app.dataset.tab === "training" ? "episodes" : "training"),
  "?": () => help.showModal(),
  Escape: escape,
};

function pressed(event) {
  const target = event.composedPath()[0];
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (target === field) {
    if (event.key === "Enter" && event.shiftKey) searchTexts(field.value);
    else if (event.key === "Enter" || event.key === "ArrowDown") { scroller.focus(); if (listed.length) jump(0); }
    else if (event.key === "Escape") { if (field.value) { field.value = ""; typed(); } else field.blur(); }
    else return;
    event.preventDefault();
    return;
  }
  const typing = target.matches?.("input[type=range], select, textarea");
  const pressing = target.matches?.("button, summary, input[type=checkbox]") && event.key === "Enter";
  if (typing && event.key !== "Escape" || pressing) return;
  // A text that scrolls by itself, and the episode itself, keep the keys that scroll.
  const reading = target.closest?.(".detail, .filters, .training");
  if (reading && /^(Arrow|Page|Home|End)/.test(event.key)) return;
  const action = KEYS[event.key];
  if (!action || (app.dataset.tab === "training" && !["t", "?", "Escape", "/"].includes(event.key))) return;
  event.preventDefault();
  action();
}

function typed() {
  search.words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  search.texts = null;
  refresh();
}

let typing = 0;
field.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(typed, 80); });
(alone ? document : host).addEventListener("keydown", pressed);
for (const button of root.querySelectorAll(".tabs button")) button.addEventListener("click", () => show(button.dataset.tab));
$(".filter-button").addEventListener("click", () => toggleFilters());
$(".help-button").addEventListener("click", () => help.showModal());
help.addEventListener("click", (event) => { if (event.target === help) help.close(); });

$(".title").textContent = given.title;
$(".tabs").hidden = !hasTraining || !total;
$(".notes").append(...given.notes.map((note) => el("p", {}, note)));
refresh();
if (!restore()) drawEpisode();
if (hasTraining && !total) show("training");
host.dataset.ready = "";
