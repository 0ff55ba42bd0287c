"""Ranking metrics behind a string, such as "ndcg@10": of one positive's rank, of scores with ties, of graded
lists.

A task has one positive, so most of the project needs only `value(metric, rank)`. Equal scores are judged by
their expectation over all orders of the tied items, never by the order in which the items happen to be
listed: a model that gives every candidate the same score is worth exactly as much as a random one. Lists with
several relevant items are judged in `agentrec_env.judgements`, through `evaluate` here.

Measures: hit (a relevant item in the first k), recall, precision, f1, mrr (1/rank of the first relevant
item), map (average precision, over all relevant items) and ndcg (linear gains, Järvelin & Kekäläinen 2002).
With one positive ndcg@k = 1/log2(rank + 1) within the first k, as in the reward of AgenticRec,
arXiv:2603.21613.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentrec_env.judgements import MEASURES, Judgements, judge
from agentrec_env.registry import UnknownNameError, did_you_mean

__all__ = [
    "MEASURES",
    "Judgements",
    "Metric",
    "evaluate",
    "expected_metrics",
    "expected_ranks",
    "from_ranks",
    "hit_at_k",
    "judge",
    "mrr",
    "ndcg_at_k",
    "parse",
    "rank_of",
    "value",
]


@dataclass(frozen=True, slots=True)
class Metric:
    """A parsed metric name: `measure` is one of MEASURES, `k` the cut-off or None for the whole list."""

    measure: str
    k: int | None

    @property
    def name(self) -> str:
        """The name as written, such as "ndcg@10"."""
        return self.measure if self.k is None else f"{self.measure}@{self.k}"

    def of_rank(self, rank: int) -> float:
        """Value for one positive at place `rank`, 1 = first, 0 = not in the list."""
        if rank < 0:
            raise ValueError(f"rank {rank}: a rank is 1 for the first place and 0 for a missed item")
        if self.k is None and self.measure in ("precision", "f1"):
            raise ValueError(f"{self.measure} of a rank needs a cut-off, for example {self.measure}@10")
        if rank == 0 or (self.k is not None and rank > self.k):
            return 0.0
        match self.measure:
            case "ndcg":
                return 1.0 / math.log2(rank + 1)
            case "mrr" | "map":
                return 1.0 / rank
            case "precision":
                return 1.0 / (self.k or 1)
            case "f1":
                return 2.0 / ((self.k or 1) + 1)
            case _:
                return 1.0


@lru_cache(maxsize=256)
def parse(name: str) -> Metric:
    """Read a metric name, `measure` or `measure@k` k >= 1; else UnknownNameError with the nearest name."""
    measure, at, cutoff = name.partition("@")
    if measure not in MEASURES:
        known = [known + at + cutoff for known in MEASURES]
        raise UnknownNameError(did_you_mean("metric", name, known, "A cut-off @k may follow each."))
    if not at:
        return Metric(measure, None)
    if not (cutoff.isascii() and cutoff.isdigit() and int(cutoff) >= 1):
        raise UnknownNameError(
            f"unknown metric {name!r}: the cut-off after @ is a whole number from 1, as in {measure}@10"
        )
    return Metric(measure, int(cutoff))


def value(name: str, rank: int) -> float:
    """Metric `name` of one positive at place `rank` (1 = first, 0 = missed)."""
    return parse(name).of_rank(rank)


def rank_of(ranking: Sequence[Any], target: Any) -> int:
    """Place of `target` in `ranking`, 1 = first, 0 = not there. Of repeated items the first counts."""
    for place, item in enumerate(ranking, start=1):
        if item == target:
            return place
    return 0


def from_ranks(ranks: ArrayLike, metrics: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Metrics of many single positives: `ranks` int[N] (0 = missed) -> {name: float64[N]}."""
    places = np.atleast_1d(np.asarray(ranks))
    if places.size and (places.dtype.kind not in "iu" or places.min() < 0):
        raise ValueError("ranks are whole numbers: 1 for the first place, 0 for a missed item")
    places = places.astype(np.int64)
    longest = int(places.max(initial=0))
    return {name: _table(parse(name), longest)[places] for name in _names(metrics)}


def hit_at_k(rank: int, k: int) -> float:
    """1.0 where the positive is among the first `k`, else 0.0; `rank` 1 = first, 0 = missed."""
    return Metric("hit", k).of_rank(rank)


def ndcg_at_k(rank: int, k: int) -> float:
    """1/log2(rank + 1) where the positive is among the first `k`, else 0.0; `rank` 1 = first, 0 = missed."""
    return Metric("ndcg", k).of_rank(rank)


def mrr(rank: int, k: int | None = None) -> float:
    """1/rank, 0.0 for a missed positive or one beyond `k`; `rank` 1 = first, 0 = missed."""
    return Metric("mrr", k).of_rank(rank)


def expected_ranks(scores: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Mean rank over all orders of the target's ties: `scores` float[N, C], `target` column int[N] -> [N]."""
    above, tied = _above_and_tied(scores, target)
    return above + (tied + 1) / 2


def expected_metrics(scores: ArrayLike, target: ArrayLike, metrics: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Exact mean of each metric over all orders of the items tied with the target.

    scores: float[N, C], higher is better; -inf is allowed (padding), NaN is not.
    target: int[N], the positive's column.
    Returns {name: float64[N]}. With `a` items above and `t` items at the target's score (itself included) the
    value is the mean over the ranks a + 1 … a + t, which are equally likely when ties are broken at random.
    """
    above, tied = _above_and_tied(scores, target)
    longest = int((above + tied).max(initial=0))
    result = {}
    for name in _names(metrics):
        sums = np.cumsum(_table(parse(name), longest))
        mean = (sums[above + tied] - sums[above]) / tied
        result[name] = np.where(tied == 1, _table(parse(name), longest)[above + 1], mean) if longest else mean
    return result


def evaluate(qrels: Any, run: Any, metrics: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Judge the ranked lists of `run` by the relevant items of `qrels`: {name: float64[N]}, one value a
    query.

    Mappings keyed by query, or sequences and integer arrays aligned by row; `judge` has forms, ties and
    errors.

    >>> evaluate({"u1": ["a"]}, {"u1": {"b": 2.0, "a": 1.0}}, ["mrr", "hit@1"])
    {'mrr': array([0.5]), 'hit@1': array([0.])}
    """
    parsed = [parse(name) for name in _names(metrics)]
    judgements = judge(qrels, run)
    return {metric.name: judgements.values(metric.measure, metric.k) for metric in parsed}


def _names(metrics: Iterable[str]) -> list[str]:
    return [metrics] if isinstance(metrics, str) else list(metrics)


@lru_cache(maxsize=64)
def _table(metric: Metric, longest: int) -> NDArray[np.float64]:
    table = np.array([metric.of_rank(rank) for rank in range(longest + 1)], dtype=np.float64)
    table.setflags(write=False)
    return table


def _above_and_tied(scores: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    values = np.asarray(scores, dtype=np.float64)
    columns = np.asarray(target, dtype=np.int64)
    if values.ndim != 2 or columns.shape != values.shape[:1]:
        raise ValueError(f"scores [N, C] and target [N] are needed, given {values.shape} and {columns.shape}")
    if np.isnan(values).any():
        raise ValueError("scores hold NaN: give missing scores a number, -inf puts them last")
    if columns.size and (columns.min() < 0 or columns.max() >= values.shape[1]):
        given = f"{columns.min()} … {columns.max()}"
        raise ValueError(f"target columns are 0 … {values.shape[1] - 1}, given {given}")
    own = np.take_along_axis(values, columns[:, None], axis=1)
    return (values > own).sum(axis=1), (values == own).sum(axis=1)
