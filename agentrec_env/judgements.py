"""Ranked lists matched with their relevant items, as arrays on which every measure is a few numpy operations.

Reading dictionaries or ragged lists is done once; the measures then share the result. Items with equal scores
are judged by the exact expectation over all their orders (McSherry & Najork, ECIR 2008), so that a result
never depends on the order in which a run happens to list them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEASURES = ("hit", "ndcg", "mrr", "recall", "precision", "f1", "map")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ties:
    """Groups of equal scores, said for each place, int64[N, L].

    start:    place (from 0) at which the group begins.
    size:     items in the group.
    relevant: relevant items among them.
    """

    start: Ints
    size: Ints
    relevant: Ints

    def at(self, places: slice) -> tuple[Ints, Ints, Ints]:
        """(start, size, relevant) of some places."""
        return self.start[:, places], self.size[:, places], self.relevant[:, places]


@dataclass(frozen=True, eq=False)
class Judgements:
    """N ranked lists of at most L items, judged.

    gains:   float64[N, L] relevance grade at each place (the tied group's mean), 0 beyond a list's end.
    chance:  float64[N, L] probability that the item at the place is relevant (0 or 1 without ties).
    lengths: int64[N] items in each list.
    ideal:   float64[N, R] grades of all relevant items of the query, best first, padded with 0.
    ties:    None where no two items of a list share a score.
    """

    gains: Floats
    chance: Floats
    lengths: Ints
    ideal: Floats
    ties: Ties | None = None

    @cached_property
    def num_relevant(self) -> Ints:
        """Relevant items per query, int64[N]."""
        counts: Ints = (self.ideal > 0).sum(axis=1)
        return counts

    def values(self, measure: str, k: int | None = None) -> Floats:
        """`measure`, one of MEASURES, over the first `k` places: float64[N], 0 where nothing is relevant."""
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}; known: {', '.join(MEASURES)}")
        values: Floats = getattr(self, f"_{measure}")(k)
        return values

    def _found(self, k: int | None) -> Floats:
        found: Floats = self.chance[:, :k].sum(axis=1)
        return found

    def _recall(self, k: int | None) -> Floats:
        return self._found(k) / np.maximum(self.num_relevant, 1)

    def _precision(self, k: int | None) -> Floats:
        return self._found(k) / (np.maximum(self.lengths, 1) if k is None else k)

    def _f1(self, k: int | None) -> Floats:
        # 2PR/(P+R) with P = found/shown and R = found/relevant is linear in `found`: ties need no care.
        shown = self.lengths if k is None else k
        values: Floats = 2 * self._found(k) / np.maximum(shown + self.num_relevant, 1)
        return values

    def _ndcg(self, k: int | None) -> Floats:
        ideal = self.ideal[:, :k] @ _discounts(self.ideal[:, :k].shape[1])
        gained = self.gains[:, :k] @ _discounts(self.gains[:, :k].shape[1])
        values: Floats = np.divide(gained, ideal, out=np.zeros_like(gained), where=ideal > 0)
        return values

    def _hit(self, k: int | None) -> Floats:
        places = self.chance.shape[1]
        if self.ties is None or k is None or k >= places:
            return np.asarray((self.chance[:, :k] > 0).any(axis=1), dtype=np.float64)
        start, size, relevant = self.ties.at(slice(k - 1, k))
        none = np.exp(_log_choose(size - relevant, k - start) - _log_choose(size, k - start))
        values: Floats = np.where(self._before[:, k - 1 : k] > 0, 1.0, 1.0 - none)[:, 0]
        return values

    def _mrr(self, k: int | None) -> Floats:
        places = self.chance[:, :k].shape[1]
        if self.ties is None:
            hits = self.chance[:, :k] > 0
            first_hit = hits.argmax(axis=1) if places else np.zeros(len(hits))
            return np.asarray(hits.any(axis=1) / (first_hit + 1.0))
        start, size, relevant = self.ties.at(slice(k))
        place = np.arange(1, places + 1)
        log_first = _log_choose(size - (place - start), relevant - 1) - _log_choose(size, relevant)
        first = np.where((self._before[:, :k] == 0) & (relevant > 0), np.exp(log_first), 0.0)
        values: Floats = first @ (1.0 / place)
        return values

    def _map(self, k: int | None) -> Floats:
        chance = self.chance[:, :k]
        place = np.arange(1, chance.shape[1] + 1)
        if self.ties is None:
            found = np.cumsum(chance, axis=1)
        else:
            start, size, relevant = self.ties.at(slice(k))
            others = (place - start - 1) * (relevant - 1) / np.maximum(size - 1, 1)
            found = self._before[:, :k] + 1 + others
        return (chance * found) @ (1.0 / place) / np.maximum(self.num_relevant, 1)

    @cached_property
    def _before(self) -> Floats:
        """Relevant items above each place's tied group, float64[N, L]."""
        assert self.ties is not None
        running = np.cumsum(self.chance, axis=1)
        padded = np.concatenate([np.zeros((len(running), 1)), running], axis=1)
        before: Floats = np.rint(np.take_along_axis(padded, self.ties.start, axis=1))
        return before


def judge(qrels: Any, run: Any) -> Judgements:
    """Match ranked lists with relevant items.

    Two forms, the same for both arguments:

    - mappings keyed by query. qrels: {query: {item: grade} or items (grade 1)}.
      run: {query: {item: score} or items, best first}. A query without a list counts as an empty list.
    - rows. qrels and run: sequences of item sequences, or integer arrays [N, R] and [N, L] padded with -1.

    A grade is >= 0, 0 being not relevant; scores are finite. Equal scores are judged by expectation over
    their orders. An item that stands twice in a list counts at its first place; the second place is a miss.
    Raises ValueError for queries of the run without qrels, unequal numbers of rows, NaN, negative grades.
    """
    if isinstance(qrels, Mapping) != isinstance(run, Mapping):
        raise ValueError("qrels and run come in the same form: two mappings keyed by query, or two sequences")
    if isinstance(qrels, Mapping):
        unknown = [query for query in run if query not in qrels]
        if unknown:
            raise ValueError(f"{len(unknown)} queries of the run have no qrels, such as {unknown[0]!r}")
        return _judge_rows(list(qrels.values()), [run.get(query, ()) for query in qrels])
    if len(qrels) != len(run):
        raise ValueError(f"qrels hold {len(qrels)} rows and run {len(run)}: a query needs one of each")
    if _is_integer_matrix(qrels) and _is_integer_matrix(run):
        return _judge_arrays(qrels, run)
    return _judge_rows(qrels, run)


def _is_integer_matrix(rows: Any) -> bool:
    return isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind == "i"


def _judge_arrays(qrels: NDArray[np.integer], run: NDArray[np.integer]) -> Judgements:
    relevant = qrels >= 0
    ordered = np.sort(qrels, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError("qrels name the same item twice for one query")
    gains = np.zeros(run.shape, dtype=np.float64)
    if run.shape[1]:
        for column in range(qrels.shape[1]):
            match = (run == qrels[:, column, None]) & relevant[:, column, None]
            first = match.argmax(axis=1)
            rows = np.flatnonzero(match[np.arange(len(run)), first])
            gains[rows, first[rows]] = 1.0
    ideal = -np.sort(-relevant.astype(np.float64), axis=1)
    return Judgements(gains, gains, (run >= 0).sum(axis=1), ideal)


def _judge_rows(qrels: Sequence[Any], run: Sequence[Any]) -> Judgements:
    grades = [row if isinstance(row, Mapping) else dict.fromkeys(_plain(row), 1.0) for row in qrels]
    lists = [row if isinstance(row, Mapping) else _plain(row) for row in run]
    ideal = _pad([np.array(sorted(row.values(), reverse=True), dtype=np.float64) for row in grades])
    if np.isnan(ideal).any() or (ideal < 0).any():
        raise ValueError("relevance grades are numbers >= 0, with 0 for not relevant")
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    gains = _fill(lengths, chain.from_iterable(map(_gains, grades, lists)))
    if not any(isinstance(row, Mapping) for row in lists):
        return Judgements(gains, (gains > 0).astype(np.float64), lengths, ideal)
    scores = _fill(lengths, chain.from_iterable(map(_scores, lists)))
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinite numbers: give an item a finite score or leave it out")
    scores[np.arange(scores.shape[1]) >= lengths[:, None]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    gains, scores = (np.take_along_axis(array, order, axis=1) for array in (gains, scores))
    return _group(gains, scores, lengths, ideal)


def _group(gains: Floats, scores: Floats, lengths: Ints, ideal: Floats) -> Judgements:
    """Judgements of lists sorted by score: tied groups get their mean gain."""
    places = np.arange(gains.shape[1])
    relevant = (gains > 0).astype(np.float64)
    same = (scores[:, 1:] == scores[:, :-1]) & (places[1:] < lengths[:, None])
    if not same.any():
        return Judgements(gains, relevant, lengths, ideal)
    opens = np.concatenate([np.ones((len(gains), 1), dtype=bool), ~same], axis=1)
    start = np.maximum.accumulate(np.where(opens, places, 0), axis=1)
    group = (np.cumsum(opens.ravel()) - 1).reshape(opens.shape)
    size = np.bincount(group.ravel())[group]
    in_group = np.bincount(group.ravel(), weights=relevant.ravel())[group]
    mean_gain = np.bincount(group.ravel(), weights=gains.ravel())[group] / size
    ties = Ties(start, size, in_group.astype(np.int64))
    return Judgements(mean_gain, in_group / size, lengths, ideal, ties)


def _plain(row: Iterable[Any]) -> list[Any]:
    return row.tolist() if isinstance(row, np.ndarray) else list(row)


def _gains(grades: Mapping[Any, float], items: Mapping[Any, float] | list[Any]) -> list[float]:
    get = grades.get
    if isinstance(items, Mapping) or len(set(items)) == len(items):
        return [get(item, 0.0) for item in items]
    first = {item: place for place, item in reversed(list(enumerate(items)))}
    return [get(item, 0.0) if first[item] == place else 0.0 for place, item in enumerate(items)]


def _scores(items: Mapping[Any, float] | list[Any]) -> Iterable[float]:
    # A plain list is a ranking: scores falling by one keep its order and hold no ties.
    return items.values() if isinstance(items, Mapping) else range(len(items), 0, -1)


def _fill(lengths: Ints, flat: Iterable[float]) -> Floats:
    """Rows of `lengths` values, taken in turn from `flat`, padded with 0: float64[N, max length]."""
    rows = np.zeros((len(lengths), int(lengths.max(initial=0))), dtype=np.float64)
    values = np.fromiter(flat, dtype=np.float64, count=int(lengths.sum()))
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = values
    return rows


def _pad(rows: Sequence[Floats]) -> Floats:
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return _fill(lengths, chain.from_iterable(rows))


def _discounts(places: int) -> Floats:
    return 1.0 / np.log2(np.arange(2, places + 2))


def _log_choose(n: NDArray[Any], k: NDArray[Any]) -> Floats:
    """log of the binomial coefficient, -inf where k < 0 or k > n."""
    n, k = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(k, dtype=np.int64))
    valid = (k >= 0) & (k <= n)
    table = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(n.max(initial=0)) + 1)))])
    n, k = np.where(valid, n, 0), np.where(valid, k, 0)
    return np.where(valid, table[n] - table[k] - table[n - k], -np.inf)
