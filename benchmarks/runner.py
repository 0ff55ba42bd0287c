"""Plays the units of a run, in worker processes that may fail without ending it.

A unit (dataset, track, row, seed, candidate order) is played by one process, block by block; a block is written when it
is done. What a block holds depends on its tasks and seeds alone, so any number of processes gives the same results.
"""

from __future__ import annotations

import copy
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.load import load
from agentrec_env.data.splits import SPLITS, Split
from agentrec_env.data.world import World
from agentrec_env.episodes import describe
from agentrec_env.types import Task
from benchmarks.permuted import permute
from benchmarks.records import Block, Folder, Place, Record
from benchmarks.suite import Row, Track

BLOCK = 128
"""Tasks of a block."""
KEPT = 8
"""Blocks of a unit whose whole episodes are kept, texts included: the first 1,024 tasks, which are a random sample and
the same for every row, in the pool's own order. Longer units and the other orders leave their records alone."""


@dataclass(frozen=True)
class Unit:
    """What one process plays: an agent with one seed on the tasks of one track, in one order of the candidates."""

    dataset: str
    """Name of the dataset in results."""
    source: str
    """Where it is loaded from."""
    split: str
    pool_seed: int
    track: Track
    row: Row
    seed: int
    order: int
    tasks: tuple[int, ...]

    @property
    def place(self) -> Place:
        """Where its blocks are kept."""
        return Place(self.dataset, self.track.name, self.row.key, self.seed, self.order)

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """Its tasks, in blocks."""
        return [self.tasks[begin : begin + BLOCK] for begin in range(0, len(self.tasks), BLOCK)]

    @property
    def about(self) -> dict[str, Any]:
        """What its episodes say of themselves."""
        names = {"dataset": self.dataset, "split": self.split, "track": self.track.name, "pool": self.track.title}
        return names | {"agent": self.row.name, "role": self.row.role, "seed": self.seed}

    @property
    def label(self) -> str:
        """Its name in messages."""
        order = f", order {self.order}" if self.order else ""
        return f"{self.row.name} on {self.dataset}/{self.track.name} (seed {self.seed}{order})"


@dataclass(frozen=True)
class Update:
    """News of a unit: tasks played since the last news, or the error that ended it."""

    unit: Unit
    tasks: int = 0
    error: str | None = None
    trace: str = ""


def run(units: Sequence[Unit], folder: Folder, jobs: int) -> Iterator[Update]:
    """Play what is missing of the units; `jobs` 0 plays in this process."""
    groups: dict[tuple[str, ...], list[Unit]] = {}
    # Lanes hold language models, which take longest by far, so they begin first; all units of a model together.
    for unit in sorted(units, key=lambda unit: (not unit.row.lane, unit.row.key if unit.row.lane else "")):
        own = (unit.dataset, unit.track.name, unit.row.key)
        groups.setdefault((unit.row.lane,) if unit.row.lane else own, []).append(unit)
    queue = list(groups.values())
    if jobs <= 0:
        agents = Agents()
        for unit in (unit for group in queue for unit in group):
            yield from _updates(unit, folder, agents)
        return
    workers = [_Worker(folder) for _ in range(min(jobs, len(queue)))]
    try:
        while sum(worker.take(queue) for worker in workers):
            ready = wait([handle for worker in workers if worker.unit for handle in worker.handles])
            for worker in workers:
                if worker.unit and not set(worker.handles).isdisjoint(ready):
                    yield from worker.news()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that plays one unit after another; replaced when it dies.

    It takes all units of a row on a track, because seeds and orders of one agent share what it was fitted on; or all of
    a lane.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._group: list[Unit] = []
        self._context = multiprocessing.get_context("spawn")
        self.unit: Unit | None = None
        self._process: BaseProcess | None = None
        self._connection: Connection[Any, Any] | None = None

    @property
    def handles(self) -> list[Any]:
        assert self._process is not None
        return [self._connection, self._process.sentinel]

    def take(self, queue: list[list[Unit]]) -> bool:
        """Start the next unit where this worker is free; whether it has one."""
        if self.unit is None and (self._group or queue):
            self._group = self._group or queue.pop(0)
            self.unit = self._group.pop(0)
            if self._process is None:
                self._connection, theirs = self._context.Pipe()
                self._process = self._context.Process(target=_serve, args=(theirs, self._folder), daemon=True)
                self._process.start()
                theirs.close()
            assert self._connection is not None
            self._connection.send(self.unit)
        return self.unit is not None

    def news(self) -> Iterator[Update]:
        unit = self.unit
        assert unit is not None
        assert self._connection is not None
        assert self._process is not None
        try:
            while self._connection.poll():
                update = self._connection.recv()
                if update is None:
                    self.unit = None
                    return
                yield update
            if self._process.is_alive():
                return
        except EOFError:
            pass
        self._process.join()
        code = self._process.exitcode
        self.unit = self._process = None
        yield Update(unit, error=f"its process ended with exit code {code}")

    def stop(self) -> None:
        """End the process: an idle one leaves by itself when its connection closes, a busy one is told to."""
        if self._process is None or self._connection is None:
            return
        self._connection.close()
        if self.unit is not None:
            self._process.terminate()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def _serve(connection: Connection[Any, Any], folder: Folder) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells parent and children; the parent decides
    agents = Agents()
    try:
        while True:
            for update in _updates(connection.recv(), folder, agents):
                connection.send(update)
            connection.send(None)
    except (EOFError, BrokenPipeError):
        pass


def _updates(unit: Unit, folder: Folder, agents: Agents) -> Iterator[Update]:
    try:
        for tasks in play_unit(unit, folder, agents):
            yield Update(unit, tasks=tasks)
    except Exception as error:  # noqa: BLE001 - an agent that cannot be made or bound must not end the run
        yield Update(unit, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())


def play_unit(unit: Unit, folder: Folder, agents: Agents) -> Iterator[int]:
    """Play the unit's missing blocks and write each; yields the number of tasks of each block.

    Raises:
        RuntimeError: the agent says that it has `stopped` (an endpoint that is gone, a budget that is used up). What
            it played meanwhile is not kept, for those episodes say nothing of it.
    """
    missing = [i for i, block in enumerate(folder.finished(unit.place, unit.blocks)) if block is None]
    if not missing:
        return
    begin = time.perf_counter()
    envs, play = open_envs(unit)
    agent = agents.get(unit, envs)
    prepare = time.perf_counter() - begin
    for number in missing:
        begin = time.perf_counter()
        tasks = unit.blocks[number]
        episodes = play(envs, agent, tasks=list(tasks), seed=_block_seed(unit, number))
        seconds = time.perf_counter() - begin
        stopped = getattr(agent, "stopped", None)
        if stopped:
            raise RuntimeError(f"{stopped}. Finished blocks are kept: the same command goes on from there")
        if number < KEPT and not unit.order:
            header = describe(episodes, unit.about, getattr(envs, "world", None))
            folder.keep(unit.place, number, episodes, header)
        folder.write(unit.place, number, Block(tasks, seconds, prepare, tuple(Record.of(e) for e in episodes)))
        prepare = 0.0
        yield len(tasks)


def open_envs(unit: Unit) -> tuple[Any, Callable[..., Any]]:
    """The unit's vector environment and the loop that plays it."""
    from agentrec_env.vector import RecVectorEnv
    from agents.play import play

    world = open_world(unit.source, unit.split, unit.pool_seed, unit.track)
    if unit.order:
        world = Reordered(world, unit.order)
    rules = {**unit.track.rules, **unit.row.env}
    if unit.row.permuted:
        rules["tools"] = permute(world, rules.get("tools"), unit.row.permuted)
    return RecVectorEnv(unit.row.num_envs, world=world, task_split="test", **rules), play


@lru_cache(maxsize=4)
def load_dataset(source: str) -> Dataset:
    """The dataset of a source, kept for the next unit."""
    return load(source)


@lru_cache(maxsize=4)
def load_split(source: str, split: str) -> Split:
    """The split of a source, kept because what agents are fitted on hangs on it."""
    return SPLITS.get(split)(load_dataset(source))


def open_world(source: str, split: str, seed: int, track: Track) -> World:
    """Dataset, split and pools of a track."""
    return World(load_dataset(source), split=load_split(source, split), seed=seed, **track.world)


class Reordered(World):
    """The same tasks with the candidates in another order, drawn by (order, pool seed, task)."""

    def __init__(self, world: World, order: int) -> None:
        self.__dict__.update(copy.copy(world).__dict__)
        self._order = order

    def task(self, task_split: str, index: int, seed: int | None = None) -> Task:
        """Task `index` with its candidates shuffled once more."""
        task = super().task(task_split, index, seed)
        candidates = np.random.default_rng([self._order, self.seed, index]).permutation(task.candidates)
        candidates.flags.writeable = False
        return replace(task, candidates=candidates)


class Agents:
    """Makes the agents of one process, and keeps the last of a lane: models load slowly, and budgets are a run's."""

    def __init__(self) -> None:
        self._key: tuple[str, int] | None = None
        self._last: Any = None

    def get(self, unit: Unit, envs: Any) -> Any:
        """The unit's agent, bound to `envs`."""
        agent = self._held(unit) if unit.row.lane else _make(unit)
        if hasattr(agent, "bind"):
            agent.bind(envs)
        return agent

    def _held(self, unit: Unit) -> Any:
        key = (unit.row.key, unit.seed if unit.row.seed_argument else 0)
        if key != self._key:
            self._key = self._last = None  # its memory is free before the next one is loaded
            self._key, self._last = key, _make(unit)
        return self._last


def _make(unit: Unit) -> Any:
    from agents import make

    return make(unit.row.agent, **unit.row.arguments(unit.seed))


def _block_seed(unit: Unit, number: int) -> int:
    return int(np.random.SeedSequence([unit.pool_seed, unit.seed, number]).generate_state(1)[0])
