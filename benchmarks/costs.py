"""What a request costs: tool calls, tokens read and written, milliseconds, each with its interval over tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentrec_env.statistics import Interval, PairedBootstrap
from benchmarks.played import Played
from benchmarks.records import Record


@dataclass(frozen=True)
class Cost:
    """Of a row, an episode; intervals over tasks and seeds."""

    name: str
    role: str
    calls: Interval
    read: Interval | None
    """Tokens; None where nobody counted them in every episode."""
    written: Interval | None
    milliseconds: Interval
    """Time of the agent, shared evenly by all episodes that it works on at once; tools are not in it."""


def costs(played: Sequence[Played], rng: np.random.Generator) -> list[Cost]:
    """Costs of rows that played the same tasks."""
    amounts: dict[str, Callable[[Record], float | None]] = {
        "calls": lambda record: float(sum(record.calls.values())),
        "read": lambda record: record.read,
        "written": lambda record: record.written,
        "milliseconds": lambda record: 1e3 * record.seconds,
    }
    values: dict[tuple[str, str], list[list[float]]] = {}
    for each in played:
        for name, amount in amounts.items():
            table = [[amount(record) for record in each.records(seed)] for seed in each.seeds]
            known = [[value for value in line if value is not None] for line in table]
            if all(len(line) == len(whole) for line, whole in zip(known, table, strict=True)):
                values[each.row.name, name] = known
    if not values:
        return []
    bootstrap = PairedBootstrap(values, rng, resamples=2_000)
    found = {key: bootstrap.interval(key) for key in values}
    return [
        Cost(
            each.row.name,
            each.row.role,
            found[each.row.name, "calls"],
            found.get((each.row.name, "read")),
            found.get((each.row.name, "written")),
            found[each.row.name, "milliseconds"],
        )
        for each in played
    ]
