"""Figures of a step that are means: sums and what to divide them by, which add up over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from algos.distributed import Ranks


class Tally:
    """Sums by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        self._shares: dict[str, tuple[dict[str, float], float]] = {}

    def add(self, name: str, amount: float, count: float = 1.0) -> None:
        """Add `amount`, which is a sum over `count`."""
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = before[0] + amount, before[1] + count

    def add_shares(self, name: str, amounts: Mapping[str, float], count: float) -> None:
        """Add several sums over the same `count`; "<name>/<key>" of those that somebody adds."""
        before, counted = self._shares.get(name, ({}, 0.0))
        sums = {key: before.get(key, 0.0) + amounts.get(key, 0.0) for key in before | dict(amounts)}
        self._shares[name] = sums, counted + count

    def add_metrics(self, metrics: Mapping[str, Tensor]) -> None:
        """Add metrics of `algos.batch`: float64 [2] each, a sum and what to divide it by."""
        if metrics:  # one transfer for all
            for name, pair in zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True):
                self.add(name, *pair)

    def join(self, other: Tally) -> None:
        """Add all that another has."""
        for name, pair in other._sums.items():
            self.add(name, *pair)
        for name, (amounts, count) in other._shares.items():
            self.add_shares(name, amounts, count)

    def over(self, ranks: Ranks) -> Tally:
        """The sums of all ranks."""
        whole = Tally()
        for part in ranks.gather(self):
            whole.join(part)
        return whole

    def means(self) -> dict[str, float]:
        """By name; what has no count, or is not finite, is left out."""
        means = {name: amount / count for name, (amount, count) in self._sums.items() if count}
        for name, (amounts, count) in self._shares.items():
            means |= {f"{name}/{key}": amount / count for key, amount in amounts.items() if count}
        return {name: mean for name, mean in sorted(means.items()) if math.isfinite(mean)}
