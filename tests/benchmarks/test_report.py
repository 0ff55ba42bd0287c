"""The report says what the records say, escapes what it did not write, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from agentrec_env.types import StopReason
from benchmarks.analysis import TrackResult, analyse, chance
from benchmarks.played import Played
from benchmarks.records import Block, Record
from benchmarks.report import Report, markdown
from benchmarks.suite import METRICS, Row, Track

HOSTILE = '<script>alert("x")</script> | `a` *b*'
TRACK = Track("pool-20", "1 positive and 19 negatives", {"num_candidates": 20})


def block(ranks: list[int], seed: int = 0, tools: bool = False, failed: int = 0) -> Block:
    """An agent that put the positive at these ranks; the first `failed` episodes ended by an error."""
    rng = np.random.default_rng(seed)
    records = []
    for task, rank in enumerate(ranks):
        broken = task < failed
        pool = np.random.default_rng(task).permutation(20)
        others = [int(item) for item in rng.permutation(pool[1:])[:10]]
        ranking = [*others[: rank - 1], int(pool[0]), *others[rank - 1 : 9]] if rank else others
        records.append(
            Record(
                task=task,
                user=f"u{task}",
                target=int(pool[0]),
                place=task % 20,
                ranking=() if broken else tuple(ranking),
                rank=0 if broken else rank,
                metrics={},
                calls={"search_items": 2, HOSTILE: 1} if tools else {},
                stop=str(StopReason.AGENT_ERROR if broken else StopReason.ANSWERED),
                turns=1,
                seconds=0.5,
                reward=0.0 if broken else 1.0,
                terms={"ndcg@10": 1.0},
                error=f"ValueError: {HOSTILE}" if broken else None,
            )
        )
    return Block(tuple(range(len(ranks))), 2.0, 1.0, tuple(records))


@pytest.fixture(scope="module")
def result() -> TrackResult:
    rng = np.random.default_rng(0)
    uniform = [int(rank) if rank <= 10 else 0 for rank in rng.integers(1, 21, size=120)]
    good = [int(rank) for rank in rng.integers(1, 4, size=120)]
    other = [int(rank) for rank in rng.integers(1, 6, size=120)]
    played = [
        Played(Row("identity", "identity", "control"), {0: [block(uniform)]}, [block(uniform[:40], 1)]),
        Played(Row("fusion", "fusion", "baseline", seeds=2), {0: [block(good)], 1: [block(other)]}),
        Played(Row("popularity", "popularity", "baseline"), {0: [block(other)]}),
        Played(Row(HOSTILE, "mine:Agent"), {0: [block(good, tools=True, failed=12)]}),
    ]
    return analyse("data <b>", TRACK, "protocol & seed 0", played, {"ease": HOSTILE}, [*range(20)] * 6, rng)


@pytest.fixture(scope="module")
def report(result: TrackResult) -> Report:
    return Report([result], {"command": "python run_all.py '<x>'"})


def test_numbers_come_from_the_ranks(result: TrackResult) -> None:
    rows = {row.name: row for row in result.rows}
    fusion = rows["fusion"]
    assert [row.metrics["ndcg@10"].mean for row in result.rows] == sorted(
        (row.metrics["ndcg@10"].mean for row in result.rows), reverse=True
    )
    assert result.best_baseline == "fusion"
    assert fusion.versus == {}
    assert fusion.seeds == 2
    assert fusion.episodes == 240
    assert fusion.metrics["hit@1"].mean == pytest.approx(fusion.ranks[1] / 240)
    assert sum(fusion.ranks) == 240
    assert fusion.milliseconds == pytest.approx(1e3 * 4 / 240)
    assert fusion.prepare_seconds == 2.0
    assert fusion.seed_spread.seeds == 2
    mine = rows[HOSTILE]
    assert mine.failed == pytest.approx(0.1)
    assert mine.invalid == pytest.approx(0)
    assert mine.calls == {"search_items": 2.0, HOSTILE: 1.0}
    versus = mine.versus["hit@1"]
    assert versus.other == "fusion"
    assert versus.comparison.difference.mean == pytest.approx(mine.metrics["hit@1"].mean - fusion.metrics["hit@1"].mean)
    assert versus.p_holm >= versus.comparison.p
    assert len(result.pairs) == 6
    for row in result.rows:
        for metric in METRICS:
            interval = row.metrics[metric]
            assert interval.low <= interval.mean <= interval.high


def test_controls_are_held_against_chance(result: TrackResult) -> None:
    assert chance(20)[0] == pytest.approx(0.2272, abs=5e-5)
    (control,) = result.controls
    assert control.name == "identity"
    assert control.p > 0.01
    leak = [Played(Row("identity", "identity", "control"), {0: [block([1] * 120)]})]
    leaky = analyse("d", TRACK, "p", leak, {}, [0] * 120, np.random.default_rng(0))
    assert leaky.controls[0].p < 1e-10
    assert leaky.positions is not None
    assert leaky.positions.p < 1e-10
    assert result.positions is not None
    assert result.positions.p == pytest.approx(1.0)


def test_order_sensitivity_compares_the_same_tasks(result: TrackResult) -> None:
    order = next(row.order for row in result.rows if row.name == "identity")
    assert order is not None
    assert order.tasks == 40
    assert order.absolute == 0
    assert order.same_first < 1


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_escapes_everything(report: Report, tmp_path: Path) -> None:
    paths = {path.name: path for path in report.write(tmp_path)}
    text = paths["report.html"].read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not {"script", "link", "img", "iframe", "object", "b"} & set(reader.tags)
    assert not {"src", "href", "style", "onload"} & {name for name, _ in reader.attributes}
    assert 'alert("x")' in reader.text
    policy = dict(reader.attributes)["content"]
    styles = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    (digest,) = [base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in styles]
    assert f"style-src 'sha256-{digest}'" in text
    assert policy is not None
    assert "protocol & seed 0" in reader.text
    assert reader.tags.count("svg") == 3


def test_markdown_holds_the_tables_and_nothing_foreign(report: Report) -> None:
    text = markdown(report)
    assert "<script>" not in text.replace("\\<", "")
    assert "protocol & seed 0" in text
    assert "| agent | hit@1 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    pipes = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert set(pipes) <= {line.count("|") for line in lines if set(line) <= set("|:- ")}
    assert "python run\\_all.py" in text


def test_json_holds_all_numbers(report: Report, result: TrackResult, tmp_path: Path) -> None:
    report.write(tmp_path)
    document: dict[str, Any] = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (track,) = document["results"]
    assert track["protocol"] == "protocol & seed 0"
    assert [row["name"] for row in track["rows"]] == [row.name for row in result.rows]
    best = track["rows"][0]
    assert best["metrics"]["ndcg@10"]["method"] == "percentile"
    popularity = next(row for row in track["rows"] if row["name"] == "popularity")
    assert popularity["seed_spread"]["sd"] is None
    assert {"comparison", "p_holm", "other"} <= popularity["versus"]["ndcg@10"].keys()
    assert len(track["pairs"]) == 6


def test_the_screen_shows_rows_failures_and_missing_rows(report: Report) -> None:
    console = Console(file=StringIO(), width=220)
    report.show(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "best baseline" in shown
    assert "10.0 % of its episodes ended by an error" in shown
    assert "ease is not complete" in shown


@pytest.mark.browser
def test_a_browser_draws_the_page_without_complaint(report: Report, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on PATH")
    report.write(tmp_path)
    picture = tmp_path / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1150,2000"]
    told = subprocess.run(
        [
            browser,
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            f"file://{tmp_path / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert picture.stat().st_size > 50_000
    assert "Content Security Policy" not in told.stderr
