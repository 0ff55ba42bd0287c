"""What a part is worth: rows that lack one, each compared with the row that has all of them.

Tools are taken away when the row plays: an agent is offered one tool alone, or all but one. Parts of a training method
are rows with a stage of their own (`benchmarks.presets`). All differences of a table are paired by task and seed, and
corrected by Holm for the number of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentrec_env.metrics import from_ranks
from agentrec_env.statistics import Comparison, Interval, PairedBootstrap, compare, holm
from agents.scripted import DEFAULT_TOOLS
from benchmarks.played import Played, ranks_of
from benchmarks.presets import TRACK
from benchmarks.suite import Row

WRITTEN = Row("written evidence", "benchmarks.ceiling:Written", "control", tracks=(TRACK,))
"""The best reader of what the tools of the embedded policy write (`benchmarks.ceiling`)."""
METRICS = ("ndcg@10", "hit@1")
"""What ablations are compared in."""


@dataclass(frozen=True)
class Part:
    """A row of an ablation; differences are this row minus the reference, on the seeds that both have."""

    name: str
    seeds: int
    metrics: Mapping[str, Interval]
    differences: Mapping[str, Comparison]
    """Empty where the reference was not played."""
    p_holm: Mapping[str, float]
    calls: float
    """Tool calls an episode."""


@dataclass(frozen=True)
class Ablation:
    """The rows of one heading."""

    title: str
    reference: str
    metrics: Mapping[str, Interval]
    """Of the reference; empty where it was not played."""
    calls: float
    parts: list[Part]


def tool_rows(reference: Row, names: Sequence[str]) -> list[Row]:
    """Rows of an agent that is offered each tool alone, and all but each; with the reference's first seed alone.

    Args:
        reference: The agent with all of them.
        names: Of the tools on offer.
    """
    scripted = reference.agent == "scripted"
    called = [name for name in DEFAULT_TOOLS if name in names]
    rows = []
    for title, kept in (("alone", lambda tool: [tool]), ("without", lambda tool: [n for n in names if n != tool])):
        for tool in called if scripted and title == "without" else names:
            kwargs: dict[str, Any] = dict(reference.kwargs)
            if scripted:
                kwargs["tools"] = [tool] if title == "alone" else [n for n in called if n != tool]
            name = f"{reference.name}: {tool} alone" if title == "alone" else f"{reference.name} without {tool}"
            heading = "Each tool alone" if title == "alone" else "Each tool left out"
            rows.append(
                replace(
                    reference,
                    name=name,
                    kwargs=kwargs,
                    env={**reference.env, "tools": kept(tool)},
                    seeds=1,
                    tracks=(TRACK,),
                    ablation=f"{heading}: {reference.name}",
                    reference=reference.name,
                )
            )
    return rows


def ablate(played: Sequence[Played], rng: np.random.Generator) -> list[Ablation]:
    """Every heading that has a row, in the order of the rows.

    Args:
        played: All rows of a track, references among them, on the same tasks.
        rng: Of the resampling.
    """
    by_name = {each.row.name: each for each in played}
    headings: dict[str, list[Played]] = {}
    for each in played:
        if each.row.ablation:
            headings.setdefault(each.row.ablation, []).append(each)
    return [_ablation(title, rows, by_name.get(rows[0].row.reference), rng) for title, rows in headings.items()]


def _ablation(title: str, rows: Sequence[Played], reference: Played | None, rng: np.random.Generator) -> Ablation:
    values: dict[tuple[str, str, str], Any] = {}
    pairs = []
    for each in rows:
        shared = [seed for seed in each.seeds if reference is not None and seed in reference.seeds]
        values |= _values("row", each, list(each.seeds))
        if reference is not None and shared:
            # On the seeds that both have, so that the luck of a seed is not taken for the worth of a part.
            values |= _values("own", each, shared) | _values("other", reference, shared, each.row.name)
            pairs.append(each.row.name)
    if reference is not None:
        values |= _values("reference", reference, list(reference.seeds))
    bootstrap = PairedBootstrap(values, rng)
    compared: dict[str, dict[str, Comparison]] = {name: {} for name in pairs}
    corrected: dict[str, dict[str, float]] = {name: {} for name in pairs}
    for metric in METRICS if pairs else ():
        found = compare(bootstrap, [(("own", name, metric), ("other", name, metric)) for name in pairs], rng)
        for name, comparison, p in zip(pairs, found, holm([each.p for each in found]), strict=True):
            compared[name][metric], corrected[name][metric] = comparison, p
    parts = [
        Part(
            each.row.name,
            len(each.seeds),
            {metric: bootstrap.interval(("row", each.row.name, metric)) for metric in METRICS},
            compared.get(each.row.name, {}),
            corrected.get(each.row.name, {}),
            each.calls,
        )
        for each in rows
    ]
    name = rows[0].row.reference
    whole = {} if reference is None else {m: bootstrap.interval(("reference", name, m)) for m in METRICS}
    return Ablation(title, name, whole, 0.0 if reference is None else reference.calls, parts)


def _values(
    kind: str, played: Played, seeds: Sequence[int], name: str | None = None
) -> dict[tuple[str, str, str], Any]:
    """float64 [seeds, tasks] by kind, name of the row and metric."""
    ranks = np.array([ranks_of(played.records(seed)) for seed in seeds])
    found = from_ranks(ranks.ravel(), METRICS)
    return {(kind, name or played.row.name, metric): found[metric].reshape(ranks.shape) for metric in METRICS}
