"""What a part is worth: rows that lack one, each compared with the row that has all of them.

Tools are taken away when the row plays: the scripted agent calls fewer, and to policies they answer for another task
(`benchmarks.permuted`). Parts of a training method are rows with a stage of their own (`benchmarks.presets`). All
differences of a table are paired by task and seed, and corrected by Holm for the number of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentrec_env.metrics import from_ranks
from agentrec_env.statistics import Comparison, Interval, PairedBootstrap, compare, holm
from agentrec_env.tools import resolve_tools
from agents.scripted import DEFAULT_TOOLS
from benchmarks.played import Played, ranks_of
from benchmarks.presets import TRACK
from benchmarks.suite import Row

READERS = (
    Row("written evidence", "benchmarks.ceiling:Written", "control", tracks=(TRACK,)),
    Row("written evidence, additive", "benchmarks.ceiling:Additive", "control", tracks=(TRACK,)),
)
"""The best reader of what the tools of the embedded policy write, and the simplest (`benchmarks.ceiling`)."""
METRICS = ("ndcg@10", "hit@1")
"""What ablations are compared in."""


@dataclass(frozen=True)
class Part:
    """A row of an ablation."""

    name: str
    seeds: tuple[int, ...]
    """That all of its figures are of: those that the reference has too; all of its own where there are none."""
    metrics: Mapping[str, Interval]
    differences: Mapping[str, Comparison]
    """This row minus the reference, on these seeds; empty for the reference and where it was not played on them."""
    p_holm: Mapping[str, float]
    calls: float
    """Tool calls an episode."""
    invalid: float
    """Share of episodes without a valid list for which the agent is to blame."""


@dataclass(frozen=True)
class Ablation:
    """The rows of one heading."""

    title: str
    references: list[Part]
    """The row that has all parts, once for each choice of seeds that parts are compared on."""
    parts: list[Part]


def tool_rows(reference: Row, offered: Sequence[str]) -> list[Row]:
    """Rows of an agent with the knowledge of each tool alone, and of all but each; with the reference's first seed.

    Args:
        reference: The agent with all of them. The scripted one calls those that it is told to; to others, the tools
            that are taken away answer for another task.
        offered: As the environment's argument `tools`.
    """
    names, name = list(resolve_tools(offered)), reference.name

    def part(title: str, heading: str, **changes: Any) -> Row:
        ablation = f"{heading}: {name}"
        return replace(reference, name=title, ablation=ablation, reference=name, seeds=1, tracks=(TRACK,), **changes)

    def others(tool: str, group: Sequence[str]) -> list[str]:
        return [other for other in group if other != tool]

    if reference.agent == "scripted":
        called = [tool for tool in DEFAULT_TOOLS if tool in names]
        told = {f"{name}: {tool} alone": ("Each tool alone", [tool]) for tool in names}
        told |= {f"{name} without {tool}": ("Each tool left out", others(tool, called)) for tool in called}
        return [
            part(title, heading, kwargs={**reference.kwargs, "tools": tools})
            for title, (heading, tools) in told.items()
        ]
    alone = "Each tool alone, the others permuted"
    return [
        *(part(f"{name}: {tool} alone", alone, permuted=tuple(others(tool, names))) for tool in names),
        *(part(f"{name}, {tool} permuted", "Each tool permuted", permuted=(tool,)) for tool in names),
    ]


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
    parts: list[Played] = []
    references: dict[str, Played] = {}
    for each in rows:
        shared = [seed for seed in each.seeds if reference is not None and seed in reference.seeds]
        # On the seeds that both have, so that the luck of a seed is not taken for the worth of a part.
        parts.append(each.on(shared) if shared else each)
        values |= _values("part", each.row.name, parts[-1])
        if reference is not None and shared:
            references[each.row.name] = reference.on(shared)
            values |= _values("reference", each.row.name, references[each.row.name])
    bootstrap = PairedBootstrap(values, rng, seeds={key: key[1] for key in values})
    compared: dict[str, dict[str, Comparison]] = {name: {} for name in references}
    corrected: dict[str, dict[str, float]] = {name: {} for name in references}
    for metric in METRICS if references else ():
        pairs = [(("part", name, metric), ("reference", name, metric)) for name in references]
        found = compare(bootstrap, pairs, rng)
        for name, comparison, p in zip(references, found, holm([each.p for each in found]), strict=True):
            compared[name][metric], corrected[name][metric] = comparison, p

    def line(kind: str, name: str, each: Played) -> Part:
        metrics = {metric: bootstrap.interval((kind, name, metric)) for metric in METRICS}
        own = kind == "part" and name in references
        differences, p_holm = (compared[name], corrected[name]) if own else ({}, {})
        return Part(each.row.name, tuple(each.seeds), metrics, differences, p_holm, each.calls, each.invalid)

    whole = {tuple(each.seeds): line("reference", name, each) for name, each in references.items()}
    return Ablation(title, list(whole.values()), [line("part", each.row.name, each) for each in parts])


def _values(kind: str, part: str, played: Played) -> dict[tuple[str, str, str], Any]:
    """float64 [seeds, tasks] by kind, name of the part and metric."""
    ranks = np.array([ranks_of(played.records(seed)) for seed in played.seeds])
    found = from_ranks(ranks.ravel(), METRICS)
    return {(kind, part, metric): found[metric].reshape(ranks.shape) for metric in METRICS}
