"""What a row played on a track, which all sections of the report are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agentrec_env.types import IntArray
from benchmarks.records import Block, Record
from benchmarks.suite import Row


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

    @property
    def calls(self) -> float:
        """Tool calls an episode."""
        records = self.records()
        return sum(sum(record.calls.values()) for record in records) / len(records)


def records_of(blocks: Sequence[Block]) -> list[Record]:
    """The records of some blocks."""
    return [record for block in blocks for record in block.records]


def ranks_of(records: Sequence[Record]) -> IntArray:
    """int64 [len(records)]: place of the target, 1 = first; 0 where it is missed."""
    return np.array([record.rank for record in records], dtype=np.int64)
