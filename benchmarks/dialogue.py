"""What asking is worth: a recommender that asks the user against the same one that does not, on the same tasks.

`python benchmarks/dialogue.py` plays `AgentRec-AmazonDialogue-v0` with the user folded in, prints a table with 95 %
paired intervals, and writes results/dialogue.json beside this file. Two control rows have users that tell nothing, and
that tell the item's title and a number whatever they are asked: what the latter gains over the former is what the
filter between the seats lets through, which is now and then a brand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # python benchmarks/dialogue.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from agentrec_env.dialogue.env import DialogueVectorEnv
from agentrec_env.dialogue.user import NOT_SAID, ScriptedUser, Taste
from agentrec_env.statistics import Interval, PairedBootstrap, compare, holm
from agentrec_env.types import Episode
from agents import make, play

OUT = Path(__file__).parent / "results" / "dialogue.json"
METRICS = ("ndcg@10", "hit@1", "questions", "accepted", "reward", "utility")


class MuteUser(ScriptedUser):
    """A control: answers no question, and decides on the list as the scripted user does."""

    def answer(self, taste: Taste, question: str) -> str:
        """Nothing."""
        return NOT_SAID


class NamingUser(ScriptedUser):
    """A control: tells the title of what it wants, a number in many spellings and the price, whatever it is asked."""

    def answer(self, taste: Taste, question: str) -> str:
        """All that names the item."""
        return f"It is {taste.facts['title']}, number seven, item 7, s-e-v-e-n, at {taste.facts['price']}."


@dataclass(frozen=True)
class Row:
    """Who plays whom."""

    name: str
    agent: str
    user: Callable[..., ScriptedUser]
    about: str


ROWS = (
    Row("oracle", "oracle", ScriptedUser, "knows the world and asks nothing: the ceiling without a dialogue"),
    Row("asking", "asking", ScriptedUser, "the silent agent with three questions in front"),
    Row("asking, mute user", "asking", MuteUser, "control: the same, but the user never answers"),
    Row("asking, naming user", "asking", NamingUser, "control: the same, but the user tells title and numbers"),
    Row("silent", "scripted", ScriptedUser, "scripted ReAct agent, four tool calls, no question"),
    Row("random", "random", ScriptedUser, "control"),
)
PAIRS = (
    ("asking", "silent"),
    ("asking", "asking, mute user"),
    ("asking, mute user", "silent"),
    ("asking, naming user", "asking, mute user"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=600, help="test tasks, drawn at random and the same for all rows")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of agent and user")
    parser.add_argument("--dataset", default="synthetic", help="a category, folder or file, as for the environment")
    parser.add_argument("--split", default="temporal", help="temporal or leave_one_out")
    parser.add_argument("--envs", type=int, default=64, help="episodes at a time")
    parser.add_argument("--out", type=Path, default=OUT, help="where the figures go")
    chosen = parser.parse_args(arguments)
    if chosen.tasks < 1 or chosen.seeds < 1:
        parser.error("--tasks and --seeds are at least 1")
    report = run(chosen.tasks, chosen.seeds, chosen.envs, dataset=chosen.dataset, split=chosen.split)
    print(table(report))
    write(report, chosen.out)
    print(f"\nwritten to {chosen.out}")
    return 0


def run(tasks: int, seeds: int, envs: int, **kwargs: Any) -> dict[str, Any]:
    """Play all rows and report.

    Args:
        tasks: how many of the test split, or all where it has fewer.
        seeds: of agent and user.
        envs: rows of the vector environment.
        kwargs: of the environment.
    """
    total = DialogueVectorEnv(1, task_split="test", **kwargs).num_tasks
    drawn = np.sort(np.random.default_rng(0).permutation(total)[:tasks]).tolist()
    values = {row.name: [play_row(row, seed, drawn, envs, **kwargs) for seed in range(seeds)] for row in ROWS}
    return summary(values, kwargs)


def play_row(row: Row, seed: int, tasks: Sequence[int], envs: int, **kwargs: Any) -> dict[str, list[float]]:
    """One row with one seed of agent and user: metric -> a value for each of `tasks`."""
    played = play(
        DialogueVectorEnv(envs, task_split="test", user=row.user(seed=seed), **kwargs), make(row.agent), tasks, seed
    )
    return {metric: [_value(episode, metric) for episode in played] for metric in METRICS}


def summary(values: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Means, intervals and tests.

    Args:
        values: row -> what `play_row` gave for each seed, on the same tasks.
        kwargs: of the environment, for the protocol.
    """
    arrays = {
        (name, metric): np.array([one[metric] for one in played])
        for name, played in values.items()
        for metric in METRICS
    }
    seeds, tasks = next(iter(arrays.values())).shape
    bootstrap = PairedBootstrap(arrays, np.random.default_rng(0))
    pairs = [((first, "ndcg@10"), (second, "ndcg@10")) for first, second in PAIRS]
    comparisons = compare(bootstrap, pairs, np.random.default_rng(1))
    adjusted = holm([comparison.p for comparison in comparisons])
    return {
        "protocol": f"AgentRec-AmazonDialogue-v0, {dict(kwargs)}, task_split test, {tasks} tasks, pool of 20, uniform "
        f"negatives, seed 0; {seeds} seeds of agent and user; 95 % two-way paired bootstrap intervals",
        "tasks": tasks,
        "seeds": seeds,
        "rows": [
            {"name": row.name, "about": row.about}
            | {metric: _interval(bootstrap.interval((row.name, metric))) for metric in METRICS}
            for row in ROWS
        ],
        "differences": [
            {
                "first": first,
                "second": second,
                "ndcg@10": _interval(comparison.difference),
                "p_holm": p,
                "effect": comparison.effect,
            }
            for (first, second), comparison, p in zip(PAIRS, comparisons, adjusted, strict=True)
        ],
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [report["protocol"], "", f"{'':22}" + "".join(f"{metric:>20}" for metric in METRICS)]
    for row in report["rows"]:
        cells = [f"{row[metric]['mean']:.3f} ±{_half(row[metric]):.3f}" for metric in METRICS]
        lines.append(f"{row['name']:22}" + "".join(f"{cell:>20}" for cell in cells))
    lines.append("")
    for one in report["differences"]:
        gap = one["ndcg@10"]
        lines.append(
            f"{one['first']} - {one['second']}: N@10 {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}], "
            f"p {one['p_holm']:.2g} (Holm)"
        )
    return "\n".join(lines)


def write(report: dict[str, Any], path: Path) -> None:
    """The report as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _value(episode: Episode, metric: str) -> float:
    dialogue = episode.info.get("dialogue", {})  # a task that could not be made has none
    if metric == "utility":
        return float(sum(dialogue.get("utility", {}).values()))
    if metric in ("questions", "accepted"):
        return float(dialogue.get(metric) or 0)
    return episode.reward if metric == "reward" else float(episode.metrics[metric])


def _interval(interval: Interval) -> dict[str, float]:
    return {"mean": round(interval.mean, 4), "low": round(interval.low, 4), "high": round(interval.high, 4)}


def _half(interval: dict[str, float]) -> float:
    return (interval["high"] - interval["low"]) / 2


if __name__ == "__main__":
    sys.exit(main())
