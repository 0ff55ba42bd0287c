"""What a run will play: datasets and tracks with their protocol, their tasks, and the units of each row."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentrec_env.data.world import World
from agentrec_env.scenario import Config, Scenario
from benchmarks import analysis, runner
from benchmarks.report import versions
from benchmarks.runner import Unit
from benchmarks.suite import Row, Size, Track

POOLS = 5_000
"""Pools in which the positive's place is tested."""


@dataclass(frozen=True)
class Plan:
    """One dataset on one track."""

    dataset: str
    source: str
    split: str
    seed: int
    """Of pools, and the first seed of the rows."""
    track: Track
    protocol: str
    settings: dict[str, Any]
    """What must not change between the starts that share a folder."""
    tasks: tuple[int, ...]
    again: tuple[int, ...]
    """Tasks that are played in another order too."""
    seeds: int
    """At most this many seeds of a row."""
    first: bool
    """Whether it is the first track of the dataset."""
    world: World

    def units(self, rows: Sequence[Row]) -> list[Unit]:
        """What is played of some rows; of those that need a policy of their own, the seeds that have one."""
        # Rows that are fitted take longest. First on the first track, for a run that ends with one keeps a single
        # process busy; last on the others, so that they find in the cache what the first track fitted.
        here = [row for row in rows if not row.tracks or self.track.name in row.tracks]
        here.sort(key=lambda row: (row.seed_argument is None) == self.first)
        units = [self._unit(row, seed, 0, self.tasks) for row in here for seed in self._seeds(row)]
        for row in here:
            if not row.ablation:
                orders = range(1, self.track.reorders + 1) if self._seeds(row) else ()
                units += [self._unit(row, self._seeds(row)[0], order, self.again) for order in orders]
        return units

    def places(self) -> list[int]:
        """Where the positive stands in the test pools, of at most POOLS tasks."""
        if self.world.catalog:
            return []
        tasks = (self.world.task("test", index) for index in range(min(self.world.num_tasks("test"), POOLS)))
        return [int(np.flatnonzero(task.candidates == task.target)[0]) for task in tasks]

    def _seeds(self, row: Row) -> list[int]:
        if row.stage:
            return sorted(row.folders)[: row.seeds]
        return [self.seed + seed for seed in range(min(row.seeds, self.seeds))]

    def _unit(self, row: Row, seed: int, order: int, tasks: tuple[int, ...]) -> Unit:
        return Unit(self.dataset, self.source, self.split, self.seed, self.track, row.at(seed), seed, order, tasks)


def plans(source: str, split: str, seed: int, tracks: Sequence[Track], size: Size, tasks: int | None) -> Iterator[Plan]:
    """The tracks of a dataset that its items suffice for.

    Args:
        source: What is loaded.
        split: Name of the split.
        seed: Of pools and of the choice of tasks.
        tracks: Wanted.
        size: How much is played.
        tasks: Test tasks a track, in place of the size's.

    Raises:
        ValueError: No tasks.
    """
    name = Path(source).name or source
    items = runner.load_dataset(source).num_items
    fitting = [track for track in tracks if track.pool is None or 2 * track.pool <= items] or list(tracks)
    for track in tracks:
        if track not in fitting:
            print(f"{name} has {items} items, too few for track {track.name}: it is left out", file=sys.stderr)
    for track in fitting:
        world = runner.open_world(source, split, seed, track)
        available = world.num_tasks("test")
        if not available:
            raise ValueError(f"{source} has no test tasks under --split {split}; try the other split")
        try:
            Scenario(Config(task_split="test", **track.rules), world)
        except TypeError as error:
            raise ValueError(f"--env: {error}") from error
        wanted = size.tasks or available if tasks is None else tasks
        if wanted < 1:
            raise ValueError(f"--tasks {wanted}: at least one task is needed")
        count = min(available, max(1, round(wanted * track.share)))
        # In random order, so that the tasks played again are the first blocks and meet the same seeds.
        chosen = tuple(np.random.default_rng([seed, 1]).permutation(available)[:count].tolist())
        again = chosen[: size.reorder_tasks]
        protocol = (
            f"{world.protocol}; {count:,} of {available:,} test tasks; lists of {analysis.LIST}; AgentRec-Amazon-v0"
        )
        protocol += "".join(f"; {name} {json.dumps(value)}" for name, value in track.rules.items())
        settings = {"world": world.key, "env": dict(track.env), "tasks": count, "reorder_tasks": len(again)}
        first = track is fitting[0]
        yield Plan(name, source, split, seed, track, protocol, settings, chosen, again, size.seeds, first, world)


def settings(plans: Sequence[Plan]) -> dict[str, Any]:
    """What must not change between the starts that share a folder.

    Raises:
        ValueError: Two datasets of one name.
    """
    run = {
        "agentrec-env": versions().get("agentrec-env", "unknown"),
        "code": _code(),
        "split": plans[0].split,
        "seed": plans[0].seed,
        "block": runner.BLOCK,
    }
    tracks = {f"{plan.dataset}/{plan.track.name}": plan.settings for plan in plans}
    if len(tracks) < len(plans):
        raise ValueError("two datasets have the same name; compare them in two runs with two --out folders")
    return {"run": run, "tracks": tracks}


def _code() -> str:
    """A hash of the sources that results depend on, so that what another version played is not taken for this one's."""
    root = Path(__file__).resolve().parent.parent
    paths = [path for package in ("agentrec_env", "agents") for path in (root / package).rglob("*.py")]
    paths += [root / "benchmarks" / f"{name}.py" for name in ("runner", "suite", "records", "permuted")]
    digest = hashlib.sha256(repr({name: versions().get(name) for name in ("numpy", "torch", "lightgbm")}).encode())
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
