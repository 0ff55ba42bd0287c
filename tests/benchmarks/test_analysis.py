"""Planned comparisons, rows that share their seeds, and what is held against a single baseline."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.world import World
from agentrec_env.statistics import holm
from benchmarks.analysis import TrackResult, analyse
from benchmarks.played import Played
from benchmarks.report import Report, markdown, to_json
from benchmarks.sections import strata_tables, supplements
from benchmarks.suite import Row
from tests.benchmarks.test_sections import TRACK, block, drawn

TASKS = 300


def trained(name: str, stage: str, shift: int, seeds: int = 3) -> Played:
    """A row whose seeds lie far apart, each `shift` tasks better than the last row's seed of that number."""
    ranks = {seed: [1] * (60 * seed + shift) + [10] * (TASKS - 60 * seed - shift) for seed in range(seeds)}
    return Played(Row(name, "llm", lane="llm", stage=stage), {seed: [block(each)] for seed, each in ranks.items()})


def fixed(name: str, role: Any, seed: int = 0, **row: Any) -> Played:
    return Played(Row(name, name, role, **row), {0: [block(drawn(seed, TASKS))]})


def analysed(*played: Played) -> TrackResult:
    return analyse("data", TRACK, "p", played, {}, [], np.random.default_rng(0))


@pytest.fixture(scope="module")
def result() -> TrackResult:
    return analysed(
        fixed("oracle", "control", 1),
        fixed("random", "control", 2),
        fixed("fusion", "baseline", 3),
        fixed("popularity", "baseline", 4),
        fixed("scripted", "agent", 5),
        fixed("frozen", "agent", 6, lane="llm"),
        trained("grpo", "grpo", 0),
        trained("grpo+dpo", "dpo", 0),
        trained("grpo+ppr", "ppr", 12),
        Played(Row("ppr, top negative", "llm", stage="ppr-top", ablation="Parts"), {0: [block(drawn(7, TASKS))]}),
    )


def test_the_row_trained_furthest_is_compared_with_what_it_is_to_beat(result: TrackResult) -> None:
    rows = {row.name: row for row in result.rows}
    assert {pair.first for pair in result.planned} == {"grpo+ppr"}
    others = [pair.second for pair in result.planned]
    assert set(others) == {"oracle", "fusion", "popularity", "frozen", "grpo", "grpo+dpo"}
    assert others == [row.name for row in result.rows if row.name in others]
    for metric in ("ndcg@10", "hit@1"):
        found = [pair.comparisons[metric] for pair in result.planned]
        assert [pair.p_holm[metric] for pair in result.planned] == holm([each.p for each in found])
        for pair, comparison in zip(result.planned, found, strict=True):
            expected = rows[pair.first].metrics[metric].mean - rows[pair.second].metrics[metric].mean
            assert comparison.difference.mean == pytest.approx(expected)


def test_trained_rows_are_paired_by_seed(result: TrackResult) -> None:
    gain = next(pair for pair in result.planned if pair.second == "grpo").comparisons["hit@1"]
    assert gain.difference.mean == pytest.approx(12 / TASKS)
    assert gain.difference.low > 0, "seeds that lie .2 apart do not hide a gain that each of them shows"
    assert gain.p < 0.01
    pair = next(pair for pair in result.pairs if {pair.first, pair.second} == {"grpo", "grpo+ppr"})
    assert abs(pair.comparison.difference.mean) > pair.comparison.difference.high - pair.comparison.difference.mean
    (unequal,) = analysed(trained("grpo", "grpo", 0, seeds=2), trained("grpo+ppr", "ppr", 12)).planned
    assert unequal.comparisons["hit@1"].p > 0.05, "other seeds: nothing is shared"


def test_without_ppr_the_row_that_comes_before_it_is_the_subject() -> None:
    baseline = fixed("fusion", "baseline")
    ppo, dpo = trained("ppo", "ppo", 0), trained("grpo+dpo", "dpo", 3)
    assert [(pair.first, pair.second) for pair in analysed(baseline, ppo, dpo).planned] == [
        ("grpo+dpo", "fusion"),
        ("grpo+dpo", "ppo"),
    ]
    assert {pair.first for pair in analysed(baseline, ppo).planned} == {"ppo"}
    assert analysed(ppo).planned == []
    assert analysed(baseline, fixed("frozen", "agent", 1)).planned == []


def test_planned_comparisons_are_written(result: TrackResult) -> None:
    table, *others = supplements(result)
    assert table.caption == "Planned comparisons: grpo+ppr minus each row"
    assert not any(other.caption.startswith("Planned") for other in others)
    assert [line[0].text for line in table.lines] == [pair.second for pair in result.planned]
    assert all(len(line) == len(table.columns) == 7 for line in table.lines)
    report = Report([result], {})
    assert "Planned comparisons: grpo+ppr minus each row" in markdown(report)
    (written,) = json.loads(to_json(report))["results"]
    assert written["planned"][0]["comparisons"].keys() == {"ndcg@10", "hit@1"}


def test_where_the_halves_disagree_kinds_are_held_against_the_best_of_all_tasks(tiny: Dataset) -> None:
    world = World(tiny, num_candidates=8)
    count = world.num_tasks("test")
    even = [1 if task % 2 == 0 else 10 for task in range(count)]
    odd = [2 if task % 2 else 10 for task in range(count)]
    played = [Played(Row(name, name, "baseline"), {0: [block(each)]}) for name, each in (("even", even), ("odd", odd))]
    played.append(Played(Row("agent", "agent"), {0: [block(drawn(1, count))]}))
    result = analyse("data", TRACK, "p", played, {}, [], np.random.default_rng(0), world)
    assert result.best_baseline == "odd | even"
    means = {row.name: row.metrics["ndcg@10"].mean for row in result.rows}
    assert means["even"] > means["odd"]
    assert result.reference == "even"
    for strata in result.strata:
        assert strata.reference == "even"
        assert set(strata.kinds[0].differences) == {"odd", "agent"}
        _, differences = strata_tables(strata)
        assert "to even, the best baseline over all tasks" in differences.caption
