"""What a command line asks for, and what it is told that it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.world import World
from agentrec_env.vector import RecVectorEnv
from agents.play import play
from agents.protocol import make
from benchmarks import run_all
from benchmarks.ceiling import Additive, Reader, Sign, Written, graded_lists
from benchmarks.options import parse_arguments
from benchmarks.selection import Selection, select
from benchmarks.suite import DEFAULT, SIZES
from tests.benchmarks.test_run_all import numbers


def chosen(*arguments: str) -> Selection:
    options = parse_arguments([*arguments, "--out", "nowhere"])
    return select(options, SIZES["quick" if options.quick else "full" if options.full else "default"])


def names(selection: Selection, source: str = "synthetic") -> set[str]:
    return {row.name for row in selection.of(source)}


CLASSICAL = {row.name for row in DEFAULT.rows}


def test_a_plain_run_plays_the_embedded_policy_and_trains_nothing() -> None:
    plain = chosen()
    assert names(plain) == CLASSICAL | {"no-tools", "frozen"}
    assert not plain.trains
    told = " ".join(plain.left_out)
    assert "grpo+ppr" in told
    assert "--full" in told
    assert "--ablations" in told
    assert names(plain, "reviews.csv") == names(plain)
    quick = chosen("--quick", "--dataset", "reviews.csv")
    assert "Tracks that are not played: pool-100, catalogue." in quick.left_out
    assert [track.name for track in quick.tracks] == ["pool-20"]


def test_the_embedded_policy_is_not_judged_on_tasks_that_taught_it() -> None:
    other = chosen("--split", "leave_one_out")
    assert names(other) == CLASSICAL
    assert names(other, "reviews.csv") == CLASSICAL | {"no-tools", "frozen"}
    assert any("training tasks of --split temporal" in said for said in other.left_out)
    for asked in (["--model", "tiny"], ["--train"], ["--full", "--dataset", "synthetic", "--dataset", "reviews.csv"]):
        with pytest.raises(ValueError, match="take --split temporal on synthetic, or another --model"):
            chosen(*asked, "--split", "leave_one_out")
    assert chosen("--train", "--split", "leave_one_out", "--dataset", "reviews.csv").trains
    assert chosen("--train", "--split", "leave_one_out", "--model", "runs/mine").trains


def test_a_full_run_has_all_rows() -> None:
    full = chosen("--full")
    rows = {row.name: row for row in full.rows}
    assert {"sft", "ppo", "grpo", "grpo+grpo", "grpo+ppr", "grpo+dpo", "written evidence", "ppr, top negative"} <= set(
        rows
    )
    assert full.trains
    assert names(full) == names(full, "reviews.csv") == set(rows)
    assert all(row.seeds == (1 if row.permuted else 3) for row in full.rows if row.stage and "," not in row.name)
    alone = [row for row in full.rows if row.ablation == "Each tool alone, the others permuted: grpo+ppr"]
    assert len(alone) == 12
    assert {row.stage for row in alone} == {"ppr"}
    headings = {row.ablation for row in full.rows}
    assert {"Each tool alone: scripted", "Each tool left out: scripted", "Each tool permuted: grpo+ppr"} <= headings
    assert len(rows) == len(full.rows)
    own = chosen("--full", "--model", "org/model", "--model-args", '{"device": "cpu"}', "--train-seeds", "5")
    rows = {row.name: row for row in own.rows}
    assert rows["frozen"].kwargs == {"model": "org/model", "temperature": 0.0, "device": "cpu"}
    assert rows["grpo"].seeds == 5
    assert own.experiment.model == "org/model"
    assert own.experiment.seeds == (0, 1, 2, 3, 4)
    assert not any(name.startswith("llm:") for name in rows)


def test_parts_of_the_suite_by_name() -> None:
    assert names(chosen("--only", "frozen", "fusion", "pool-20")) == {"frozen", "fusion"}
    trained = chosen("--only", "grpo", "fusion")
    assert names(trained) == {"grpo", "fusion"}
    assert trained.trains
    assert not trained.left_out
    assert names(chosen("--train")) == CLASSICAL | {
        *("no-tools", "frozen", "sft", "ppo", "grpo", "grpo+grpo", "grpo+dpo", "grpo+ppr"),
        *("written evidence", "written evidence, additive"),
    }
    parts = chosen("--ablations")
    assert {row.ablation for row in parts.rows} == {
        "",
        *(f"Each tool {how}: scripted" for how in ("alone", "left out")),
        *(f"Each tool {how}: frozen" for how in ("alone, the others permuted", "permuted")),
    }
    named = chosen("--only", "grpo", "grpo+dpo", "scripted", "--ablations")
    assert {row.reference for row in named.rows if row.ablation} == {"grpo", "grpo+dpo", "scripted"}
    assert {row.name for row in named.rows if not row.ablation} == {"grpo", "grpo+dpo", "scripted"}
    assert "llm:tiny" in names(chosen("--model", "tiny"))
    assert "frozen" not in names(chosen("--model", "tiny"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train", "--model", "a", "--model", "b"], "one model is trained at a time"),
        (["--preset", "paper"], "add --train or --full"),
        (["--only", "gpro"], "Did you mean 'grpo'"),
        (["--train-seeds", "0"], "at least one"),
        (["--train", "--train-args", '{"grop": {}}'], "Did you mean 'grpo'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chosen(*arguments)


def test_the_plan_is_printed_and_nothing_is_done(
    source: str,
    tmp_path: Path,
    stand_in: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["--dataset", source, "--full", "--dry-run", "--out", str(out), "--train-steps", "2"]
    assert run_all.main([*command, "--train-args", '{"grpo": {"algorithm": {"groups": 5}}}']) == 0
    shown = capsys.readouterr().out
    assert "grpo-leave-one-out seed 1: grpo, after sft, 2 steps, 80 episodes, at most 327,680 tokens" in shown
    assert "ppo                seed 0: ppo, after sft, 2 steps, 80 episodes" in shown
    assert "from tiny" in shown
    assert "written evidence" in shown
    assert not out.exists()


def test_a_run_without_training_says_so_in_its_report(source: str, tmp_path: Path, stand_in: Any) -> None:
    out = tmp_path / "out"
    assert run_all.main(["--dataset", source, "--quick", "--jobs", "0", "--tasks", "32", "--out", str(out)]) == 0
    assert "Nothing is trained here" in (out / "report.md").read_text()
    assert "Nothing is trained here" in (out / "report.html").read_text()
    (track,) = numbers(out)["results"]
    assert {cut["title"] for cut in track["strata"]} >= {"the user's history", "how far the tools disagree"}


def test_lists_are_read_as_they_are_written() -> None:
    text = "Scores, strength 1 to 8.\nshared buyers: [3]=8 [12]=5; others 0\ncomes next: none\nlast: [1]=1"
    assert graded_lists(text) == {"shared buyers": {3: Sign(8, 1), 12: Sign(5, 2)}, "last": {1: Sign(1, 1)}}
    table = "Strength of each sign.\npopular:3 title:? [1]\npopular:7 title:0 [2]\npopular:3 title:2 [11]\nand 2 weaker"
    assert graded_lists(table) == {
        "popular": {1: Sign(3, 2), 2: Sign(7, 1), 11: Sign(3, 2)},
        "title": {2: Sign(0, 2), 11: Sign(2, 1)},
    }


@pytest.mark.parametrize("reader", [Written, Additive])
def test_a_reader_ranks_by_the_text_alone(tiny: Dataset, reader: type[Reader]) -> None:
    world = World(tiny, num_candidates=8)
    agent = reader(tools=["score_candidates", "get_item_stats"])
    first, second = (
        [episode.ranking for episode in play(RecVectorEnv(4, world=world, task_split="test"), agent, range(10), seed)]
        for seed in (0, 0)
    )
    assert first == second
    assert all(len(ranking) == 8 for ranking in first)
    with pytest.raises(ValueError, match="no lists of candidates"):
        reader(tools=["get_user_profile"]).fit(world)
    with pytest.raises(ValueError, match="has none"):
        reader().fit(World(tiny, num_candidates="catalog"))


def test_the_additive_reader_finds_the_weights_of_the_likelihood() -> None:
    taken = np.zeros((1000, 4), bool)
    taken[:600, 0] = taken[600:, 1] = True
    signs = np.zeros((1000, 4, 2), np.float32)  # one list: strengths, and places, of which it reads which are missing
    signs[:, :, 1] = np.nan
    signs[:, 0] = 8, 1
    reader = Additive()
    reader._learn(signs, taken, np.arange(1000))
    with_sign, without = reader._scores(signs[0])[:2]
    assert with_sign - without == pytest.approx(np.log(3 * 0.6 / 0.4), abs=0.01)


@pytest.mark.slow
def test_readers_beat_the_agent_that_takes_mean_ranks_of_the_same_text() -> None:
    envs = RecVectorEnv(32, dataset="synthetic", task_split="test")
    tools = ["compare_candidates"]
    best, simple, mean_ranks = (
        np.mean([episode.metrics["ndcg@10"] for episode in play(envs, agent, range(600), 0)])
        for agent in (Written(tools), Additive(tools), make("scripted", tools=tools))
    )
    chance = 0.227
    assert min(best, simple) > mean_ranks > chance + 0.1
