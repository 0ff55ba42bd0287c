"""One dataset under one protocol: the tasks, their pools, and the views on them. Built once, shared by every row.

Pools are drawn by ``(seed, task split, index)``, so an evaluation pool is the same in every process, order and number
of workers; an episode seed draws fresh negatives and a fresh order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.splits import SPLITS, TASK_SPLITS, Split
from agentrec_env.data.view import ItemCounts, View
from agentrec_env.registry import Registry
from agentrec_env.types import IntArray, Task

MAX_CANDIDATES = 1000
HARD_POOL = 10
"""Hard negatives are drawn from the ``HARD_POOL * (C - 1)`` items most like the history."""


@dataclass(frozen=True, eq=False)
class Draw:
    """What a sampler of negatives is asked for."""

    world: World
    fold: int
    """Evidence that the task may use."""
    history: IntArray
    """int64 [H], the latest known items."""
    forbidden: IntArray
    """int64 [F], sorted: what the user took up to and with the target."""
    count: int
    """Negatives wanted; at least as many items are not forbidden."""


Sampler = Callable[[Draw, np.random.Generator], IntArray]
"""int64 [count]: different items, none of them forbidden."""
NEGATIVES: Registry[Sampler] = Registry("negative sampler")


class World:
    """Tasks and views of one dataset.

    Args:
        dataset: the interactions.
        split: "temporal", "leave_one_out", a registered name, or a ``Split`` of the dataset.
        num_candidates: pool size C, 2..1,000, or "catalog": every item is a candidate and pools are empty arrays.
        negatives: "uniform", "popularity", "hard", or a registered sampler.
        history_length: how many of the latest items a task shows (AgenticRec, sec. 3: 10).
        seed: of the evaluation pools.

    Raises:
        ValueError: a pool larger than the data allows, or a number out of range.
        UnknownNameError: an unknown split or sampler.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str | Split = "temporal",
        num_candidates: int | Literal["catalog"] = 20,
        negatives: str = "uniform",
        history_length: int = 10,
        seed: int = 0,
    ) -> None:
        if isinstance(num_candidates, str):
            if num_candidates != "catalog":
                raise ValueError(f"num_candidates is {num_candidates!r}; give 2..{MAX_CANDIDATES} or 'catalog'")
        elif isinstance(num_candidates, bool) or not 2 <= num_candidates <= MAX_CANDIDATES:
            raise ValueError(f"num_candidates is {num_candidates!r}; give 2..{MAX_CANDIDATES} or 'catalog'")
        elif num_candidates > dataset.num_items:
            raise ValueError(
                f"{num_candidates} candidates asked for, but dataset {dataset.name!r} has {dataset.num_items} items; "
                f"use num_candidates <= {dataset.num_items} or num_candidates='catalog'"
            )
        if history_length < 1:
            raise ValueError(f"history_length is {history_length}; it must be at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        self.dataset = dataset
        self.split = split if isinstance(split, Split) else SPLITS.get(split)(dataset)
        self.num_candidates = num_candidates
        self.negatives = negatives
        self.history_length = history_length
        self.seed = seed
        self._sampler = NEGATIVES.get(negatives)
        self._positions: dict[str, NDArray[np.int64]] = {}

    @property
    def catalog(self) -> bool:
        """Whether every item is a candidate."""
        return self.num_candidates == "catalog"

    @property
    def protocol(self) -> str:
        """The sentence that must stand beside every number measured here."""
        pool = "whole catalogue" if self.catalog else f"1 + {int(self.num_candidates) - 1} {self.negatives} negatives"
        return (
            f"{self.dataset.name} ({self.dataset.fingerprint}), {self.split.name}, {pool}, history <= "
            f"{self.history_length}, pool seed {self.seed}"
        )

    def positions(self, task_split: str) -> NDArray[np.int64]:
        """int64 [M, 2]: user and place of each target of ``task_split``.

        Left out are those of users who have taken so much that a pool cannot be filled.
        """
        if task_split not in self._positions:
            positions = self.split.positions(task_split)
            room = self.dataset.num_items - (0 if self.catalog else int(self.num_candidates) - 1)
            full = np.flatnonzero(np.diff(self.dataset.indptr)[positions[:, 0]] > room)
            crowded = [row for row in full if len(self._taken(*positions[row].tolist())) > room]
            self._positions[task_split] = np.delete(positions, crowded, axis=0)
        return self._positions[task_split]

    def _taken(self, user: int, position: int) -> IntArray:
        """int64 [F], sorted: what ``user`` took up to and with ``position``, and at the same moment, if times count."""
        data = self.dataset
        rows = data.rows(user)
        until = position + 1
        if self.split.by_time:
            assert data.time is not None
            times = data.time[rows]
            until = int(np.searchsorted(times, times[position], side="right"))
        return np.unique(data.item[rows.start : rows.start + until].astype(np.int64))

    def num_tasks(self, task_split: str) -> int:
        """How many tasks ``task_split`` has."""
        return len(self.positions(task_split))

    def task(self, task_split: str, index: int, seed: int | None = None) -> Task:
        """Task ``index`` of ``task_split``.

        Args:
            task_split: "train", "valid" or "test".
            index: 0..num_tasks-1.
            seed: of the negatives and of the order; None gives the fixed evaluation pool of that task.

        Raises:
            IndexError: no such task.
        """
        positions = self.positions(task_split)
        if not 0 <= index < len(positions):
            raise IndexError(
                f"task {index} of {task_split!r}: there are {len(positions)} tasks, 0..{len(positions) - 1}"
            )
        user, position = (int(x) for x in positions[index])
        entropy = [self.seed, TASK_SPLITS.index(task_split), index] + (
            [] if seed is None else [seed + 1]
        )  # zeros at the end would not count
        return self.build_task(task_split, index, user, position, np.random.default_rng(entropy))

    def build_task(self, task_split: str, index: int, user: int, position: int, generator: np.random.Generator) -> Task:
        """The task whose target is the interaction at ``position`` of ``user``, with a pool from ``generator``."""
        data, split = self.dataset, self.split
        row = int(data.indptr[user]) + position
        time = None if data.time is None else int(data.time[row])
        known = data.item[split.known(user, position, time)].astype(np.int64)
        history = known[-self.history_length :]
        target = int(data.item[row])
        fold = split.fold(user, time, task_split)
        if self.catalog:
            candidates = np.zeros(0, np.int64)
        else:
            forbidden = self._taken(user, position)
            count = int(self.num_candidates) - 1
            free = data.num_items - len(forbidden)
            if free < count:
                raise ValueError(
                    f"{count} negatives asked for, but user {data.user_ids[user]!r} leaves {free} items not yet taken; "
                    f"use num_candidates <= {free + 1}"
                )
            negatives = self._sampler(Draw(self, fold, history, forbidden, count), generator)
            candidates = generator.permutation(np.append(negatives, target)).astype(np.int64)
        candidates.flags.writeable = history.flags.writeable = False
        return Task(task_split, index, user, position, time, history, target, candidates, fold)

    @cached_property
    def _counts(self) -> ItemCounts:
        return ItemCounts(self.split)

    def view(self, task: Task) -> View:
        """What may be known when ``task`` is asked."""
        return View(self.split, self._counts, task)

    def on(self, dataset: Dataset) -> World:
        """The same protocol and boundaries on other interactions of the same users and items; for leak tests."""
        return World(
            dataset,
            self.split.on(dataset),
            self.num_candidates,
            self.negatives,
            self.history_length,
            self.seed,
        )

    @cached_property
    def key(self) -> str:
        """A short hash of data and protocol, for caches and result folders."""
        return hashlib.sha256(f"{self.protocol}, {self.split.key}".encode()).hexdigest()[:12]


@NEGATIVES.register("uniform")
def uniform(draw: Draw, generator: np.random.Generator) -> IntArray:
    """Items that the user has not taken, each as likely (AgenticRec, sec. 3)."""
    total = draw.world.dataset.num_items
    if 4 * (draw.count + len(draw.forbidden)) > total:
        return generator.choice(np.delete(np.arange(total), draw.forbidden), size=draw.count, replace=False)
    chosen: dict[int, None] = {}
    barred = set(draw.forbidden.tolist())
    while len(chosen) < draw.count:
        for item in generator.integers(total, size=draw.count + 8).tolist():
            if item not in barred:
                chosen[item] = None
    return np.fromiter(chosen, np.int64)[: draw.count]


@NEGATIVES.register("popularity")
def popularity(draw: Draw, generator: np.random.Generator) -> IntArray:
    """Items drawn in proportion to their popularity in the task's evidence; never-seen ones only if others run out."""
    log_weight = np.log(np.maximum(draw.world.split.evidence(draw.fold).popularity, 1e-9))
    keys = log_weight + generator.gumbel(size=len(log_weight))  # Gumbel-top-k: without replacement, by weight
    keys[draw.forbidden] = -np.inf
    return np.argpartition(-keys, draw.count - 1)[: draw.count]


@NEGATIVES.register("hard")
def hard(draw: Draw, generator: np.random.Generator) -> IntArray:
    """Items drawn from those most like the history, by co-occurrence cosine in the task's evidence."""
    evidence = draw.world.split.evidence(draw.fold)
    likeness = np.asarray(evidence.cosine[draw.history].sum(axis=0)).ravel().astype(np.float64)
    likeness += 1e-9 * evidence.popularity + 1e-12 * generator.random(len(likeness))
    likeness[draw.forbidden] = -np.inf
    pool = np.argsort(-likeness)[: min(HARD_POOL * draw.count, len(likeness) - len(draw.forbidden))]
    return generator.choice(pool, size=draw.count, replace=False)
