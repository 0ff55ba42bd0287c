"""The numbers behind the tools: what is known, as of a task, for and against each item.

Tools put them into words, classical agents sort by one of them, and the fusion ranker learns from all. A signal is a
function ``(view, items int64 [M]) -> float64 [M]``, larger meaning more likely, nan where the data does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agentrec_env.data.view import DAY, View
from agentrec_env.registry import Registry
from agentrec_env.tools.lexical import description_index, title_index, words
from agentrec_env.tools.pool import Pool, brand_codes, category_nodes, gather, seen_times
from agentrec_env.types import FloatArray, IntArray

CHUNK = 4_096
"""Items scored at a time, which bounds memory where the whole catalogue is scored."""


class Signal(Protocol):
    """What ``SIGNALS`` holds."""

    def __call__(self, view: View, items: IntArray, /) -> FloatArray:
        """float64 [M], nan where unknown."""
        ...


SIGNALS: Registry[Signal] = Registry("signal")


@dataclass(frozen=True)
class PoolSignal:
    """A signal that shares work with others through a :class:`Pool`."""

    name: str
    on: Callable[[Pool], FloatArray]

    def __call__(self, view: View, items: IntArray, /) -> FloatArray:
        return matrix(view, items, [self])[:, 0]


def pool_signal(function: Callable[[Pool], FloatArray]) -> PoolSignal:
    """Register ``function`` of a pool under its own name."""
    signal = PoolSignal(function.__name__, function)
    SIGNALS.register(signal.name, signal)
    return signal


def matrix(view: View, items: IntArray, names: Sequence[str | Signal] | None = None) -> FloatArray:
    """Many signals of many items at once, each shared block computed once.

    Args:
        view: what may be known.
        items: int64 [M], any items, also twice.
        names: registered names, ``"module:attribute"`` or signals; None means all registered ones.

    Returns:
        float64 [M, S], nan where unknown.

    Raises:
        UnknownNameError: no such signal.
    """
    chosen = [SIGNALS.get(n) if isinstance(n, str) else n for n in (SIGNALS.names() if names is None else names)]
    items = np.asarray(items, np.int64)
    distinct, inverse = items, None
    if len(set(items.tolist())) < len(items):
        distinct, inverse = np.unique(items, return_inverse=True)
    result = np.empty((len(distinct), len(chosen)))
    for start in range(0, len(distinct), CHUNK):
        part = distinct[start : start + CHUNK]
        pool = Pool(view, part)
        for column, signal in enumerate(chosen):
            values = signal.on(pool) if isinstance(signal, PoolSignal) else signal(view, part)
            result[start : start + CHUNK, column] = values
    return result if inverse is None else result[inverse]


def _unknown(pool: Pool) -> FloatArray:
    return np.full(pool.size, np.nan)


def _mean(block: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """float64 [M]: weighted mean over the rows of ``block`` [K, M], nan left out; nan where nothing is left."""
    known = ~np.isnan(block)
    share = np.ones(len(block)) if weights is None else weights
    total, values = share @ known, share @ np.where(known, block, 0.0)
    mean: FloatArray = np.divide(values, total, out=np.full(block.shape[1], np.nan), where=total > 0)
    return mean


def _max(block: FloatArray) -> FloatArray:
    """float64 [M]: the largest known entry of each column; nan where none is known."""
    best = np.where(np.isnan(block), -np.inf, block).max(axis=0, initial=-np.inf)
    return np.where(np.isneginf(best), np.nan, best)


def _last(block: FloatArray) -> FloatArray:
    """float64 [M]: the row of the latest known item."""
    return block[-1] if len(block) else np.full(block.shape[1], np.nan)


@pool_signal
def popularity(pool: Pool) -> FloatArray:
    """log(1 + times taken by anyone before the task)."""
    return np.log1p(pool.view.popularity(pool.items))


@pool_signal
def popularity_30(pool: Pool) -> FloatArray:
    """log(1 + times taken in the last 30 days)."""
    return np.log1p(pool.view.recent_popularity(pool.items, 30))


@pool_signal
def popularity_90(pool: Pool) -> FloatArray:
    """log(1 + times taken in the last 90 days)."""
    return np.log1p(pool.view.recent_popularity(pool.items, 90))


@pool_signal
def trend(pool: Pool) -> FloatArray:
    """log of the rate of the last 30 days over that of the last 180, smoothed: above 0 for rising items."""
    recent = pool.view.recent_popularity(pool.items, 30)
    return np.log((recent + 0.5) / (pool.view.recent_popularity(pool.items, 180) / 6 + 0.5))


@pool_signal
def popularity_evidence(pool: Pool) -> FloatArray:
    """log(1 + times taken in the evidence that models are fitted on)."""
    return np.log1p(pool.evidence.popularity[pool.items])


@pool_signal
def newness(pool: Pool) -> FloatArray:
    """-log(1 + days since the item was first taken in the evidence)."""
    return _days_ago(pool, seen_times(pool.evidence)[0])


@pool_signal
def last_taken(pool: Pool) -> FloatArray:
    """-log(1 + days since the item was last taken in the evidence)."""
    return _days_ago(pool, seen_times(pool.evidence)[1])


def _days_ago(pool: Pool, times: FloatArray) -> FloatArray:
    if pool.view.time is None:
        return _unknown(pool)
    # Leave-one-out evidence may hold later interactions of others; those count as now.
    return -np.log1p(np.maximum(pool.view.time - times[pool.items], 0) / DAY)


@pool_signal
def mean_rating(pool: Pool) -> FloatArray:
    """Mean of the ratings given before the task."""
    return pool.view.mean_rating(pool.items)


@pool_signal
def item_knn(pool: Pool) -> FloatArray:
    """Sum of co-occurrence cosines with the known items."""
    scores: FloatArray = pool.cosine.sum(axis=0)
    return scores


@pool_signal
def item_knn_recent(pool: Pool) -> FloatArray:
    """The same, later items weighing more."""
    return pool.recency @ pool.cosine


@pool_signal
def item_knn_max(pool: Pool) -> FloatArray:
    """Largest co-occurrence cosine with a known item."""
    scores: FloatArray = pool.cosine.max(axis=0, initial=0.0)
    return scores


@pool_signal
def item_knn_last(pool: Pool) -> FloatArray:
    """Co-occurrence cosine with the latest known item."""
    return _last(pool.cosine)


@pool_signal
def item_knn_rated(pool: Pool) -> FloatArray:
    """Sum of co-occurrence cosines, items rated above 2.5 counting for and others against; nan without ratings."""
    rated = ~np.isnan(pool.ratings)
    if not rated.any():
        return _unknown(pool)
    scores: FloatArray = ((pool.ratings[rated] - 2.5) / 2.5) @ pool.cosine[rated]
    return scores


@pool_signal
def co_purchase(pool: Pool) -> FloatArray:
    """log(1 + how often other users took the item together with a known one, summed)."""
    together: FloatArray = pool.cooccurrence.sum(axis=0)
    return np.log1p(together)


@pool_signal
def co_purchase_probability(pool: Pool) -> FloatArray:
    """Sum over known items h of the share of h's takers who also took the item, damped for rare h."""
    takers = pool.evidence.popularity[pool.known][:, None]
    scores: FloatArray = (pool.cooccurrence / (takers + 5.0)).sum(axis=0)
    return scores


@pool_signal
def transition(pool: Pool) -> FloatArray:
    """How often the item came soon after the user's latest five items, for other users; later ones weighing more."""
    return pool.recency[-len(pool.transitions) :] @ pool.transitions if len(pool.known) else _unknown(pool)


@pool_signal
def transition_last(pool: Pool) -> FloatArray:
    """How often the item came soon after the user's latest item."""
    return _last(pool.transitions)


@pool_signal
def user_knn(pool: Pool) -> FloatArray:
    """Summed likeness of the most similar users who took the item."""
    return pool.neighbour_support


@pool_signal
def embedding(pool: Pool) -> FloatArray:
    """Mean cosine with the known items in the space of the truncated SVD."""
    return _mean(pool.embedding)


@pool_signal
def embedding_recent(pool: Pool) -> FloatArray:
    """The same, later items weighing more."""
    return _mean(pool.embedding, pool.recency)


@pool_signal
def embedding_last(pool: Pool) -> FloatArray:
    """Cosine with the latest known item in the space of the truncated SVD."""
    return _last(pool.embedding)


@pool_signal
def title(pool: Pool) -> FloatArray:
    """Mean TF-IDF cosine with the titles of the known items."""
    return _mean(pool.titles)


@pool_signal
def title_recent(pool: Pool) -> FloatArray:
    """The same, later items weighing more."""
    return _mean(pool.titles, pool.recency)


@pool_signal
def title_max(pool: Pool) -> FloatArray:
    """Largest TF-IDF cosine with the title of a known item."""
    return _max(pool.titles)


@pool_signal
def title_last(pool: Pool) -> FloatArray:
    """TF-IDF cosine with the title of the latest known item."""
    return _last(pool.titles)


@pool_signal
def title_bm25(pool: Pool) -> FloatArray:
    """BM25 score of the title for the titles of the known items as one query, a word counting once an item."""
    index = title_index(pool.view.items)
    names = [pool.view.items.titles[i] for i in pool.known.tolist()]
    if not any(names):
        return _unknown(pool)
    query = np.bincount(
        np.concatenate([index.columns(set(words(name or ""))) for name in names]), minlength=index.bm25.shape[1]
    )
    owner, column, weight = gather(index.bm25, pool.items)
    scores = np.bincount(owner, weights=weight * query[column], minlength=pool.size) / len(names)
    return np.where(index.known[pool.items], scores, np.nan)


@pool_signal
def description(pool: Pool) -> FloatArray:
    """Mean TF-IDF cosine with the descriptions of the known items."""
    return _mean(pool.likeness(description_index(pool.view.items)))


@pool_signal
def category(pool: Pool) -> FloatArray:
    """Mean likeness of category paths (Lin) with the known items."""
    return _mean(pool.category_overlap)


@pool_signal
def category_recent(pool: Pool) -> FloatArray:
    """The same, later items weighing more."""
    return _mean(pool.category_overlap, pool.recency)


@pool_signal
def category_last(pool: Pool) -> FloatArray:
    """Likeness of category paths (Lin) with the latest known item."""
    return _last(pool.category_overlap)


@pool_signal
def category_share(pool: Pool) -> FloatArray:
    """Share of the known items with the very same category path."""
    _, depth, _ = category_nodes(pool.view.items)
    return np.where(depth[pool.items] == 0, np.nan, _mean((pool.category_overlap == 1).astype(np.float64)))


@pool_signal
def brand(pool: Pool) -> FloatArray:
    """Share of the known items of the same brand."""
    return _mean(_same_brand(pool))


@pool_signal
def brand_recent(pool: Pool) -> FloatArray:
    """The same, later items weighing more."""
    return _mean(_same_brand(pool), pool.recency)


def _same_brand(pool: Pool) -> FloatArray:
    codes = brand_codes(pool.view.items)
    known, items = codes[pool.known][:, None], codes[pool.items][None]
    return np.where((known < 0) | (items < 0), np.nan, known == items)


@pool_signal
def price(pool: Pool) -> FloatArray:
    """-|z| of the log price among the prices of the known items: 0 for a usual price."""
    prices = pool.view.items.prices
    usual = np.log1p(np.maximum(prices[pool.known], 0))
    usual = usual[~np.isnan(usual)]
    if not len(usual):
        return _unknown(pool)
    scores: FloatArray = -np.abs(np.log1p(np.maximum(prices[pool.items], 0)) - usual.mean()) / (usual.std() + 0.25)
    return scores


@pool_signal
def repeat(pool: Pool) -> FloatArray:
    """1 where the user has taken the item before."""
    return np.isin(pool.items, pool.view.known).astype(np.float64)


def graded(values: FloatArray, levels: int) -> IntArray:
    """int64 [M]: 0 (no sign) to ``levels`` (the strongest here), in proportion to positive ``values``; nan is 0."""
    known = np.where(np.isnan(values), 0.0, np.maximum(values, 0.0))
    top = known.max(initial=0.0)
    return np.ceil(known / top * levels).astype(np.int64) if top > 0 else np.zeros(len(values), np.int64)
