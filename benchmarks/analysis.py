"""From per-task results to the numbers of the report: one `TrackResult` for each dataset and track.

Everything is computed anew from the recorded ranks, so tables made after an interruption equal those made without one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.world import World
from agentrec_env.metrics import from_ranks
from agentrec_env.statistics import (
    Comparison,
    Interval,
    PairedBootstrap,
    SeedSpread,
    Uniformity,
    compare,
    holm,
    position_uniformity,
    seed_spread,
)
from benchmarks.ablations import METRICS as COMPARED
from benchmarks.ablations import Ablation, ablate
from benchmarks.costs import Cost, costs
from benchmarks.played import ERRORS, Played, chains, ranks_of, records_of
from benchmarks.presets import TRAINED
from benchmarks.records import Block
from benchmarks.strata import Strata, stratify
from benchmarks.suite import METRICS, PRIMARY, Track

LIST = 10
"""Items of a final list."""
OTHER_HALF = " | "
CHANCE_CONTROLS = ("random", "identity", "reversed")
FROZEN = ("no-tools", "frozen")
"""Rows of the policy that training starts from."""


@dataclass(frozen=True)
class Versus:
    """A comparison with its p value corrected by Holm for the number of rows compared."""

    other: str
    comparison: Comparison
    p_holm: float


@dataclass(frozen=True)
class Pair:
    """`first` minus `second` in the primary metric, corrected by Holm for the number of pairs."""

    first: str
    second: str
    comparison: Comparison
    p_holm: float


@dataclass(frozen=True)
class Planned:
    """`first` minus `second` by metric, for the rows that were settled before the run; corrected by Holm for the number
    of these rows, each metric for itself."""

    first: str
    second: str
    comparisons: dict[str, Comparison]
    p_holm: dict[str, float]


@dataclass(frozen=True)
class OrderSensitivity:
    """The same tasks with the candidates in another order: an agent that reads them should not care."""

    tasks: int
    same_first: float
    """Share of tasks with the same first item."""
    overlap: float
    """Mean share of the list that stays."""
    absolute: float
    """Mean absolute change of the primary metric."""
    change: Comparison
    """Primary metric, other order minus the first."""


@dataclass(frozen=True)
class Control:
    """A row that must score as chance does."""

    name: str
    mean: float
    chance: float
    z: float
    p: float


@dataclass(frozen=True)
class RowResult:
    """One line of the table."""

    name: str
    agent: str
    role: str
    seeds: int
    episodes: int
    metrics: dict[str, Interval]
    seed_spread: SeedSpread
    calls: dict[str, float]
    """Calls an episode, by tool."""
    turns: float
    milliseconds: float
    """Wall time an episode, environment and tools included."""
    prepare_seconds: float
    """Time to make and fit the agent, summed over seeds."""
    invalid: float
    """Share of episodes without a valid list for which the agent is to blame."""
    failed: float
    """Share of episodes ended by an error in the agent's or the environment's code."""
    stops: dict[str, int]
    ranks: list[int]
    """Where the positive ended up: [missed, first, …, tenth]."""
    reward: float
    terms: dict[str, float]
    versus: dict[str, Versus] = field(default_factory=dict)
    """Difference to the best baseline by metric; empty for that baseline itself."""
    order: OrderSensitivity | None = None
    error: str | None = None
    """A message of one of the failed episodes."""

    @property
    def calls_total(self) -> float:
        """Tool calls an episode."""
        return sum(self.calls.values())


@dataclass(frozen=True)
class TrackResult:
    """All rows on one dataset and track."""

    dataset: str
    track: str
    title: str
    protocol: str
    tasks: int
    pool: int | None
    rows: list[RowResult]
    best_baseline: str | None
    """The row that differences are to: the best baseline, chosen for each half of the tasks on the other half; where
    the halves choose differently, the name of both."""
    pairs: list[Pair]
    positions: Uniformity | None
    controls: list[Control]
    missing: dict[str, str]
    """Rows of which something could not be played, and why."""
    costs: list[Cost] = field(default_factory=list)
    strata: list[Strata] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Sentences of the run itself."""
    planned: list[Planned] = field(default_factory=list)
    """The row that was trained furthest minus each that it is to be better than; empty where nothing was trained."""

    @property
    def reference(self) -> str | None:
        """The best baseline over all tasks, for what is held against a single row."""
        return _reference(self.rows)


def analyse(
    dataset: str,
    track: Track,
    protocol: str,
    played: Sequence[Played],
    missing: Mapping[str, str],
    places: Sequence[int],
    rng: np.random.Generator,
    world: World | None = None,
) -> TrackResult:
    """Numbers of one dataset and track; the rows come sorted by the primary metric, best first.

    played: rows with at least one finished seed, all on the same tasks; ablations stand in tables of their own.
    places: where the positive stands (0-based) in the pools of the track, those that were not played included; empty
        where there are no pools.
    world: of the track, for the kinds of tasks; None: they are left out.
    """
    ablations = ablate(played, rng) if any(p.row.ablation for p in played) else []
    played = [p for p in played if not p.row.ablation]
    ranks = {p.row.name: np.array([ranks_of(p.records(seed)) for seed in p.seeds]) for p in played}
    values = {
        (name, metric): array.reshape(table.shape)
        for name, table in ranks.items()
        for metric, array in from_ranks(table.ravel(), METRICS).items()
    }
    best = _best([p.row.name for p in played if p.row.role == "baseline"], values)
    if best is not None and best not in ranks:
        values |= {(best, metric): _halved(best.split(OTHER_HALF), values, metric) for metric in METRICS}
    seeds = {(name, metric): group for name, group in chains(played).items() for metric in METRICS}
    bootstrap = PairedBootstrap(values, rng, seeds=seeds) if values else None
    versus = _versus(bootstrap, list(ranks), best, rng) if bootstrap else {}
    rows = [
        _row(p, {m: bootstrap.interval((p.row.name, m)) for m in METRICS}, versus.get(p.row.name, {}), rng)
        for p in played
        if bootstrap
    ]
    rows.sort(key=lambda row: (-row.metrics[PRIMARY].mean, row.name))
    order = {row.name: place for place, row in enumerate(rows)}
    played.sort(key=lambda p: order[p.row.name])
    tasks = len(records_of(next(iter(played[0].seeds.values())))) if played else 0
    return TrackResult(
        dataset=dataset,
        track=track.name,
        title=track.title,
        protocol=protocol,
        tasks=tasks,
        pool=track.pool,
        rows=rows,
        best_baseline=best,
        pairs=_pairs(bootstrap, [row.name for row in rows], rng) if bootstrap else [],
        positions=position_uniformity(places, track.pool) if track.pool and places else None,
        controls=_controls(ranks, track.pool),
        missing=dict(missing),
        costs=costs(played, rng),
        strata=stratify(world, played, _reference(rows), rng) if world is not None else [],
        ablations=ablations,
        planned=_planned(bootstrap, played, rng) if bootstrap else [],
    )


def _reference(rows: Sequence[RowResult]) -> str | None:
    """The first baseline of rows that are sorted, best first."""
    return next((row.name for row in rows if row.role == "baseline"), None)


def _best(names: Sequence[str], values: Mapping[tuple[str, str], NDArray[np.float64]]) -> str | None:
    """The best baseline by the primary metric; chosen for each half of the tasks on the other half, so that no row is
    compared with one that was picked for its luck on the same tasks. Tasks come in random order."""
    if not names:
        return None
    means = [{name: float(values[name, PRIMARY][:, half::2].mean()) for name in names} for half in (1, 0)]
    if any(np.isnan(list(mean.values())).any() for mean in means):  # a single task
        means = [{name: float(values[name, PRIMARY].mean()) for name in names}] * 2
    even, odd = (max(names, key=mean.__getitem__) for mean in means)
    return even if even == odd else f"{even}{OTHER_HALF}{odd}"


def _halved(
    names: Sequence[str], values: Mapping[tuple[str, str], NDArray[np.float64]], metric: str
) -> NDArray[np.float64]:
    """float64 [seeds, tasks]: of the first row on even places, of the second on odd ones."""
    even, odd = (values[name, metric] for name in names)
    seeds = max(len(even), len(odd))
    result = np.resize(even, (seeds, even.shape[1]))
    result[:, 1::2] = np.resize(odd, (seeds, odd.shape[1]))[:, 1::2]
    return result


def chance(pool: int) -> tuple[float, float]:
    """Mean and standard deviation of the primary metric of one random list of ten from a pool."""
    places = np.arange(1, pool + 1)
    value = from_ranks(np.where(places <= LIST, places, 0), [PRIMARY])[PRIMARY]
    return float(value.mean()), float(value.std())


def _row(
    played: Played, metrics: dict[str, Interval], versus: dict[str, Versus], rng: np.random.Generator
) -> RowResult:
    blocks = [block for seed in played.seeds.values() for block in seed]
    records = records_of(blocks)
    ranks = ranks_of(records)
    calls: Counter[str] = Counter()
    for record in records:
        calls.update(record.calls)
    stops = Counter(record.stop for record in records)
    failed = sum(stops[reason] for reason in ERRORS)
    primary = from_ranks(ranks, [PRIMARY])[PRIMARY].reshape(len(played.seeds), -1)
    return RowResult(
        name=played.row.name,
        agent=played.row.agent,
        role=played.row.role,
        seeds=len(played.seeds),
        episodes=len(records),
        metrics=metrics,
        seed_spread=seed_spread(primary),
        calls={name: count / len(records) for name, count in sorted(calls.items())},
        turns=sum(record.turns for record in records) / len(records),
        milliseconds=1e3 * sum(block.seconds for block in blocks) / len(records),
        prepare_seconds=sum(block.prepare_seconds for block in blocks),
        invalid=played.invalid,
        failed=failed / len(records),
        stops={str(reason): count for reason, count in sorted(stops.items())},
        ranks=np.bincount(ranks, minlength=LIST + 1).tolist(),
        reward=math.fsum(record.reward for record in records) / len(records),
        terms={
            name: math.fsum(record.terms.get(name, 0.0) for record in records) / len(records)
            for name in sorted({name for record in records for name in record.terms})
        },
        versus=versus,
        order=_order(next(iter(played.seeds.values())), played.reordered, rng),
        error=next((record.error for record in records if record.error and record.stop in ERRORS), None),
    )


def _versus(
    bootstrap: PairedBootstrap[tuple[str, str]], names: list[str], best: str | None, rng: np.random.Generator
) -> dict[str, dict[str, Versus]]:
    others = [name for name in names if name != best]
    if best is None or not others:
        return {}
    result: dict[str, dict[str, Versus]] = {name: {} for name in others}
    for metric in METRICS:
        found = _corrected(bootstrap, [(name, best) for name in others], metric, rng)
        for name, (comparison, p) in zip(others, found, strict=True):
            result[name][metric] = Versus(best, comparison, p)
    return result


def _pairs(bootstrap: PairedBootstrap[tuple[str, str]], names: list[str], rng: np.random.Generator) -> list[Pair]:
    chosen = [(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]
    if not chosen:
        return []
    return [
        Pair(*pair, *found) for pair, found in zip(chosen, _corrected(bootstrap, chosen, PRIMARY, rng), strict=True)
    ]


def _planned(
    bootstrap: PairedBootstrap[tuple[str, str]], played: Sequence[Played], rng: np.random.Generator
) -> list[Planned]:
    rows = {each.row.name: each.row for each in played}
    subject = next((name for name in reversed(list(TRAINED)) if name in rows), None)
    if subject is None:
        return []
    others = [name for name, row in rows.items() if row.role == "baseline" or row.stage or name in ("oracle", *FROZEN)]
    pairs = [(subject, name) for name in others if name != subject]
    found = {metric: _corrected(bootstrap, pairs, metric, rng) for metric in COMPARED if pairs}
    return [
        Planned(*pair, {m: found[m][i][0] for m in COMPARED}, {m: found[m][i][1] for m in COMPARED})
        for i, pair in enumerate(pairs)
    ]


def _corrected(
    bootstrap: PairedBootstrap[tuple[str, str]],
    pairs: Sequence[tuple[str, str]],
    metric: str,
    rng: np.random.Generator,
) -> list[tuple[Comparison, float]]:
    """First minus second of each pair, and its p value corrected for their number."""
    comparisons = compare(bootstrap, [((first, metric), (second, metric)) for first, second in pairs], rng)
    return list(zip(comparisons, holm([comparison.p for comparison in comparisons]), strict=True))


def _order(blocks: Sequence[Block], reordered: Sequence[Block], rng: np.random.Generator) -> OrderSensitivity | None:
    again = {record.task: record for record in records_of(reordered)}
    both = [(record, again[record.task]) for record in records_of(blocks) if record.task in again]
    if not both:
        return None
    change = {
        name: from_ranks(ranks_of([pair[i] for pair in both]), [PRIMARY])[PRIMARY]
        for i, name in enumerate(("first", "other"))
    }
    (comparison,) = compare(PairedBootstrap(change, rng), [("other", "first")], rng)
    return OrderSensitivity(
        tasks=len(both),
        same_first=float(np.mean([a.ranking[:1] == b.ranking[:1] for a, b in both])),
        overlap=float(np.mean([_overlap(a.ranking, b.ranking) for a, b in both])),
        absolute=float(np.abs(change["other"] - change["first"]).mean()),
        change=comparison,
    )


def _overlap(first: Sequence[int], second: Sequence[int]) -> float:
    longest = max(len(first), len(second))
    return len(set(first) & set(second)) / longest if longest else 1.0


def _controls(ranks: Mapping[str, NDArray[np.int64]], pool: int | None) -> list[Control]:
    if pool is None:
        return []
    mean, sd = chance(pool)
    found = []
    for name in CHANCE_CONTROLS:
        if name in ranks:
            # Seeds of the random agent are independent episodes on the same tasks.
            values = from_ranks(ranks[name].ravel(), [PRIMARY])[PRIMARY]
            z = (float(values.mean()) - mean) / (sd / math.sqrt(len(values)))
            found.append((name, float(values.mean()), z, math.erfc(abs(z) / math.sqrt(2))))
    adjusted = holm([p for *_, p in found])
    return [Control(name, own, mean, z, p) for (name, own, z, _), p in zip(found, adjusted, strict=True)]
