"""The blocks of numbers that several signals share, for one task and some items: each is computed once, on demand.

Everything follows from the ``View`` (as-of counts), its ``Evidence`` (fitted) and the metadata; nothing else is read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import scipy  # its parts are loaded when they are first used: naming tools needs none of them
from numpy.typing import NDArray

from agentrec_env.data.dataset import Items
from agentrec_env.data.evidence import Evidence
from agentrec_env.data.view import View
from agentrec_env.tools.lexical import TextIndex, title_index
from agentrec_env.types import FloatArray, IntArray

T = TypeVar("T")

MAX_KNOWN = 100
"""Latest items of the user that signals look at."""
NEIGHBOURS = 100
"""Similar users that count."""
RECENCY = 0.8
"""Weight of an item relative to the one taken after it, in recency-weighted signals."""
MAX_DEPTH = 8
"""Levels of a category path that are compared."""


class Pool:
    """Shared numbers of ``items`` (int64 [M], distinct) for the task behind ``view``; K is how many items are known."""

    def __init__(self, view: View, items: IntArray) -> None:
        self.view = view
        self.items = items
        self.known: IntArray = view.known[-MAX_KNOWN:]
        """int64 [K], oldest first."""
        self.evidence: Evidence = view.evidence
        self.size = len(items)

    @cached_property
    def recency(self) -> FloatArray:
        """float64 [K]: 1 for the latest known item, ``RECENCY`` for the one before, and so on."""
        return RECENCY ** np.arange(len(self.known) - 1, -1, -1, dtype=np.float64)

    @cached_property
    def ratings(self) -> FloatArray:
        """float64 [K]: ratings of the known items, nan where unknown."""
        return self.view.known_ratings[-MAX_KNOWN:].astype(np.float64)

    @cached_property
    def _slots(self) -> NDArray[np.int32]:
        return _slots(self.items, len(self.view.items))

    @cached_property
    def cosine(self) -> FloatArray:
        """float64 [K, M]: item-kNN cosine of known items and ``items``."""
        return _block(self.evidence.cosine, self.known, self._slots, self.size)

    @cached_property
    def cooccurrence(self) -> FloatArray:
        """float64 [K, M]: users in the evidence who took both."""
        return _block(self.evidence.cooccurrence, self.known, self._slots, self.size)

    @cached_property
    def transitions(self) -> FloatArray:
        """float64 [K', M]: how often each of ``items`` came next after each of the last five known items, smoothed."""
        recent = self.known[-5:]
        counts, outgoing = transition_counts(self.evidence)
        return _block(counts, recent, self._slots, self.size) / (outgoing[recent][:, None] + 5.0)

    @cached_property
    def embedding(self) -> FloatArray:
        """float64 [K, M]: cosine of embeddings; nan where either item has no evidence."""
        vectors = self.evidence.embedding
        product = (vectors[self.known] @ vectors[self.items].T).astype(np.float64)
        popularity = self.evidence.popularity
        product[popularity[self.known] == 0] = np.nan
        product[:, popularity[self.items] == 0] = np.nan
        return product

    @cached_property
    def titles(self) -> FloatArray:
        """float64 [K, M]: TF-IDF cosine of titles; nan where either title is unknown."""
        return self.likeness(title_index(self.view.items))

    def likeness(self, index: TextIndex) -> FloatArray:
        """float64 [K, M]: TF-IDF cosine of texts; nan where either text is unknown."""
        owner, word, weight = gather(index.tfidf, self.known)
        local = np.unique(word)
        slots = _slots(local, index.tfidf.shape[1])
        left = np.zeros((len(self.known), len(local)))
        left[owner, slots[word] - 1] = weight
        right = _block(index.tfidf, self.items, slots, len(local))
        product = left @ right.T
        product[~index.known[self.known]] = np.nan
        product[:, ~index.known[self.items]] = np.nan
        return product

    @cached_property
    def category_overlap(self) -> FloatArray:
        """float64 [K, M]: how much of what two category paths say is common to both; nan where either is unknown.

        Lin's similarity: the information (-log share of the catalogue) of the deepest shared level over the mean of
        that of both paths. So a level that all items share counts nothing, and equal paths give 1.
        """
        nodes, depth, information = category_nodes(self.view.items)
        left, right = nodes[self.known][:, None], nodes[self.items][None]
        shared = ((left == right) & (left >= 0)).sum(axis=2)
        deepest = right[0][np.arange(self.size)[None], np.maximum(shared, 1) - 1]
        common = np.where(shared > 0, information[deepest], 0.0)
        own = [information[nodes[i, np.maximum(depth[i], 1) - 1]] for i in (self.known, self.items)]
        total = (own[0][:, None] + own[1][None]) / 2
        equal = (depth[self.known][:, None] == shared) & (depth[self.items][None] == shared)
        likeness = np.where(equal, 1.0, common / np.maximum(total, 1e-12))
        unknown = (depth[self.known] == 0)[:, None] | (depth[self.items] == 0)[None]
        return np.where(unknown, np.nan, likeness)

    @cached_property
    def neighbours(self) -> tuple[IntArray, FloatArray]:
        """int64 [N], float64 [N]: users most like the asking one and their likeness, best first."""
        return similar_users(self.view, self.known)

    @cached_property
    def neighbour_support(self) -> FloatArray:
        """float64 [M]: summed likeness of the neighbours who took each of ``items``."""
        users, likeness = self.neighbours
        return likeness @ _block(self.evidence.matrix, users, self._slots, self.size)


def similar_users(view: View, known: IntArray) -> tuple[IntArray, FloatArray]:
    """int64 [N], float64 [N]: the ``NEIGHBOURS`` users of largest cosine over shared items, rare ones weighing more.

    The asking user is left out; ties go to the lower user index.
    """
    evidence = view.evidence
    weight, norm = user_weights(evidence)
    owner, user, _ = gather(evidence.by_item, known)
    score = np.bincount(user, weights=weight[known][owner], minlength=evidence.data.num_users)
    score[view.user] = 0
    users = np.flatnonzero(score)
    own = np.sqrt(weight[known].sum())
    likeness = score[users] / (norm[users] * (own if own > 0 else 1))
    if len(users) > NEIGHBOURS:
        bar = -np.partition(-likeness, NEIGHBOURS - 1)[NEIGHBOURS - 1]
        keep = np.flatnonzero(likeness >= bar)
        users, likeness = users[keep], likeness[keep]
    order = np.argsort(-likeness, kind="stable")[:NEIGHBOURS]
    return users[order], likeness[order]


def user_weights(evidence: Evidence) -> tuple[FloatArray, FloatArray]:
    """float64 [I], float64 [U]: squared IDF of each item, and the norm of each user under it."""

    def build() -> tuple[FloatArray, FloatArray]:
        weight = np.log1p(evidence.data.num_users / (1.0 + evidence.popularity)) ** 2
        return weight, np.sqrt(np.maximum(evidence.matrix @ weight, 1e-12))

    return cached(evidence.cache, "user weights", build)


def transition_counts(evidence: Evidence) -> tuple[scipy.sparse.csr_matrix, FloatArray]:
    """float32 CSR [I, I], float64 [I]: how often one item came after another within three steps of a user, weighted
    1, 1/2, 1/3 by distance, and the sum of each row."""

    def build() -> tuple[scipy.sparse.csr_matrix, FloatArray]:
        data = evidence.data
        first, then, weight = [], [], []
        for step in (1, 2, 3):
            same = np.flatnonzero(data.user[step:] == data.user[:-step])
            first.append(data.item[same])
            then.append(data.item[same + step])
            weight.append(np.full(len(same), 1 / step, np.float32))
        pairs = (np.concatenate(first), np.concatenate(then))
        counts = scipy.sparse.csr_matrix((np.concatenate(weight), pairs), shape=(data.num_items, data.num_items))
        counts.sum_duplicates()
        return counts, np.asarray(counts.sum(axis=1), np.float64).ravel()

    return cached(evidence.cache, "transitions", build)


def seen_times(evidence: Evidence) -> tuple[FloatArray, FloatArray]:
    """float64 [I] each: when an item was first and last taken in the evidence (ms); nan where that is unknown."""

    def build() -> tuple[FloatArray, FloatArray]:
        data = evidence.data
        first = np.full(data.num_items, np.nan)
        last = first.copy()
        if data.time is not None and len(data):
            order = np.lexsort((data.time, data.item))
            item, time = data.item[order], data.time[order]
            start = np.flatnonzero(np.diff(item, prepend=-1))
            first[item[start]] = time[start]
            last[item[start]] = time[np.append(start[1:], len(item)) - 1]
        return first, last

    return cached(evidence.cache, "seen times", build)


def category_nodes(items: Items) -> tuple[NDArray[np.int32], NDArray[np.int32], FloatArray]:
    """int32 [I, D], int32 [I], float64 [nodes]: a number for each prefix of each category path (-1 past its end), path
    lengths, and -log of the share of the items with a path that lie under each node."""

    def build() -> tuple[NDArray[np.int32], NDArray[np.int32], FloatArray]:
        depth = np.fromiter((min(len(path), MAX_DEPTH) for path in items.categories), np.int32, len(items))
        nodes = np.full((len(items), max(int(depth.max(initial=0)), 1)), -1, np.int32)
        numbers: dict[tuple[str, ...], int] = {}
        for row, path in enumerate(items.categories):
            for level in range(depth[row]):
                nodes[row, level] = numbers.setdefault(path[: level + 1], len(numbers))
        under = np.bincount(nodes[nodes >= 0], minlength=1)
        return nodes, depth, -np.log(np.maximum(under, 1) / max(int((depth > 0).sum()), 1))

    return cached(items.cache, "category nodes", build)


def brand_codes(items: Items) -> NDArray[np.int32]:
    """int32 [I]: a number for each brand, upper and lower case alike; -1 where unknown."""

    def build() -> NDArray[np.int32]:
        numbers: dict[str, int] = {}
        names = [(brand or "").strip().casefold() for brand in items.brands]
        return np.asarray([numbers.setdefault(name, len(numbers)) if name else -1 for name in names], np.int32)

    return cached(items.cache, "brand codes", build)


def cached(cache: dict[str, Any], name: str, build: Callable[[], T]) -> T:
    """``cache[name]``, made by ``build`` where it is not there yet."""
    if name not in cache:
        cache[name] = build()
    return cast(T, cache[name])


def gather(matrix: scipy.sparse.csr_matrix, rows: IntArray) -> tuple[IntArray, IntArray, NDArray[Any]]:
    """The entries of ``rows`` of a CSR matrix: place in ``rows``, column, value. Scipy's own slicing is slower."""
    starts = matrix.indptr[rows].astype(np.int64)
    lengths = matrix.indptr[rows + 1] - starts
    ends = np.cumsum(lengths)
    at = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
    return np.repeat(np.arange(len(rows)), lengths), matrix.indices[at], matrix.data[at]


def _slots(columns: NDArray[Any], total: int) -> NDArray[np.int32]:
    """int32 [total]: 1-based place of each of ``columns``, 0 elsewhere."""
    slots = np.zeros(total, np.int32)
    slots[columns] = np.arange(1, len(columns) + 1)
    return slots


def _block(matrix: scipy.sparse.csr_matrix, rows: IntArray, slots: NDArray[np.int32], size: int) -> FloatArray:
    """float64 [len(rows), size]: the entries of ``rows`` in the columns that have a slot."""
    owner, column, value = gather(matrix, rows)
    slot = slots[column]
    hit = np.flatnonzero(slot)
    block = np.zeros((len(rows), size))
    block[owner[hit], slot[hit] - 1] = value[hit]
    return block
