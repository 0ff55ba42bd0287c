"""The viewer as people have it: in a real browser, from a file, with what the worst of datasets may hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import page as report_page
from benchmarks.viewer.collection import collect
from benchmarks.viewer.document import document
from benchmarks.viewer.inset import selection
from benchmarks.viewer.server import PageServer
from tests.benchmarks.chromium import Browser, Page
from tests.benchmarks.runs import HOSTILE, episode, results, training

pytestmark = pytest.mark.browser

ROWS = "[...root.querySelectorAll('.row:not([hidden])')]"
COUNT = "root.querySelector('.count').textContent"
DETAIL = "root.querySelector('.detail')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Browser]:
    with Browser.start(folder) as browser:
        yield browser


def written(folder: Path, run: Path) -> str:
    """The address of a run's page, written to a file."""
    path = folder / f"{run.name}.html"
    path.write_text(document(collect(run)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def compared(folder: Path) -> str:
    return written(folder, results(folder / "comparison", 60))


def facet(page: Page, name: str, value: str) -> None:
    page.run(
        f"[...root.querySelectorAll('fieldset[data-facet={name}] .value')]"
        f".find((label) => label.querySelector('.name').textContent === {value!r}).querySelector('input').click()"
    )


def shown(page: Page) -> int:
    return int(page.run(COUNT).split()[0].replace(",", ""))


def read(page: Page) -> str:
    """The text of the episode, when it is drawn."""
    page.wait(f"{DETAIL}.querySelector('.ranking') !== null")
    text: str = page.run(f"{DETAIL}.innerText")
    return text


def test_hostile_text_is_shown_and_does_nothing(browser: Browser, folder: Path) -> None:
    page = browser.open(written(folder, results(folder / "hostile", 12, hostile=True)))
    assert page.run(f"{ROWS}.length") > 5
    for _ in range(6):
        page.press("j")
        text = read(page)
        assert "<img src=x onerror" in text
    page.press("c", "r", "p", "r")
    page.wait("root.querySelectorAll('.column').length === 2")
    page.press("/")
    page.type("<img src=x")
    page.wait(f"{COUNT}.startsWith('36 ')")
    page.press("Escape", "?")
    assert page.run("window.ran === undefined")
    assert page.run("root.querySelectorAll('img, .detail script, .detail a').length") == 0
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith("file:///")] == []
    assert len(page.requests()) == 1
    assert HOSTILE[:30] in page.run("root.querySelector('.row .who').textContent")


def test_the_policy_refuses_what_is_not_the_pages_own(browser: Browser, compared: str) -> None:
    page = browser.open(compared)
    page.run(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        " document.body.append(script); const image = document.createElement('img');"
        " image.src = 'https://example.invalid/x.png'; document.body.append(image);"
        " const box = document.createElement('div'); box.innerHTML = '<p style=\"color: red\" onclick=\"1\">x</p>';"
        " document.body.append(box) })()"
    )
    page.wait("true")
    assert page.run("window.ran === undefined")
    complaints = " ".join(page.complaints())
    assert "script-src" in complaints
    assert "img-src" in complaints or "default-src" in complaints


def test_filters_count_and_combine(browser: Browser, folder: Path, compared: str) -> None:
    page = browser.open(compared)
    played = [(agent, episode(task, agent)) for task in range(60) for agent in range(3)]
    assert shown(page) == len(played)
    facet(page, "agent", "scripted")
    assert shown(page) == 60
    facet(page, "tool", "search_items")
    tools = [{call.name for turn in one.turns for call in turn.calls} for agent, one in played if agent == 1]
    assert shown(page) == sum("search_items" in used for used in tools)
    facet(page, "tool", "search_items")
    facet(page, "outcome", "invalid")
    assert shown(page) == sum(agent == 1 and one.stop == "invalid" for agent, one in played)
    facet(page, "agent", "scripted")
    assert shown(page) == sum(one.stop == "invalid" for _, one in played)
    page.run("[...root.querySelectorAll('.chip')].at(-1).click()")
    assert shown(page) == len(played)
    facet(page, "kind", "style")
    facet(page, "known", "20 or more")
    wanted = [task for task in range(60) if task % 5 == 4 and 1 + task * 7 % 37 >= 20]
    assert shown(page) == 3 * len(wanted)
    page.run("root.querySelector('.chip.clear').click()")
    page.run(
        "(() => { const least = root.querySelector('.handles .least'); least.value = 0.9;"
        " least.dispatchEvent(new Event('input')) })()"
    )
    assert shown(page) == sum(one.reward >= 0.9 for _, one in played)
    assert "Reward" in page.run("root.querySelector('.chips').textContent")
    page.press("/")
    page.type("a00007")
    page.wait(f"{COUNT}.startsWith('{sum(one.reward >= 0.9 and one.task_index == 7 for _, one in played)} ')")
    assert page.complaints() == []


def test_search_in_the_texts(browser: Browser, compared: str) -> None:
    page = browser.open(compared)
    page.press("/")
    page.type("I would rather not say")
    page.wait(f"{COUNT}.startsWith('0 ')")
    page.press("Enter", shift=True)
    page.wait("root.querySelector('.chips').textContent.includes('Text:')")
    assert shown(page) == sum(episode(task, agent).stop == "invalid" for task in range(60) for agent in range(3))


def test_keys_walk_open_and_close(browser: Browser, compared: str) -> None:
    page = browser.open(compared)
    page.press("j")
    assert "Task 0" in read(page)
    selected = "root.querySelector('.row[aria-selected=true]')"
    assert page.run(f"{selected}.innerText.includes('popularity')")
    page.press("j", "j", "j")
    page.wait(f"{DETAIL}.innerText.includes('Task 1')")
    page.press("k")
    page.wait(f"{DETAIL}.innerText.includes('Task 0')")
    page.press("G")
    page.wait(f"{DETAIL}.innerText.includes('Task 59')")
    assert page.run("root.querySelector('.scroller').scrollTop") > 1000
    page.press("g")
    page.wait(f"{DETAIL}.innerText.includes('Task 0')")
    assert page.run("location.hash") == "#episode=0"
    page.press("?")
    assert page.run("root.querySelector('.help').open")
    page.press("Escape")
    page.wait("!root.querySelector('.help').open")
    page.press("Escape")
    page.wait(f"{DETAIL}.innerText.includes('Choose an episode')")
    page.press("/")
    assert page.run("root.activeElement.className") == "search"
    page.type("jjj")
    page.wait(f"{COUNT}.startsWith('0 ')")
    page.press("Escape")
    page.wait(f"{COUNT} && {COUNT}.startsWith('180')")
    assert page.complaints() == []


def test_an_episode_reads_from_thought_to_ranking(browser: Browser, compared: str) -> None:
    number = next(task for task in range(60) if len(episode(task, 2).turns) > 2 and episode(task, 2).rank)
    page = browser.open(f"{compared}#episode={3 * number + 2}")
    text = read(page)
    one = episode(number, 2)
    told = one.turns[0].observation.removeprefix("<observation>").removesuffix("</observation>")
    assert told.splitlines()[0] in text
    assert one.turns[0].calls[0].name in text
    assert "<think>" not in text
    kinds = page.run("[...root.querySelectorAll('.turn')][0].innerText")
    assert kinds.index("thought") < kinds.index("call") < kinds.index("observation")
    assert page.run("root.querySelectorAll('.ranking li').length") == len(one.ranking)
    marked = page.run("[...root.querySelectorAll('.ranking li')].findIndex((line) => line.className === 'positive')")
    assert marked + 1 == one.rank
    page.press("r")
    page.wait(f"{DETAIL}.innerText.includes('<think>')")
    page.press("p")
    page.wait(f"{DETAIL}.innerText.includes('Rank the candidate items')")


def test_two_agents_stand_side_by_side(browser: Browser, compared: str) -> None:
    page = browser.open(compared, 1500, 900)
    page.press("j", "c")
    page.wait("root.querySelectorAll('.column').length === 2")
    names = "[...root.querySelectorAll('.player')].map((name) => name.textContent.split(' ')[0])"
    assert page.run(names) == ["popularity", "scripted"]
    tops = page.run("[...root.querySelectorAll('.column')].map((c) => Math.round(c.getBoundingClientRect().top))")
    assert tops[0] == tops[1]
    page.press("c")
    page.wait(f"{names}[1] === 'llm:tiny'")
    assert page.run("location.hash") == "#episode=0&with=2"
    page.press("j", "j")  # at the agent's own episode, the comparison stays with the former
    page.wait(f"{names}[0] === 'llm:tiny' && {names}[1] === 'scripted'")
    page.press("j")
    page.wait(f"{names}[0] === 'popularity' && {names}[1] === 'scripted'")
    page.press("c", "j", "j", "j")
    page.wait(f"{DETAIL}.innerText.includes('Task 2') && {names}.length === 2")
    page.press("Escape")
    page.wait("root.querySelectorAll('.column').length === 1")
    page.run(
        "(() => { const pick = root.querySelector('.compare'); pick.value = pick.options[1].value;"
        " pick.dispatchEvent(new Event('change')) })()"
    )
    page.wait("root.querySelectorAll('.column').length === 2")
    assert page.complaints() == []


def test_a_training_run_shows_curves_and_its_evaluations(browser: Browser, folder: Path) -> None:
    page = browser.open(written(folder, training(folder / "training")))
    page.press("t")
    page.wait("root.querySelectorAll('.training figure').length >= 6")
    titles = page.run("[...root.querySelectorAll('.training figcaption > span:first-child')].map((t) => t.textContent)")
    assert {"Reward", "Entropy a token, nats", "Tool calls an episode"} <= set(titles)
    paths = page.run("[...root.querySelectorAll('.training path')].map((path) => path.getAttribute('d'))")
    assert all("NaN" not in path for path in paths)
    box = page.run("(({left, top, width, height}) => [left + width / 2, top + height / 2])"
                   "(root.querySelector('.training svg').getBoundingClientRect())")  # fmt: skip
    page.ask("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    page.wait("root.querySelector('.at').textContent.startsWith('step ')")
    page.press("t", "j", "c")
    page.wait("root.querySelectorAll('.column').length === 2")
    assert "step 0" in page.run("root.querySelector('.player').textContent")
    assert page.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_have_contrast(browser: Browser, compared: str, dark: bool) -> None:
    page = browser.open(f"{compared}#episode=4", dark=dark)
    read(page)
    ratios = page.run(CONTRAST)
    assert len(ratios) > 100
    assert min(ratios, key=lambda pair: pair[1])[1] > 4.4, sorted(ratios, key=lambda pair: pair[1])[:8]
    back = page.run("getComputedStyle(root.querySelector('.list')).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 200) == dark


def test_a_phone_shows_one_thing_at_a_time(browser: Browser, compared: str) -> None:
    page = browser.open(compared, 390, 800)
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.run(wide)
    page.run("root.querySelector('.row').click()")
    read(page)
    assert page.run(f"getComputedStyle({DETAIL}).display") == "block"
    assert page.run("getComputedStyle(root.querySelector('.list')).display") == "none"
    assert page.run(wide)
    page.run("root.querySelector('.back').click()")
    assert page.run("getComputedStyle(root.querySelector('.list')).display") != "none"
    page.run("root.querySelector('.filter-button').click()")
    assert page.run("root.querySelector('.filters').getBoundingClientRect().width") > 200


def test_ten_thousand_episodes_scroll_and_filter_without_stutter(browser: Browser, folder: Path) -> None:
    page = browser.open(written(folder, results(folder / "large", 3334)))
    assert shown(page) > 9_990
    assert page.run(f"{ROWS}.length") < 40
    page.ask("Performance.enable", timeDomain="threadTicks")
    waits: list[float] = []
    scrolling = cost(page, lambda: waits.extend(sorted(page.run(SCROLL)))) / FRAMES
    filtering = cost(page, lambda: page.run("root.querySelector('fieldset[data-facet=outcome] input').click()"))
    opening = cost(page, lambda: (page.press("j"), read(page)))
    print(
        f"\n10,002 episodes: scrolling takes the page {scrolling:.1f} ms of processor time a frame, a filter "
        f"{filtering:.0f} ms, an episode {opening:.0f} ms; frames came every {waits[FRAMES // 2]:.0f} ms (median)"
    )
    assert 0 < scrolling < 50
    assert filtering < 500
    assert opening < 1000


def cost(page: Page, action: Callable[[], object]) -> float:
    """Processor time in ms that the page's main thread takes for an action: it does not count what others take."""
    began = busy(page)
    action()
    return 1e3 * (busy(page) - began)


def busy(page: Page) -> float:
    """Processor time that the page's main thread has taken so far, in seconds."""
    found = page.ask("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in found if metric["name"] == "TaskDuration"))


def test_it_works_from_the_server(browser: Browser, folder: Path) -> None:
    with PageServer(document(collect(results(folder / "served", 5)))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = browser.open(server.url)
        page.press("j")
        read(page)
        assert [message for message in page.complaints() if "favicon" not in message and "404" not in message] == []
        server.shutdown()
        thread.join()


def test_the_report_holds_the_viewer(browser: Browser, folder: Path) -> None:
    run = results(folder / "report", 30)
    inset = selection(run)
    assert inset is not None
    path = folder / "report.html"
    path.write_text(report_page("Report", [], ["A note."], {"command": "x"}, episodes=inset), encoding="utf-8")
    page = browser.open(path.as_uri(), 1400, 1000)
    assert page.complaints() == []
    page.press("j")  # keys belong to the report until one is inside
    assert "Choose an episode" in page.run(f"{DETAIL}.innerText")
    page.run("root.querySelector('.scroller').focus()")
    page.press("j", "c")
    page.wait("root.querySelectorAll('.column').length === 2")
    assert page.run("getComputedStyle(document.querySelector('h1')).fontSize") == "25.6px"
    assert page.complaints() == []


FRAMES = 120
SCROLL = """
(async () => {
  const scroller = root.querySelector('.scroller');
  const frames = [];
  let last = performance.now();
  const end = scroller.scrollHeight;
  for (let frame = 0; frame < 120; frame += 1) {
    scroller.scrollTop = frame < 60 ? frame * 90 : (end * (frame - 60)) / 60;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
  }
  return frames;
})()
"""

# The ratio of luminances (WCAG 2.2) of each text that is seen and what is behind it.
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const paint = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const found = [];
  for (const node of root.querySelectorAll('.app *')) {
    const own = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
    const style = getComputedStyle(node);
    if (!own.length || !node.getClientRects().length || node.closest('.none, option, [disabled]')) continue;
    const behind = [];
    for (let at = node; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const back = paint(behind);
    const [one, two] = [light(paint([`rgb(${back})`, style.color])), light(back)];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    found.push([`${node.className} ${own[0].data.slice(0, 20)}`, ratio]);
  }
  return found;
})()
"""


def test_pictures(browser: Browser, folder: Path, compared: str, request: Any) -> None:
    """Pictures to look at, of the states that matter; each is a drawn page and no blank one."""
    long = next(task for task in range(60) if len(episode(task, 2).turns) > 2 and episode(task, 2).rank)
    curves = written(folder, training(folder / "pictured"))
    for name, address, size, dark, keys in [
        ("light", f"{compared}#episode={3 * long + 2}", (1440, 900), False, ""),
        ("dark", f"{compared}#episode={3 * long + 2}", (1440, 900), True, ""),
        ("ranking", f"{compared}#episode={3 * long + 2}", (1440, 900), False, ""),
        ("side-by-side-dark", f"{compared}#episode=9", (1600, 1000), True, "c"),
        ("side-by-side", f"{compared}#episode={3 * long + 2}", (1600, 1000), False, "c"),
        ("training-dark", curves, (1440, 900), True, "t"),
        ("training", curves, (1440, 900), False, "t"),
        ("phone-list", compared, (390, 844), False, ""),
        ("phone-episode", f"{compared}#episode={3 * long + 2}", (390, 844), False, ""),
        ("phone-two", f"{compared}#episode=9", (390, 844), True, "c"),
        ("help", compared, (1100, 760), False, "?"),
    ]:
        page = browser.open(address, *size, dark=dark)
        page.press(*keys)
        if "#" in address:
            read(page)
        if name == "ranking":
            page.press("l")
        page.wait("new Promise((done) => setTimeout(() => done(true), 150))")
        assert page.picture(folder / f"{name}.png").stat().st_size > 15_000
    print(f"\npictures are in {folder}")
