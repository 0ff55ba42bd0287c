"""Where an agent helps: the primary metric over kinds of tasks.

Kinds follow from the data alone: how much the user is known to have taken, how often the item that was taken is in the
training part, and how far the signals behind the tools disagree on the pool. No agent sees which kind a task is of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from agentrec_env.data.world import World
from agentrec_env.metrics import from_ranks
from agentrec_env.statistics import Comparison, Interval, PairedBootstrap, compare, holm
from agentrec_env.tools.signals import matrix
from agentrec_env.types import FloatArray, IntArray
from benchmarks.played import Played, chains, ranks_of
from benchmarks.suite import PRIMARY

MOST = 5_000
"""Tasks that are looked at; they come in random order."""
LEAST = 10
"""Tasks that a kind needs to be shown."""
HISTORY = ((1, "1–2 known items"), (3, "3–5"), (6, "6–10"), (11, "more than 10"))
HEAD = 0.2
"""Share of the items with any training interaction that are its head: the most frequent ones."""
SIGNALS = (
    "item_knn",
    "user_knn",
    "embedding_recent",
    "transition",
    "category",
    "brand",
    "price",
    "title",
    "popularity",
)
"""What the candidate lists of `score_candidates`, `candidates_analyze` and `get_item_stats` are ordered by."""


@dataclass(frozen=True)
class Kind:
    """Tasks of one kind."""

    name: str
    tasks: int
    means: Mapping[str, Interval]
    """Primary metric by row."""
    differences: Mapping[str, Comparison]
    """Row minus the reference."""
    p_holm: Mapping[str, float]
    """Corrected for all differences of the stratification."""


@dataclass(frozen=True)
class Strata:
    """The tasks of a track cut into kinds by one property."""

    title: str
    reference: str | None
    kinds: list[Kind]


def stratify(world: World, played: Sequence[Played], reference: str | None, rng: np.random.Generator) -> list[Strata]:
    """The primary metric of rows by history, popularity and disagreement.

    Args:
        world: Of the track.
        played: Rows, on the same tasks.
        reference: Row that differences are to.
        rng: Of the resampling.
    """
    if not played:
        return []
    tasks = [record.task for record in played[0].records(next(iter(played[0].seeds)))][:MOST]
    values: dict[str, Any] = {}
    for each in played:
        ranks = np.array([ranks_of(each.records(seed))[: len(tasks)] for seed in each.seeds])
        values[each.row.name] = from_ranks(ranks.ravel(), [PRIMARY])[PRIMARY].reshape(ranks.shape)
    reference = reference if reference in values else None
    made = (by_history, by_popularity, by_disagreement)
    cuts = [cut for make in made if (cut := make(world, tasks)) is not None]
    seeds = chains(played)
    return [_strata(title, names, code, values, seeds, reference, rng) for title, names, code in cuts]


Cut = tuple[str, Sequence[str], IntArray]
"""A title, the kinds' names, and int64 [tasks]: the kind of each task."""


def by_history(world: World, tasks: Sequence[int]) -> Cut:
    """By how many items the user is known to have taken."""
    known = [len(world.view(world.task("test", task)).known) for task in tasks]
    code = np.searchsorted([least for least, _ in HISTORY], known, side="right") - 1
    return "the user's history", [name for _, name in HISTORY], code.astype(np.int64)


def by_popularity(world: World, tasks: Sequence[int]) -> Cut:
    """By how often the item that was taken occurs in the training part."""
    popularity = world.split.evidence(0).popularity
    seen = np.sort(popularity[popularity > 0])
    least = seen[int((1 - HEAD) * len(seen))] if len(seen) else 1
    count = popularity[[world.task("test", task).target for task in tasks]]
    code = np.where(count == 0, 2, np.where(count >= least, 0, 1))
    names = [f"head (taken {least:,.0f} times or more)", "tail", "never seen in training"]
    return "how often the item is taken in the training part", names, code.astype(np.int64)


def by_disagreement(world: World, tasks: Sequence[int]) -> Cut | None:
    """By thirds of the signals' disagreement; None where there are no pools."""
    if world.catalog:
        return None
    found = np.array([disagreement(world, task) for task in tasks])
    code = np.searchsorted(np.quantile(found, [1 / 3, 2 / 3]), found, side="left")
    return "how far the tools disagree", ["they agree", "in between", "they disagree"], code.astype(np.int64)


def disagreement(world: World, index: int) -> float:
    """1 minus the mean rank correlation (Spearman) of each two signals on the pool; signals that tell nothing apart
    are left out."""
    task = world.task("test", index)
    from scipy.stats import rankdata

    signals = matrix(world.view(task), task.candidates, SIGNALS)
    ranks = [rankdata(np.nan_to_num(column, nan=np.nanmin(column))) for column in signals.T if _varies(column)]
    if len(ranks) < 2:
        return 1.0
    return float(1 - np.mean([np.corrcoef(first, second)[0, 1] for first, second in combinations(ranks, 2)]))


def _varies(column: FloatArray) -> bool:
    known = column[~np.isnan(column)]
    return len(known) > 1 and bool(np.ptp(known) > 0)


def _strata(
    title: str,
    names: Sequence[str],
    code: IntArray,
    values: Mapping[str, Any],
    seeds: Mapping[str, tuple[int, ...]],
    reference: str | None,
    rng: np.random.Generator,
) -> Strata:
    kinds: list[tuple[str, int, dict[str, Interval], dict[str, Comparison]]] = []
    found: list[tuple[int, str, Comparison]] = []
    for number, name in enumerate(names):
        here = code == number
        if here.sum() < LEAST:
            continue
        bootstrap = PairedBootstrap({row: table[:, here] for row, table in values.items()}, rng, seeds=seeds)
        means = {row: bootstrap.interval(row) for row in values}
        others = [row for row in values if row != reference] if reference is not None else []
        pairs = [(row, str(reference)) for row in others]
        differences = dict(zip(others, compare(bootstrap, pairs, rng), strict=True)) if others else {}
        found += [(len(kinds), row, comparison) for row, comparison in differences.items()]
        kinds.append((name, int(here.sum()), means, differences))
    corrected = holm([comparison.p for *_, comparison in found])
    by_kind: list[dict[str, float]] = [{} for _ in kinds]
    for (number, row, _), p in zip(found, corrected, strict=True):
        by_kind[number][row] = p
    return Strata(title, reference, [Kind(*kind, p) for kind, p in zip(kinds, by_kind, strict=True)])
