"""Which signs `compare_candidates` shows, judged without a look at test tasks: `python benchmarks/signs.py`.

A conditional logit over graded signs (the reader `written evidence, additive`) is fitted on the pools of some valid
tasks and judged on those of other users, five times. Beside the signs that the tool shows stand the same with one left
out, with one more of all that the tools know, and with eighths of each signal's values in place of the tool's grades. A
choice that is worse than one of these by more than its interval should be made anew. Test tasks are never read.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.world import World
from agentrec_env.metrics import expected_metrics
from agentrec_env.scenario import Config, Scenario
from agentrec_env.statistics import Interval, PairedBootstrap
from agentrec_env.tools.comparison import SIGNS
from agentrec_env.tools.signals import SIGNALS, matrix
from agentrec_env.tools.wording import LEVELS
from agentrec_env.types import FloatArray, IntArray, Task
from benchmarks.ceiling import conditional_logit
from benchmarks.records import write_text

SHOWN = "as shown"
FOLDS = 5
"""Parts of the users, each judged by what was learned from the others."""
STRIDE = LEVELS + 2
"""Weights of a sign: one for each strength from 0, and for not being known."""


@dataclass(frozen=True, eq=False)
class Pools:
    """G pools of C candidates."""

    shown: dict[str, IntArray]
    """int64 [G, C] by sign of the tool: 0 for unknown, else one more than its strength."""
    others: dict[str, FloatArray]
    """float64 [G, C] by signal, nan where unknown."""
    target: IntArray
    """int64 [G]: place of what was taken."""
    user: IntArray
    """int64 [G]."""


@dataclass(frozen=True)
class Choice:
    """What a choice of signs is worth."""

    name: str
    ndcg: Interval
    hit: Interval
    difference: Interval
    """In N@10, to the signs as shown."""


def draw(world: World, task_split: str, pools: int, most: int, generator: np.random.Generator) -> list[Task]:
    """Tasks of a task split, at most `most`, and as many pools of each: the first its evaluation pool."""
    chosen = generator.permutation(world.num_tasks(task_split))[:most]
    return [world.task(task_split, int(index), pool or None) for pool in range(pools) for index in chosen]


def gather(world: World, tasks: Sequence[Task], signals: Sequence[str]) -> Pools:
    """Signs of the candidates of some tasks, and these signals, those of the signs among them."""
    shown: dict[str, list[IntArray]] = {word: [] for word in SIGNS}
    raw = []
    for task in tasks:
        view = world.view(task)
        values = matrix(view, task.candidates, signals)
        raw.append(values)
        for word, (signal, _, grade) in SIGNS.items():
            column = values[:, signals.index(signal)]
            shown[word].append(np.where(np.isnan(column), 0, 1 + grade(view, column)))
    stacked = np.stack(raw)
    return Pools(
        {word: np.stack(cells) for word, cells in shown.items()},
        {name: stacked[:, :, column] for column, name in enumerate(signals)},
        np.array([int(np.flatnonzero(task.candidates == task.target)[0]) for task in tasks]),
        np.array([task.user for task in tasks]),
    )


def eighths(values: FloatArray) -> IntArray:
    """int64 of the same shape: 0 for nan, 1 for the least and for what is no more than it, to 9 by eighths of the
    others."""
    known = values[~np.isnan(values)]
    if not len(known):
        return np.zeros(values.shape, np.int64)
    above = known[known > known.min()]
    edges = np.unique(np.quantile(above, np.arange(1, LEVELS) / LEVELS)) if len(above) else np.zeros(0)
    cells = 2 + np.searchsorted(edges, values, side="left")
    cells[values <= known.min()] = 1
    cells[np.isnan(values)] = 0
    return cells


def choices(pools: Pools) -> dict[str, list[IntArray]]:
    """The choices compared, by name."""
    shown = pools.shown
    found = {SHOWN: list(shown.values())}
    found |= {f"without {left}": [cells for word, cells in shown.items() if word != left] for left in shown}
    found["in eighths"] = [eighths(pools.others[signal]) for signal, _, _ in SIGNS.values()]
    taken = {signal for signal, _, _ in SIGNS.values()}
    more = {name: eighths(values) for name, values in pools.others.items() if name not in taken}
    return found | {f"with {name}": [*shown.values(), cells] for name, cells in more.items() if np.ptp(cells)}


def side_by_side(signs: Sequence[IntArray]) -> IntArray:
    """int64 [G, C, L]: which weight of a sum is that of each candidate's strength in each of L signs [G, C]."""
    return np.stack([sign + STRIDE * place for place, sign in enumerate(signs)], axis=2)


def judge(signs: list[IntArray], pools: Pools, seed: int) -> dict[str, NDArray[np.float64]]:
    """N@10 and H@1 of each pool by a reader that learned from other users."""
    cells = side_by_side(signs)
    part = np.random.default_rng([seed, 1]).integers(FOLDS, size=int(pools.user.max()) + 1)[pools.user]
    taken = pools.target[:, None] == np.arange(cells.shape[1])
    scores = np.empty(taken.shape)
    for fold in range(FOLDS):
        weights = conditional_logit(cells[part != fold], taken[part != fold], STRIDE * len(signs))
        scores[part == fold] = weights[cells[part == fold]].sum(axis=2)
    return expected_metrics(scores, pools.target, ("ndcg@10", "hit@1"))


def compare(pools: Pools, seed: int) -> list[Choice]:
    """All choices, the shown one first; intervals over users."""
    owner = np.unique(pools.user, return_inverse=True)[1]
    counts = np.bincount(owner)
    values = {
        (name, metric): np.bincount(owner, weights=each) / counts
        for name, signs in choices(pools).items()
        for metric, each in judge(signs, pools, seed).items()
    }
    bootstrap = PairedBootstrap(values, np.random.default_rng([seed, 2]), resamples=2_000)
    return [
        Choice(
            name,
            bootstrap.interval((name, "ndcg@10")),
            bootstrap.interval((name, "hit@1")),
            bootstrap.difference((name, "ndcg@10"), (SHOWN, "ndcg@10")),
        )
        for name, metric in values
        if metric == "ndcg@10"
    ]


def table(found: list[Choice]) -> str:
    """Markdown: the shown signs, then the others from best to worst."""
    lines = ["| signs | N@10 | H@1 | Δ N@10 |", "|:--|--:|--:|--:|"]
    for choice in [found[0], *sorted(found[1:], key=lambda each: -each.difference.mean)]:
        low, high = choice.difference.low, choice.difference.high
        change = "" if choice.name == SHOWN else f"{choice.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append(f"| {choice.name} | {choice.ndcg.mean:.4f} | {choice.hit.mean:.4f} | {change} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table of each world and, with --out, keep it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", action="append", help="as for run_all.py, repeatable (default: synthetic)")
    parser.add_argument("--split", default="temporal", choices=("temporal", "leave_one_out"))
    parser.add_argument("--tasks", type=int, default=2_500, help="valid tasks, at most")
    parser.add_argument("--draws", type=int, default=2, help="pools for each of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for signs.md and signs.json")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    texts, results = [], {}
    for source in options.dataset or ["synthetic"]:
        world = Scenario(Config(dataset=source, split=options.split)).world
        tasks = draw(world, "valid", options.draws, options.tasks, np.random.default_rng(options.seed))
        pools = gather(world, tasks, SIGNALS.names())
        found = compare(pools, options.seed)
        heading = f"## {world.protocol}\n\n{len(pools.user):,} pools of {len(np.unique(pools.user)):,} users."
        texts.append(f"{heading}\n\n{table(found)}\n")
        results[world.dataset.name] = [asdict(choice) for choice in found]
        print(texts[-1], flush=True)
    if options.out:
        command = shlex.join(["python", "benchmarks/signs.py", *given])
        write_text(options.out / "signs.md", "\n".join(["# Signs\n", *texts, f"`{command}`\n"]))
        write_text(options.out / "signs.json", json.dumps({"command": command, "worlds": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
