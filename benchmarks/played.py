"""What a row played on a track, which all sections of the report are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrec_env.types import IntArray, StopReason
from benchmarks.records import Block, Record
from benchmarks.suite import Row

ERRORS = (StopReason.AGENT_ERROR, StopReason.ENVIRONMENT_ERROR)
"""Ends of an episode that code is to blame for, the agent's or the environment's."""


@dataclass(frozen=True)
class Played:
    """The finished blocks of a row on a track."""

    row: Row
    seeds: Mapping[int, Sequence[Block]]
    """By seed, in the fixed order of the candidates."""
    reordered: Sequence[Block] = ()
    """Of the first seed, in another order."""

    def records(self, seed: int | None = None) -> list[Record]:
        """Records of a seed, in order of the tasks; or those of all seeds, one after another."""
        seeds = self.seeds if seed is None else [seed]
        return [record for each in seeds for record in records_of(self.seeds[each])]

    def on(self, seeds: Sequence[int]) -> Played:
        """The row with some of its seeds alone."""
        return replace(self, seeds={seed: self.seeds[seed] for seed in seeds}, reordered=())

    @property
    def calls(self) -> float:
        """Tool calls an episode."""
        records = self.records()
        return sum(sum(record.calls.values()) for record in records) / len(records)

    @property
    def invalid(self) -> float:
        """Share of episodes without a valid list for which the agent is to blame."""
        stops = [record.stop for record in self.records()]
        return 1 - sum(stop in (StopReason.ANSWERED, *ERRORS) for stop in stops) / len(stops)


def chains(played: Sequence[Played]) -> dict[str, tuple[int, ...]]:
    """The seeds of each trained row, by its name: seed k of a stage starts from seed k of the stage before it, so that
    rows with the same seeds share what a seed does to all of them."""
    return {each.row.name: tuple(each.seeds) for each in played if each.row.stage}


def records_of(blocks: Sequence[Block]) -> list[Record]:
    """The records of some blocks."""
    return [record for block in blocks for record in block.records]


def ranks_of(records: Sequence[Record]) -> IntArray:
    """int64 [len(records)]: place of the target, 1 = first; 0 where it is missed."""
    return np.array([record.rank for record in records], dtype=np.int64)
