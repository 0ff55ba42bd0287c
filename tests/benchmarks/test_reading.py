"""What a policy reads of the table, told by ones whose reading is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrec_env.actions import render
from agentrec_env.metrics import expected_metrics
from agentrec_env.scenario import Config, Scenario
from agentrec_env.tools.comparison import SIGNS
from agentrec_env.types import Ranking, ToolCall
from agents.protocol import FunctionAgent
from benchmarks.ceiling import graded_lists
from benchmarks.reading import SUM, Ranked, Reading, lines, main
from benchmarks.signs import STRIDE, draw

WEIGHTS = {"popular": 0.5, "embedding": 1.07, "category": 0.61, "neighbours": 0.83, "title": 0.37, "together": 0.29}


def weigh(observation: dict[str, Any], blunder: int = 0) -> str:
    """Sums some signs of the table; with `blunder`, one task in so many has a list that begins anywhere else."""
    if observation["turn"] == 0:
        return render([ToolCall("compare_candidates", {})])
    table = graded_lists(observation["text"].removesuffix("</observation>"))
    scores = np.zeros(len(observation["candidates"]))
    for sign, weight in WEIGHTS.items():
        for number, strength in table.get(sign, {}).items():
            scores[number - 1] += weight * strength.strength
    order = np.lexsort((observation["candidates"], -scores))
    luck = int(observation["candidates"].sum())
    if blunder and luck % blunder == 0:
        order = np.roll(order, 1 + luck % 19)
    return render(Ranking(tuple(int(place) + 1 for place in order[:10])))


def first(observation: dict[str, Any]) -> str:
    """Names candidates as they are listed, and reads nothing."""
    return render(Ranking(tuple(range(1, 11))))


def reading(function: Any, tasks: int = 80, taught: int = 600, **kwargs: Any) -> Reading:
    world = Scenario(Config()).world
    rng = np.random.default_rng(0)
    agent = FunctionAgent(function, **kwargs)
    return Reading(world, agent, draw(world, "test", 1, tasks, rng), draw(world, "train", 1, taught, rng), rows=16)


def test_a_sum_of_its_own_choices_tells_weights_from_blunders(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.reading.make", lambda _: FunctionAgent(first))  # fusion takes its time to learn
    read = reading(weigh, taught=2_500, blunder=4)
    found = read.sums()
    policy, own = found["policy"], found["sum, of what the policy puts first in those"]
    blundered = np.array([task.candidates.sum() % 4 == 0 for task in read.test])
    assert own.same[~blundered].mean() > 0.8
    assert own.same[blundered].mean() < 0.1
    assert own.values["ndcg@10"].mean() > policy.values["ndcg@10"].mean() + 0.03
    assert own.same.mean() > found["sum, of what was taken in training tasks"].same.mean()
    assert policy.same.tolist() == [1.0] * 80


def test_hiding_a_sign_costs_those_who_read_it():
    found = reading(weigh).hidden()
    assert set(found) == {"policy", *(f"without {sign}" for sign in SIGNS)}
    for sign in SIGNS:
        changed = found[f"without {sign}"].same.mean() < 1
        assert changed == (sign in WEIGHTS), sign


def test_a_sum_without_a_sign_adds_the_others():
    read = reading(weigh)
    found = read.hidden_from_a_sum()
    strengths = np.arange(STRIDE) / STRIDE
    read.weights = np.concatenate([10.0 * strengths] + [0 * strengths] * (len(SIGNS) - 1))  # of popularity alone
    alone = read.hidden_from_a_sum()
    chance = expected_metrics(np.zeros((1, 20)), [0], ["ndcg@10"])["ndcg@10"][0]
    assert alone["without popular"].values["ndcg@10"] == pytest.approx(chance)
    assert alone["without brand"].values["ndcg@10"].tolist() == alone[SUM].values["ndcg@10"].tolist()
    assert found[SUM].values["ndcg@10"].mean() > alone[SUM].values["ndcg@10"].mean()


def test_orders_do_not_matter_to_who_reads_rows_alone():
    mean, merged = reading(weigh).orders(2).values()
    assert mean.same.tolist() == merged.same.tolist() == [1.0] * 80
    assert merged.values["hit@1"].tolist() == mean.values["hit@1"].tolist()


def test_one_list_of_many_orders_has_no_favourite_place():
    mean, merged = reading(first, tasks=200).orders(20).values()
    assert mean.same.mean() == pytest.approx(1 / 20, abs=0.02)
    assert merged.values["hit@1"].mean() == pytest.approx(1 / 20, abs=0.06)
    assert mean.values["hit@1"].mean() == pytest.approx(1 / 20, abs=0.02)


def test_a_policy_without_an_answer_is_told():
    with pytest.raises(ValueError, match="answers none of 30 training tasks"):
        reading(lambda observation: "nothing", tasks=10, taught=30).sums()


def test_differences_are_to_the_first_line():
    half = {"ndcg@10": np.full(50, 0.5), "hit@1": np.zeros(50)}
    more = {"ndcg@10": np.full(50, 0.75), "hit@1": np.ones(50)}
    found = lines({"a": Ranked(half, np.ones(50)), "b": Ranked(more, np.full(50, 0.2))}, np.random.default_rng(0))
    assert [line.difference.mean for line in found] == [0, 0.25]
    assert found[1].difference.low == found[1].difference.high == 0.25
    assert found[1].same == pytest.approx(0.2)


def test_the_embedded_policy_is_read_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--tasks", "6", "--taught", "8", "--orders", "1", "--num-envs", "6", "--out", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "6 test tasks, 8 training tasks" in shown
    kept = json.loads((tmp_path / "reading.json").read_text())
    assert [line["name"] for line in kept["hidden"]] == ["policy", *(f"without {sign}" for sign in SIGNS)]
    assert len(kept["sums"]) == 5
    assert len(kept["hidden_from_a_sum"]) == 1 + len(SIGNS)
    assert kept["orders"][0]["name"] == "mean of 2 orders"
    assert (tmp_path / "reading.md").read_text().endswith(f"`{kept['command']}`\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reading.json", "reading.md"]


def test_a_number_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--num-envs", "0"])
    assert "--num-envs 0: at least 1 is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "nowhere"], "nowhere"),
        (["--model-args", '{"temprature": 0}'], "temprature"),
        (["--model", "no/such/folder", "--tasks", "2", "--taught", "2"], "no/such/folder"),
    ],
)
def test_what_cannot_be_read_is_told_without_a_trace(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
