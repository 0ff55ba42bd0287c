"""Error bars and tests for comparisons on the same tasks: what a table of recommenders needs before it is
believed.

Everything is paired: agents answer the same tasks, so one draw of tasks serves all of them and the spread
that they share drops out of differences. An agent trained with several seeds is one row of the table: its
seeds are resampled beside the tasks, so that its interval holds the noise of training too. Agents that were trained
from one another, seed by seed, share the draws of seeds, and what a seed does to all of them drops out as well.

Randomness comes from a Generator in the arguments; nothing here touches a global one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Method = Literal["percentile", "bca"]
Key = TypeVar("Key", bound=Hashable)

_BLOCK = 1_000  # resamples made at a time: [block, tasks] counts are the largest array here
_EXACT = 16  # differences other than 0 up to which all 2^n sign patterns are enumerated


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    level: float
    method: Method


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """How the mean over tasks moves from one training seed to another; `sd` is nan for a single seed."""

    seeds: int
    sd: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference between two agents on the same tasks: `difference` is the first minus the second.

    p: two-sided, from the sign-flip test (see `compare` for several seeds); `exact`: all sign patterns enumerated.
    effect: standardised mean difference d_z, the mean difference over the standard deviation of the
    differences.
    """

    difference: Interval
    p: float
    exact: bool
    effect: float
    tasks: int


@dataclass(frozen=True, slots=True)
class Uniformity:
    """Chi-square test of equal cell probabilities."""

    statistic: float
    degrees: int
    p: float
    counts: tuple[int, ...]


class PairedBootstrap(Generic[Key]):
    """Resamples of the mean of several agents that answered the same tasks.

    values: {key: float[tasks] or float[seeds, tasks]}, the same number of tasks for all; a key is an agent, or an agent
    and a metric. One draw of tasks serves all keys; the seeds of a key are drawn beside the tasks (two-way resampling,
    Owen, Annals of Applied Statistics 2007, which errs on the wide side where tasks and the noise of single values
    decide; where the seeds decide, as few as three make it too narrow).
    seeds: {key: group}. Keys of one group were made with the same seeds, row k of each with the same one, and share the
    draws of seeds; a key that is not in it draws its own.
    Raises ValueError for unequal numbers of tasks, no tasks, values that are not finite, and for unequal numbers of
    seeds in one group.
    """

    def __init__(
        self,
        values: Mapping[Key, ArrayLike],
        rng: np.random.Generator,
        resamples: int = 10_000,
        level: float = 0.95,
        seeds: Mapping[Key, Hashable] | None = None,
    ) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level {level}: a confidence level lies between 0 and 1, such as 0.95")
        self.values = {key: _by_seed(str(key), array) for key, array in values.items()}
        sizes = {array.shape[1] for array in self.values.values()}
        if len(sizes) != 1:
            raise ValueError(f"paired values need the same tasks for all agents, given {sorted(sizes)} tasks")
        groups = dict(seeds or {})
        _check_groups(groups, self.values)
        self.level = level
        self.tasks = sizes.pop()
        stacked = np.concatenate(list(self.values.values())).T
        means = np.empty((resamples, stacked.shape[1]))
        for begin in range(0, resamples, _BLOCK):
            counts = _draws(rng, min(_BLOCK, resamples - begin), self.tasks)
            means[begin : begin + _BLOCK] = counts @ stacked / self.tasks
        self.means: dict[Key, Floats] = {}
        shared: dict[Hashable, Floats] = {}
        column = 0
        for key, array in self.values.items():
            count = len(array)
            weights = shared.get(groups[key]) if key in groups else None
            if weights is None:
                weights = _draws(rng, resamples, count) / count if count > 1 else np.ones((1, 1))
            if key in groups:
                shared[groups[key]] = weights
            self.means[key] = (means[:, column : column + count] * weights).sum(axis=1)
            column += count

    def interval(self, key: Key, method: Method = "percentile") -> Interval:
        """Interval of one agent's mean. "bca" corrects bias and skew (Efron 1987), over tasks."""
        return self._interval(self.values[key].mean(axis=0), self.means[key], method)

    def difference(self, first: Key, second: Key, method: Method = "percentile") -> Interval:
        """Interval of the mean of `first` minus `second`, on the shared draws."""
        return self._interval(self.per_task(first, second), self.means[first] - self.means[second], method)

    def p_value(self, first: Key, second: Key) -> float:
        """Two-sided p of no difference: how often the resamples, shifted to mean 0, are as far out as what is seen."""
        resampled = self.means[first] - self.means[second]
        seen = abs(float(self.per_task(first, second).mean()))
        extreme = int((np.abs(resampled - resampled.mean()) >= seen).sum())
        return (1 + extreme) / (1 + len(resampled))

    def per_task(self, first: Key, second: Key) -> Floats:
        """Differences by task, each agent's seeds averaged: float64[tasks]."""
        differences: Floats = self.values[first].mean(axis=0) - self.values[second].mean(axis=0)
        return differences

    def _interval(self, per_task: Floats, resampled: Floats, method: Method) -> Interval:
        tail = (1 - self.level) / 2
        mean = float(per_task.mean())
        levels = (tail, 1 - tail) if method == "percentile" else _bca_levels(per_task, resampled, tail)
        low, high = np.quantile(resampled, levels)
        return Interval(mean, float(low), float(high), self.level, method)


def seed_spread(values: ArrayLike) -> SeedSpread:
    """Spread of the mean over tasks between seeds; `values` float[seeds, tasks] or float[tasks]."""
    means = _by_seed("values", values).mean(axis=1)
    sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    return SeedSpread(len(means), sd, float(means.min()), float(means.max()))


def sign_flip_test(differences: ArrayLike, rng: np.random.Generator, permutations: int = 50_000) -> tuple[float, bool]:
    """Paired randomisation test of mean difference 0, two-sided: (p, exact).

    differences: float[tasks]. Under the null hypothesis the two agents are exchangeable on each task, so each
    difference may change its sign. With at most 16 differences other than 0 all sign patterns are enumerated; else
    `permutations` random ones, and p = (1 + as extreme) / (1 + permutations), which is never 0.
    """
    return sign_flip_tests([differences], rng, permutations)[0]


def sign_flip_tests(
    differences: Sequence[ArrayLike], rng: np.random.Generator, permutations: int = 50_000
) -> list[tuple[float, bool]]:
    """`sign_flip_test` of several differences on the same tasks; the random sign patterns are shared by all."""
    rows = [_finite("differences", row) for row in differences]
    results = {i: _exact_sign_flip(row) for i, row in enumerate(rows) if np.count_nonzero(row) <= _EXACT}
    sampled = [i for i in range(len(rows)) if i not in results]
    if sampled:
        values = np.stack([rows[i] for i in sampled])
        extreme = np.zeros(len(sampled), dtype=np.int64)
        for begin in range(0, permutations, _BLOCK):
            patterns = min(_BLOCK, permutations - begin)
            drawn = rng.integers(0, 256, size=(patterns, -(-values.shape[1] // 8)), dtype=np.uint8)
            flips = np.unpackbits(drawn, axis=1, count=values.shape[1]).astype(np.float64)
            extreme += _extreme(2 * (flips @ values.T) - values.sum(axis=1), values).sum(axis=0)
        for i, count in zip(sampled, extreme.tolist(), strict=True):
            results[i] = ((1 + count) / (1 + permutations), False)
    return [results[i] for i in range(len(rows))]


def _exact_sign_flip(values: Floats) -> tuple[float, bool]:
    values = values[values != 0]
    patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1) * 2.0 - 1
    return float(_extreme(patterns @ values[:, None], values[None]).mean()), True


def compare(
    bootstrap: PairedBootstrap[Key], pairs: Sequence[tuple[Key, Key]], rng: np.random.Generator
) -> list[Comparison]:
    """Difference, interval, test and effect size of each (first, second), p values not yet corrected for number.

    The sign-flip test takes the trained models as they are. Where a row has several seeds its p is raised to that of
    the two-way resamples, which holds the noise of training too (of rows that share their seeds, what is not common to
    both), so that two rows that differ by luck of their seeds are not told apart.
    """
    differences = [bootstrap.per_task(first, second) for first, second in pairs]
    tests = sign_flip_tests(differences, rng)
    results = []
    for pair, values, (p, exact) in zip(pairs, differences, tests, strict=True):
        if any(len(bootstrap.values[key]) > 1 for key in pair):
            p, exact = max(p, bootstrap.p_value(*pair)), False
        results.append(Comparison(bootstrap.difference(*pair), p, exact, standardised_difference(values), len(values)))
    return results


def standardised_difference(differences: ArrayLike) -> float:
    """d_z = mean / standard deviation (n − 1) of paired differences; 0 where all are 0, ±inf where all are equal."""
    values = _finite("differences", differences)
    mean = float(values.mean())
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if sd > 1e-12 * abs(mean):
        return mean / sd
    return float(np.copysign(np.inf, mean)) if mean else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the given order: the family-wise error stays under alpha."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values lie between 0 and 1, given {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def position_uniformity(positions: ArrayLike, places: int) -> Uniformity:
    """Chi-square test that the positive stands equally often at each place of its pool.

    positions: int[N], 0-based.  places: pool size. With fewer than five expected a place, neighbouring places
    are counted together, so that the chi-square approximation holds; p is 1 where not even two cells of five
    remain.
    """
    where = np.asarray(positions, dtype=np.int64)
    if places < 1 or (where.size and (where.min() < 0 or where.max() >= places)):
        raise ValueError(f"positions are 0 … {places - 1} in a pool of {places}")
    cells = min(places, len(where) // 5)
    if cells < 2:
        return Uniformity(0.0, 0, 1.0, (len(where),))
    counts = np.bincount(where * cells // places, minlength=cells)
    width = np.bincount(np.arange(places) * cells // places, minlength=cells)
    expected = len(where) * width / places
    statistic = float(((counts - expected) ** 2 / expected).sum())
    from scipy.special import chdtrc

    return Uniformity(statistic, cells - 1, float(chdtrc(cells - 1, statistic)), tuple(counts.tolist()))


def _bca_levels(per_task: Floats, resampled: Floats, tail: float) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    deviations = per_task - per_task.mean()
    spread = float((deviations**2).sum())
    if spread == 0 or np.ptp(resampled) == 0:
        return tail, 1 - tail
    below = (np.sum(resampled < per_task.mean()) + 0.5 * np.sum(resampled == per_task.mean())) / len(resampled)
    bias = ndtri(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled)))
    # The jackknife of a mean has a closed form: leaving out a task moves it by −deviation/(n − 1).
    skew = float((deviations**3).sum()) / (6 * spread**1.5)
    low, high = (float(ndtr(bias + (bias + z) / (1 - skew * (bias + z)))) for z in (ndtri(tail), ndtri(1 - tail)))
    return low, high


def _draws(rng: np.random.Generator, rows: int, size: int) -> Floats:
    """How often each of `size` things is drawn in `size` draws with replacement: float64[rows, size]."""
    drawn = rng.integers(0, size, size=(rows, size)) + np.arange(rows)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _extreme(sums: Floats, values: Floats) -> NDArray[np.bool_]:
    """Whether sums [patterns, tests] are at least as far from 0 as those of values [tests, tasks]."""
    # Sums of the same terms in another order differ in the last bits and still count as equal.
    bound = np.abs(values.sum(axis=1)) - 1e-9 * np.abs(values).sum(axis=1)
    return np.asarray(np.abs(sums) >= bound)


def _by_seed(name: str, values: ArrayLike) -> Floats:
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: values [tasks] or [seeds, tasks] with at least one task are needed")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: values are not all finite; a failed episode counts 0, it is not left out")
    return array


def _check_groups(groups: Mapping[Key, Hashable], values: Mapping[Key, Floats]) -> None:
    counts: dict[Hashable, dict[str, int]] = {}
    for key, group in groups.items():
        if key not in values:
            raise ValueError(f"seeds: there are no values of {key}")
        counts.setdefault(group, {})[str(key)] = len(values[key])
    for count in counts.values():
        if len(set(count.values())) > 1:
            raise ValueError(f"keys that were made with the same seeds have as many of them, given {count}")


def _finite(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name}: finite numbers [tasks], at least one, are needed")
    return array
