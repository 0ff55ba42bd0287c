"""Sections of the report: kinds of tasks, what a part is worth, what a request costs; and how they are shown."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import numpy as np
import pytest

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.world import World
from agentrec_env.metrics import from_ranks
from agentrec_env.tools import TOOLS, ToolError, call_tool
from agentrec_env.types import StopReason
from benchmarks import strata
from benchmarks.ablations import ablate, tool_rows
from benchmarks.analysis import analyse
from benchmarks.costs import costs
from benchmarks.curves import Curve, Judged, TrainingResult
from benchmarks.page import page
from benchmarks.permuted import permute
from benchmarks.played import Played
from benchmarks.plots import learning, training_calls
from benchmarks.records import Block, Record
from benchmarks.report import Report, markdown, to_json
from benchmarks.sections import ablation_table
from benchmarks.suite import DEFAULT, Row, Track
from tests.benchmarks.test_report import HOSTILE

TRACK = Track("pool-20", "1 positive and 19 negatives", {"num_candidates": 20})


def block(ranks: list[int], calls: int = 0, tokens: int | None = None, stop: StopReason = StopReason.ANSWERED) -> Block:
    """Tasks 0, 1, … whose positive ended at these ranks."""
    records = [
        Record(
            task=task,
            user=f"u{task}",
            target=0,
            place=task % 20,
            ranking=(0,),
            rank=rank,
            metrics={},
            calls={"score_candidates": calls} if calls else {},
            stop=str(stop),
            turns=1,
            seconds=0.25,
            reward=0.0,
            terms={},
            read=tokens,
            written=tokens and tokens // 10,
        )
        for task, rank in enumerate(ranks)
    ]
    return Block(tuple(range(len(ranks))), 1.0, 0.0, tuple(records))


def drawn(seed: int, count: int = 60, worst: int = 10) -> list[int]:
    return [int(rank) for rank in np.random.default_rng(seed).integers(1, worst + 1, size=count)]


def test_a_part_is_compared_on_the_seeds_that_both_have() -> None:
    full = Row("full", "llm")
    part = Row("without", "llm", ablation="Parts", reference="full")
    lucky = [1] * 60
    played = [
        Played(full, {0: [block(drawn(0))], 1: [block(lucky)]}),
        Played(part, {0: [block(drawn(0))]}),
        Played(Row("worse", "llm", ablation="Parts", reference="full"), {0: [block([0] * 60)], 1: [block([0] * 60)]}),
        Played(Row("alone", "llm", ablation="Others", reference="absent"), {0: [block(drawn(1), calls=3)]}),
    ]
    parts, others = ablate(played, np.random.default_rng(0))
    assert [(each.name, each.seeds) for each in parts.references] == [("full", (0,)), ("full", (0, 1))]
    one, both = parts.references
    same, worse = parts.parts
    assert same.differences["ndcg@10"].difference.mean == 0, "the luck of seed 1 is no part's worth"
    assert one.metrics["hit@1"].mean == same.metrics["hit@1"].mean
    assert both.metrics["hit@1"].mean == pytest.approx((np.mean(np.array(drawn(0)) == 1) + 1) / 2)
    assert worse.differences["hit@1"].difference.mean == pytest.approx(-both.metrics["hit@1"].mean)
    assert worse.p_holm["ndcg@10"] >= worse.differences["ndcg@10"].p
    assert (same.seeds, worse.seeds) == ((0,), (0, 1))
    assert not others.references
    assert not others.parts[0].differences
    assert others.parts[0].calls == 3


def test_differences_are_those_of_the_figures_shown_on_the_seeds_that_are_named() -> None:
    ranks = {seed: drawn(seed) for seed in range(3)}
    full = Row("full", "llm", stage="grpo")
    whole = Played(full, {seed: [block(each)] for seed, each in ranks.items()})
    worse = Played(Row("part", "llm", ablation="Parts", reference="full"), {1: [block(drawn(7))], 5: [block(drawn(8))]})
    broken = Played(
        Row("broken", "llm", ablation="Parts", reference="full"), {1: [block([0] * 60, stop=StopReason.INVALID)]}
    )
    (ablation,) = ablate([whole, worse, broken], np.random.default_rng(0))
    table = ablation_table(ablation)
    notes = {line[0].text: line[0].note for line in table.lines}
    assert notes == {"full": "all parts, seed 1", "part": "seed 1", "broken": "seed 1"}
    (reference,) = ablation.references
    for part in ablation.parts:
        for metric, compared in part.differences.items():
            assert compared.difference.mean == pytest.approx(part.metrics[metric].mean - reference.metrics[metric].mean)
    invalid = table.columns.index("invalid %")
    assert [line[invalid].text for line in table.lines] == ["0.0", "0.0", "100.0"]


def test_a_part_is_paired_with_the_reference_by_seed() -> None:
    # Seeds differ by far more than the part does: it takes away the first place on every tenth task, with each seed.
    seeds = {seed: [1] * (30 * seed) + [10] * (60 * 5 - 30 * seed) for seed in range(1, 6)}
    less = {
        seed: [2 if task % 10 == 0 and rank == 1 else rank for task, rank in enumerate(each)]
        for seed, each in seeds.items()
    }
    played = [
        Played(
            Row(name, "llm", ablation="" if name == "full" else "Parts", reference="full"),
            {s: [block(each)] for s, each in of.items()},
        )
        for name, of in (("full", seeds), ("part", less))
    ]
    (ablation,) = ablate(played, np.random.default_rng(0))
    found = ablation.parts[0].differences["hit@1"]
    assert found.difference.high < 0
    assert found.p < 0.05


def test_each_tool_is_taken_away_and_left_alone() -> None:
    names = set(TOOLS.names())
    scripted = next(row for row in DEFAULT.rows if row.name == "scripted")
    rows = tool_rows(scripted, TOOLS.names())
    alone = [row.kwargs["tools"] for row in rows if row.ablation.startswith("Each tool alone")]
    assert sorted(alone) == sorted([name] for name in names)
    without = [row for row in rows if row.ablation.startswith("Each tool left out")]
    assert len(without) == 4
    for row in without:
        assert len(row.kwargs["tools"]) == 3
        assert not any(tool in row.name for tool in row.kwargs["tools"])
    policy = Row("frozen", "llm", kwargs={"model": "tiny"}, lane="llm")
    rows = tool_rows(policy, TOOLS.names())
    assert len(rows) == 2 * len(names)
    for row in rows:
        (told,) = {*row.permuted} if len(row.permuted) == 1 else names - {*row.permuted}
        assert told in row.name
    assert {row.reference for row in rows} == {"frozen"}
    assert len({row.key for row in (*rows, policy)}) == 2 * len(names) + 1


def test_a_permuted_tool_answers_in_its_form_for_another_task(world: World) -> None:
    names = ("candidates_analyze", "score_candidates")
    kept, permuted = permute(world, names, names[1:])
    whole, tool = (TOOLS.get(name) for name in names)
    views = [world.view(world.task("test", index)) for index in range(world.num_tasks("test"))]
    said = call_tool(permuted, views[0], {})
    assert call_tool(kept, views[0], {}) == call_tool(whole, views[0], {})
    assert permuted.schema == tool.schema
    assert said in {call_tool(tool, view, {}) for view in views} - {call_tool(tool, views[0], {})}
    assert said == call_tool(permuted, views[0], {})


def test_an_item_that_a_permuted_tool_is_asked_about_is_exchanged_too(world: World) -> None:
    (permuted,) = permute(world, ["item_info_search"], ["item_info_search"])
    views = [world.view(world.task("test", index)) for index in range(world.num_tasks("test"))]
    view, items = views[0], views[0].items
    for place, item in enumerate(view.candidates.tolist()):
        names = (f"[{place + 1}]", items.ids[item], items.titles[item])
        (said,) = {call_tool(permuted, view, {"item_name": name}) for name in names if name}
        assert said.startswith(f"[{place + 1}]")
        assert said in {call_tool(TOOLS.get("item_info_search"), other, {"item_name": names[0]}) for other in views[1:]}
    known = items.ids[int(view.known[-1])]
    assert items.titles[int(view.known[-1])] not in call_tool(permuted, view, {"item_name": known})
    with pytest.raises(ToolError):
        call_tool(permuted, view, {"item_name": "qqqq zzzz"})


@pytest.fixture(scope="module")
def world(tiny: Dataset) -> World:
    return World(tiny, num_candidates=8)


def test_kinds_follow_from_the_data(world: World) -> None:
    tasks = range(world.num_tasks("test"))
    _, names, code = strata.by_history(world, tasks)
    known = np.array([len(world.view(world.task("test", task)).known) for task in tasks])
    assert len(names) == 4
    assert ((known <= 2) == (code == 0)).all()
    assert (((known >= 6) & (known <= 10)) == (code == 2)).all()
    _, names, code = strata.by_popularity(world, tasks)
    popularity = world.split.evidence(0).popularity
    taken = np.array([popularity[world.task("test", task).target] for task in tasks])
    assert ((taken == 0) == (code == 2)).all()
    if (code == 0).any() and (code == 1).any():
        assert taken[code == 0].min() > taken[code == 1].max()
    seen = popularity[popularity > 0]
    least = taken[code == 0].min() if (code == 0).any() else seen.max()
    assert (seen >= least).mean() >= 0.1
    _, names, code = strata.by_disagreement(world, tasks) or ("", [], np.zeros(0))
    assert abs(np.bincount(code, minlength=3) - len(code) / 3).max() <= 1


def test_signals_that_agree_do_not_disagree(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strata, "SIGNALS", ["popularity", "popularity", "popularity_evidence"])
    for task in range(5):
        assert -1e-9 <= strata.disagreement(world, task) <= 1
    monkeypatch.setattr(strata, "SIGNALS", ["popularity", "popularity"])
    assert strata.disagreement(world, 0) == pytest.approx(0)
    monkeypatch.setattr(strata, "SIGNALS", [lambda view, items: items, lambda view, items: -items])
    assert strata.disagreement(world, 0) == pytest.approx(2)


def test_kinds_add_up_to_the_whole(world: World) -> None:
    count = world.num_tasks("test")
    ranks = {name: drawn(seed, count, 12) for seed, name in enumerate(("a", "b", "best"))}
    ranks = {name: [rank if rank <= 10 else 0 for rank in each] for name, each in ranks.items()}
    played = [Played(Row(name, "x"), {0: [block(each)]}) for name, each in ranks.items()]
    for cut in strata.stratify(world, played, "best", np.random.default_rng(0)):
        assert all(kind.tasks >= strata.LEAST for kind in cut.kinds)
        if sum(kind.tasks for kind in cut.kinds) < count:
            continue
        for name, each in ranks.items():
            whole = from_ranks(np.array(each), ["ndcg@10"])["ndcg@10"].mean()
            assert sum(kind.tasks * kind.means[name].mean for kind in cut.kinds) / count == pytest.approx(whole)
        assert set(cut.kinds[0].differences) == {"a", "b"}
        assert cut.kinds[0].differences["a"].difference.mean == pytest.approx(
            cut.kinds[0].means["a"].mean - cut.kinds[0].means["best"].mean
        )


def test_costs_are_counted_where_everybody_counted() -> None:
    played = [
        Played(Row("local", "llm"), {0: [block(drawn(0), calls=3, tokens=100)], 1: [block(drawn(1), 1, 300)]}),
        Played(Row("classical", "x"), {0: [block(drawn(2))]}),
        Played(Row("half", "endpoint"), {0: [block([1], tokens=100), block([2])] * 30}),
    ]
    local, classical, half = costs(played, np.random.default_rng(0))
    assert local.calls.mean == 2
    assert local.read is not None
    assert local.read.mean == 200
    assert local.read.low < 200 < local.read.high
    assert local.written is not None
    assert local.written.mean == 20
    assert classical.read is None
    assert half.read is None
    assert classical.milliseconds.mean == 250


def test_the_best_baseline_is_chosen_on_other_tasks() -> None:
    first, second = [1, 10] * 30, [10, 1] * 30

    def result(baselines: dict[str, list[int]]) -> Any:
        played = [Played(Row(name, name, "baseline"), {0: [block(ranks)]}) for name, ranks in baselines.items()]
        played.append(Played(Row("agent", "agent"), {0: [block([2] * 60)]}))
        return analyse("d", TRACK, "p", played, {}, [], np.random.default_rng(0))

    clear = result({"good": [1] * 60, "bad": first})
    assert clear.best_baseline == "good"
    # On even tasks the first is right, on odd ones the second: each is chosen for the half on which it is wrong.
    split = result({"even": first, "odd": second})
    assert split.best_baseline == "odd | even"
    agent = next(row for row in split.rows if row.name == "agent")
    tenth = from_ranks(np.array([10, 2]), ["ndcg@10"])["ndcg@10"]
    assert agent.versus["ndcg@10"].comparison.difference.mean == pytest.approx(tenth[1] - tenth[0])
    assert {row.name for row in split.rows} == {"even", "odd", "agent"}


GRPO = [Judged(0, 0, 0.3, 0.25, 0.35), Judged(10, 1e6, 0.5, 0.45, 0.55)]


def test_learning_is_drawn_over_all_tokens_of_a_chain() -> None:
    def curve(stage: str, start: str, valid: list[Judged], tokens: float) -> Curve:
        return Curve(stage, "grpo", start, 3, [0, 10], {}, [], valid, [0.5], [10], tokens, 60)

    chain = [
        curve("sft", "tiny", [Judged(0, 0, 0.2, 0.2, 0.2), Judged(30, 0, 0.3, 0.3, 0.3)], 0),
        curve("grpo", "sft", GRPO, 1e6),
        curve(HOSTILE, "grpo", [Judged(0, 0, 0.5, 0.5, 0.5), Judged(10, 1e6, 0.6, 0.5, 0.7)], 1e6),
    ]
    drawn = learning(chain)
    lines = re.findall(r'<polyline class="line line\d" points="([^"]*)">', drawn)
    (first, middle), (after, last) = [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]
    assert middle == after  # the second stage goes on where the first ended
    assert last[0] - middle[0] == pytest.approx(middle[0] - first[0], abs=0.2)
    assert last[1] < middle[1] < first[1]
    assert drawn.count("<polygon") == 2
    assert re.findall(r"<title>([^<]*)</title></polyline>", drawn) == ["grpo", escape(HOSTILE)]
    assert HOSTILE not in drawn
    assert learning(chain[:1]) == ""


def test_sections_are_shown_and_escaped(world: World) -> None:
    count = world.num_tasks("test")
    played = [
        Played(Row("fusion", "fusion", "baseline"), {0: [block(drawn(0, count))]}),
        Played(Row(HOSTILE, "llm"), {0: [block(drawn(1, count), 2, 90)], 1: [block(drawn(2, count), 2, 90)]}),
        Played(Row("part", "llm", ablation=f"Parts {HOSTILE}", reference=HOSTILE), {0: [block(drawn(3, count))]}),
        Played(Row("alone", "llm", ablation="No reference", reference="absent"), {0: [block(drawn(4, count))]}),
    ]
    result = analyse("data", TRACK, "p", played, {}, [], np.random.default_rng(0), world)
    assert {row.name for row in result.rows} == {"fusion", HOSTILE}
    curve = Curve("grpo", "grpo", "sft", 3, [0, 5, 10], {HOSTILE: [1, 2, 3]}, [0.1] * 3, GRPO, [0.5], [10], 1e6, 60)
    trained = [TrainingResult("data", [curve], [f"remark {HOSTILE}"])]
    report = Report([result], {}, training=trained, left_out=["No rows are trained."])
    text, html = markdown(report), page("t", [result], [], {}, None, trained, ["No rows are trained."])
    for shown in (text, html):
        assert "<script>" not in shown.replace("\\<", "")
        assert "No rows are trained." in shown
        assert "Cost of a request" in shown
        assert "No reference" in shown
        assert "the user" in shown
        assert "tools disagree" in shown
        assert "1,000,000" in shown
    assert "polyline" in training_calls(curve)
    assert '"left_out"' in to_json(report)
