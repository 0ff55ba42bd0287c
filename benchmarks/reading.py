"""How a policy reads `compare_candidates`, and what it loses there: `python benchmarks/reading.py --model FOLDER`.

Four tables, on the same test tasks. **Sums**: the policy beside `fusion` and beside sums of the table's signs, fitted
to what was taken in valid tasks, in as many training tasks, and to nothing but what the policy puts first in those
training tasks. Where the last one ranks as well as the others, the policy weighs the signs rightly, and what it
has less is what it reads wrongly; where it ranks as the policy does, the weights are what is wrong. **Hidden**: the
policy with each sign unknown, and **hidden from a sum** of them, of which neither learns again: a sign that costs the
policy more weighs more in it. **Orders**: the policy with the candidates in other orders, and one list by mean place in
all of them, which is better as far as the luck of an order is what it loses.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentrec_env.arguments import Parser, json_object
from agentrec_env.data.world import World
from agentrec_env.metrics import expected_metrics
from agentrec_env.scenario import Config, Scenario
from agentrec_env.statistics import Interval, PairedBootstrap
from agentrec_env.tools import TOOLS, Tool, resolve_tools
from agentrec_env.tools.comparison import SIGNS
from agentrec_env.types import Episode, FloatArray, Task
from agentrec_env.vector import RecVectorEnv
from agents.play import play
from agents.protocol import Agent, make
from algos.disguise import without
from benchmarks.ceiling import conditional_logit
from benchmarks.records import write_text
from benchmarks.runner import Reordered
from benchmarks.signs import STRIDE, Pools, draw, gather, side_by_side

POLICY = "policy"
SUM = "sum, of what was taken in valid tasks"
METRICS = ("ndcg@10", "hit@1")


@dataclass(frozen=True, eq=False)
class Ranked:
    """What somebody makes of N tasks."""

    values: Mapping[str, NDArray[np.float64]]
    """float64 [N] by metric."""
    same: NDArray[np.float64]
    """float64 [N]: whether it puts first what the policy puts first, or how likely it does."""


@dataclass(frozen=True)
class Line:
    """A line of a table."""

    name: str
    ndcg: Interval
    hit: Interval
    difference: Interval
    """In N@10, to the first line of the table."""
    same: float
    """Share of the tasks in which it puts first what the policy puts first."""


@dataclass
class Reading:
    """A policy, the test tasks that it reads, and the training tasks whose first choices say how it weighs signs.

    Args:
        world: With pools.
        agent: The policy.
        test: Tasks that it is judged on.
        taught: Training tasks.
        rows: Episodes played at once.
        seed: Of the choice of valid tasks.
    """

    world: World
    agent: Agent
    test: Sequence[Task]
    taught: Sequence[Task]
    rows: int = 64
    seed: int = 0

    @cached_property
    def own(self) -> list[Episode]:
        """The policy's episodes of the test tasks as they are."""
        return self._play(self.agent, self.test)

    @cached_property
    def weights(self) -> FloatArray:
        """Of the sum that is fitted to what was taken in valid tasks; as of :func:`fit`."""
        half = max(1, len(self.taught) // 2)
        valid = draw(self.world, "valid", 2, half, np.random.default_rng([self.seed, 4]))
        return fit(self.world, [(task, task.target) for task in valid])

    @cached_property
    def table(self) -> Pools:
        """What is written of the test tasks."""
        return signs_of(self.world, self.test)

    def sums(self) -> dict[str, Ranked]:
        """The policy, fusion, and sums of the signs by what they are fitted to.

        Raises:
            ValueError: The policy answers none of the training tasks.
        """
        answers = self._play(self.agent, self.taught)
        firsts = [(task, told.ranking[0]) for task, told in zip(self.taught, answers, strict=True) if told.ranking]
        if not firsts:
            raise ValueError(f"the policy answers none of {len(answers)} training tasks with a valid list")
        found = {POLICY: self._ranked(self.own), "fusion": self._ranked(self._play(make("fusion"), self.test))}
        taken = fit(self.world, [(task, task.target) for task in self.taught])
        found[SUM] = self._added(self.weights)
        found["sum, of what was taken in training tasks"] = self._added(taken)
        found["sum, of what the policy puts first in those"] = self._added(fit(self.world, firsts))
        return found

    def hidden(self) -> dict[str, Ranked]:
        """The policy, with all it can read and with each sign unknown."""
        found = {POLICY: self._ranked(self.own)}
        for sign in SIGNS:
            tools = [_hide(tool, sign) for tool in resolve_tools(TOOLS.names()).values()]
            found[f"without {sign}"] = self._ranked(self._play(self.agent, self.test, tools=tools))
        return found

    def hidden_from_a_sum(self) -> dict[str, Ranked]:
        """The same of the sum that was fitted to valid tasks, with all signs."""
        return {SUM: self._added(self.weights)} | {
            f"without {sign}": self._added(self.weights, without=sign) for sign in SIGNS
        }

    def orders(self, count: int) -> dict[str, Ranked]:
        """The mean of the policy's lists in its own and `count` other orders of the candidates, and one list of all."""
        played = [self.own]
        for order in range(1, count + 1):
            world = Reordered(self.world, order)
            played.append(self._play(self.agent, [world.task("test", task.index) for task in self.test], world))
        each = [self._ranked(episodes) for episodes in played]
        mean = Ranked(
            {metric: np.mean([one.values[metric] for one in each], axis=0) for metric in METRICS},
            np.mean([one.same for one in each[1:]], axis=0),
        )
        told = zip(self.test, *played, strict=True)
        scores = -np.array([np.mean([places(task, each) for each in lists], axis=0) for task, *lists in told])
        return {f"mean of {len(played)} orders": mean, "one list by mean place": self._scored(scores)}

    def _play(
        self, agent: Agent, tasks: Sequence[Task], world: World | None = None, tools: Sequence[Tool] | None = None
    ) -> list[Episode]:
        envs = RecVectorEnv(self.rows, world=world or self.world, task_split=tasks[0].split, tools=tools)
        return play(envs, agent, tasks=[task.index for task in tasks])

    def _ranked(self, episodes: Sequence[Episode]) -> Ranked:
        values = {metric: np.array([each.metrics.get(metric, 0.0) for each in episodes]) for metric in METRICS}
        pairs = zip(episodes, self.own, strict=True)
        same = [bool(each.ranking) and each.ranking[:1] == own.ranking[:1] for each, own in pairs]
        return Ranked(values, np.array(same, np.float64))

    def _added(self, weights: FloatArray, without: str = "") -> Ranked:
        """By a sum of the signs; one that is unknown of all candidates says nothing of any."""
        signs = [0 * cells if sign == without else cells for sign, cells in self.table.shown.items()]
        return self._scored(weights[side_by_side(signs)].sum(axis=2))

    def _scored(self, scores: FloatArray) -> Ranked:
        """By scores [N, C]; ties are broken at random."""
        best = scores == scores.max(axis=1, keepdims=True)
        firsts = [own.ranking[0] if own.ranking else -1 for own in self.own]
        chosen = np.stack([task.candidates == first for task, first in zip(self.test, firsts, strict=True)])
        same = (best & chosen).sum(axis=1) / best.sum(axis=1)
        return Ranked(expected_metrics(scores, self.table.target, METRICS), same)


def signs_of(world: World, tasks: Sequence[Task]) -> Pools:
    """What the table says of the candidates of some tasks."""
    return gather(world, tasks, [signal for signal, _, _ in SIGNS.values()])


def fit(world: World, lessons: Sequence[tuple[Task, int]]) -> FloatArray:
    """float64 [L (LEVELS + 2)]: the weights under which an item is the likeliest to be taken in each task.

    See :func:`benchmarks.ceiling.conditional_logit`; cells as of :func:`benchmarks.signs.side_by_side`.
    """
    tasks, items = zip(*lessons, strict=True)
    cells = side_by_side(list(signs_of(world, tasks).shown.values()))
    taken = np.stack([task.candidates == item for task, item in zip(tasks, items, strict=True)])
    return conditional_logit(cells, taken, STRIDE * cells.shape[2])


def places(task: Task, episode: Episode) -> FloatArray:
    """float64 [C]: place of each candidate in the list, from 1, and for the others the mean of the places left."""
    unnamed = (len(episode.ranking) + 1 + len(task.candidates)) / 2
    place = {item: number for number, item in enumerate(episode.ranking, 1)}
    return np.array([place.get(item, unnamed) for item in task.candidates.tolist()], np.float64)


def lines(ranked: Mapping[str, Ranked], generator: np.random.Generator) -> list[Line]:
    """A table; intervals of 95 % over tasks, paired."""
    values = {(name, metric): each.values[metric] for name, each in ranked.items() for metric in METRICS}
    bootstrap = PairedBootstrap(values, generator)
    first = next(iter(ranked))
    return [
        Line(
            name,
            bootstrap.interval((name, "ndcg@10")),
            bootstrap.interval((name, "hit@1")),
            bootstrap.difference((name, "ndcg@10"), (first, "ndcg@10")),
            float(each.same.mean()),
        )
        for name, each in ranked.items()
    ]


def table(found: Sequence[Line]) -> str:
    """Markdown."""
    text = ["| | N@10 | H@1 | Δ N@10 | same first item |", "|:--|--:|--:|--:|--:|"]
    for line in found:
        half = (line.difference.high - line.difference.low) / 2
        change = "" if line is found[0] else f"{line.difference.mean:+.3f} ±{half:.3f}"
        text.append(f"| {line.name} | {_value(line.ndcg)} | {_value(line.hit)} | {change} | {line.same:.0%} |")
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables and, with --out, keep them."""
    parser = Parser(prog="reading.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny", help='the policy: "tiny", the embedded one, a folder or a hub id')
    parser.add_argument(
        "--model-args",
        type=json_object,
        default={"temperature": 0.0},
        metavar="JSON",
        help='of agents.llm.agent:LLMAgent (default: {"temperature": 0})',
    )
    parser.add_argument("--dataset", default="synthetic", metavar="NAME|PATH", help="as for run_all.py")
    parser.add_argument("--split", default="temporal", choices=("temporal", "leave_one_out"))
    parser.add_argument("--tasks", type=int, default=500, help="test tasks, those of run_all.py (500)")
    parser.add_argument("--taught", type=int, default=3_000, help="tasks that a sum is fitted to (3,000)")
    parser.add_argument("--orders", type=int, default=7, help="other orders of the candidates (7)")
    parser.add_argument("--num-envs", type=int, default=64, metavar="N", help="episodes played at once (64)")
    parser.add_argument("--seed", type=int, default=0, help="of pools, the choice of tasks and resampling")
    parser.add_argument("--out", type=Path, help="folder for reading.md and reading.json")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    for name in ("tasks", "taught", "orders", "num_envs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1 is needed")
    try:
        return _read(options, shlex.join(["python", "benchmarks/reading.py", *given]))
    except (ValueError, LookupError, TypeError, OSError) as error:
        print(f"reading.py: {error}", file=sys.stderr)
        return 2


def _read(options: argparse.Namespace, command: str) -> int:
    seed = options.seed
    world = Scenario(Config(dataset=options.dataset, split=options.split, seed=seed)).world
    agent = make("llm", model=options.model, **options.model_args)
    test = draw(world, "test", 1, options.tasks, np.random.default_rng([seed, 1]))  # as benchmarks.planning chooses
    taught = draw(world, "train", 1, options.taught, np.random.default_rng([seed, 2]))
    for split, tasks in (("test", test), ("training", taught)):
        if not tasks:
            raise ValueError(
                f"{options.dataset} has no {split} tasks under --split {options.split}; try the other split"
            )
    reading = Reading(world, agent, test, taught, options.num_envs, seed)
    heading = f"{world.protocol}; {len(test):,} test tasks, {len(taught):,} training tasks."
    print(f"{heading}\n", flush=True)
    texts, results = [f"# Reading\n\n{heading}\n"], {}
    tables: dict[str, Callable[[], dict[str, Ranked]]] = {
        "Sums": reading.sums,
        "Hidden": reading.hidden,
        "Hidden from a sum": reading.hidden_from_a_sum,
        "Orders": lambda: reading.orders(options.orders),
    }
    for part, (title, ranked) in enumerate(tables.items()):
        found = lines(ranked(), np.random.default_rng([seed, 3, part]))
        results[title.lower().replace(" ", "_")] = [asdict(line) for line in found]
        texts.append(f"## {title}\n\n{table(found)}\n")
        print(texts[-1], flush=True)
    if options.out:
        about = {"command": command, "protocol": world.protocol, "tasks": len(test), "taught": len(taught)}
        write_text(options.out / "reading.md", "\n".join([*texts, f"`{command}`\n"]))
        write_text(options.out / "reading.json", json.dumps(about | results, indent=1) + "\n")
    return 0


def _hide(tool: Tool, sign: str) -> Tool:
    return replace(tool, function=lambda view, **arguments: without(tool(view, **arguments), [sign]))


def _value(interval: Interval) -> str:
    return f"{interval.mean:.3f} ±{(interval.high - interval.low) / 2:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
