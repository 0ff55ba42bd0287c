"""What may be known when a task is asked: the only thing that tools and agents get to see of the data.

A ``View`` holds no target, and every number it gives follows the as-of rule of the split, so a tool written against it
cannot look ahead, whatever it does.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.dataset import Items
from agentrec_env.data.evidence import Evidence
from agentrec_env.data.splits import Split
from agentrec_env.types import Task

DAY = 86_400_000
"""Milliseconds."""


class ItemCounts:
    """Interactions by item and time, so that counts and mean ratings as of any time cost one binary search.

    Temporal: all interactions, cut at the task's time. Leave-one-out: the training part of everyone; the task's user's
    own later interactions are taken off by the view.
    """

    def __init__(self, split: Split) -> None:
        data = split.dataset
        rows = np.arange(len(data)) if split.by_time else np.flatnonzero(split.evidence_mask(0))
        item = data.item[rows].astype(np.int64)
        time = np.zeros(len(rows), np.int64) if data.time is None else data.time[rows]
        self.start = int(time.min(initial=0)) if data.time is None else int(time.min())
        self.span = int(time.max()) - self.start + 2
        key = item * self.span + (time - self.start)
        order = np.argsort(key, kind="stable")
        self.key = key[order]
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=data.num_items))])
        rating = data.rating[rows][order].astype(np.float64)
        self.rated = np.concatenate([[0], np.cumsum(~np.isnan(rating))])
        self.ratings = np.concatenate([[0.0], np.cumsum(np.nan_to_num(rating))])

    def before(self, items: NDArray[np.int64], time: int | None) -> NDArray[np.int64]:
        """int64 [C]: where the interactions of each item before ``time`` (None: all) end in the sorted arrays."""
        if time is None:
            return self.indptr[items + 1]
        offset = min(max(time - self.start, 0), self.span - 1)
        return np.searchsorted(self.key, items * self.span + offset, side="left")


class View:
    """The as-of window on the data for one task.

    Attributes:
        items: metadata, which is taken as known at all times (totals of the dump are not in it).
        user: index of the user who asks.
        time: ms since the epoch of the request, or None.
        candidates: int64 [C], the pool in the order shown; empty in catalogue mode.
        history: int64 [H], the latest known items of the user, oldest first.
    """

    def __init__(self, split: Split, counts: ItemCounts, task: Task) -> None:
        self.items: Items = split.dataset.items
        self.user = task.user
        self.time = task.time
        self.candidates = task.candidates
        self.history = task.history
        self._split = split
        self._counts = counts
        self._position = task.position
        self._fold = task.fold

    @cached_property
    def _known_rows(self) -> slice:
        return self._split.known(self.user, self._position, self.time)

    @cached_property
    def known(self) -> NDArray[np.int64]:
        """int64 [K]: all the user's earlier items, oldest first; ``history`` is its end."""
        return self._split.dataset.item[self._known_rows].astype(np.int64)

    @property
    def known_ratings(self) -> NDArray[np.float32]:
        """float32 [K]: the ratings given to ``known``, nan where unknown."""
        return self._split.dataset.rating[self._known_rows]

    @property
    def known_times(self) -> NDArray[np.int64] | None:
        """int64 [K]: when ``known`` were taken (ms), or None."""
        times = self._split.dataset.time
        return None if times is None else times[self._known_rows]

    @property
    def evidence(self) -> Evidence:
        """What fitted models may use for this task."""
        return self._split.evidence(self._fold)

    def number(self, item: int) -> int | None:
        """The candidate number (1..C) of ``item``, or None where it is not in the pool."""
        return self._numbers.get(int(item))

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {item: number for number, item in enumerate(self.candidates.tolist(), 1)}

    @property
    def _cut(self) -> int | None:
        return self.time if self._split.by_time else None

    @cached_property
    def _own_later(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Leave-one-out: items, ratings and times of the user's own training interactions from the target on."""
        split, data = self._split, self._split.dataset
        if split.train_lengths is None:
            empty = slice(0, 0)
        else:
            start = int(data.indptr[self.user])
            empty = slice(start + self._position, start + max(int(split.train_lengths[self.user]), self._position))
        times = np.zeros(len(data.item[empty]), np.int64) if data.time is None else data.time[empty]
        return data.item[empty].astype(np.int64), data.rating[empty], times

    def popularity(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [C]: how often each of ``items`` had been taken, by anyone, when the task was asked."""
        counts = self._counts.before(items, self._cut) - self._counts.indptr[items]
        later = self._own_later[0]
        own: NDArray[np.int64] = (items[:, None] == later).sum(axis=1)
        popularity: NDArray[np.int64] = counts - own
        return popularity

    def mean_rating(self, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [C]: mean of the ratings given before the task was asked; nan where there were none."""
        first, last = self._counts.indptr[items], self._counts.before(items, self._cut)
        total = self._counts.ratings[last] - self._counts.ratings[first]
        count = self._counts.rated[last] - self._counts.rated[first]
        later, ratings, _ = self._own_later
        for item, rating in zip(later, ratings, strict=True):
            if not np.isnan(rating):
                total, count = total - float(rating) * (items == item), count - (items == item)
        mean: NDArray[np.float64] = np.divide(total, count, out=np.full(len(items), np.nan), where=count > 0)
        return mean

    def recent_popularity(self, items: NDArray[np.int64], days: float) -> NDArray[np.float64]:
        """float64 [C]: how often each item was taken in the last ``days`` before the task; nan without times."""
        if self.time is None:
            return np.full(len(items), np.nan)
        since = self.time - int(days * DAY)
        counts = self._counts.before(items, self.time) - self._counts.before(items, since)
        later, _, times = self._own_later
        within = later[(times >= since) & (times < self.time)]
        own: NDArray[np.int64] = (items[:, None] == within).sum(axis=1)
        return (counts - own).astype(np.float64)
