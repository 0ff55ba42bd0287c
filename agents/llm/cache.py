"""Keys and values of sequences that grow, join and leave: allocated ahead, never concatenated, dense to multiply.

Sequences of similar length share a pool, whose slots all have one capacity, so that a batch over a pool's first slots
reads little that belongs to nobody. A sequence that outgrows its pool moves to the next, and the last of a pool fills
the hole that another leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable, Sequence
from contextlib import suppress

import torch
from torch import Tensor


class Budget:
    """Bytes that caches may take together.

    Args:
        limit: None: as many as there are.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._taken = 0

    def take(self, count: int) -> None:
        """Note that `count` bytes more are taken.

        Raises:
            torch.OutOfMemoryError: they would be too many; none are noted.
        """
        if count > self.left:
            raise torch.OutOfMemoryError(f"{self._taken + count} bytes of keys and values, {self._limit} are planned")
        self._taken += count

    @property
    def left(self) -> int:
        """Bytes that are not taken."""
        return sys.maxsize if self._limit is None else self._limit - self._taken

    def give(self, count: int) -> None:
        """Note that `count` bytes are free again."""
        self._taken -= count


class Pool:
    """Slots of one capacity. Slots [0, len(holders)) are taken, the others spare."""

    def __init__(
        self, shape: tuple[int, int, int], capacity: int, dtype: torch.dtype, device: torch.device, budget: Budget
    ) -> None:
        layers, heads, dim = shape
        self.capacity = capacity
        self.holders: list[Hashable] = []
        self.data = torch.zeros(layers, 2, 0, heads, capacity, dim, dtype=dtype, device=device)
        """[layers, 2, slots, heads, capacity, dim]: keys and values."""
        self.version = 0
        """Goes up when `data` is another block."""
        self._budget = budget
        self._slot = layers * 2 * heads * capacity * dim * self.data.element_size()

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values [slots, heads, capacity, dim] of one layer, as views."""
        data = self.data[number]
        return data[0], data[1]

    def take(self, holder: Hashable) -> int:
        """A slot for `holder`; where none is spare, all move to a larger block, of at most twice as many."""
        taken = len(self.holders)
        if taken == self.data.shape[2]:
            try:
                self._resize(max(4, 2 * taken))
            except torch.OutOfMemoryError:
                self._resize(taken + max(1, min(taken // 4, self._budget.left // self._slot)))
        self.holders.append(holder)
        return len(self.holders) - 1

    def trim(self) -> None:
        """Give spare slots back, as far as there is room to move the others."""
        if len(self.holders) < self.data.shape[2]:
            with suppress(torch.OutOfMemoryError):
                self._resize(len(self.holders))

    def clear(self) -> None:
        """Forget all holders; the slots are kept."""
        self.holders.clear()
        self.data.zero_()

    def copy(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`."""
        self.data[:, :, target] = self.data[:, :, source]

    def swap(self, one: int, other: int) -> None:
        """Exchange two slots and their holders."""
        kept = self.data[:, :, one].clone()
        self.copy(other, one)
        self.data[:, :, other] = kept
        self.holders[one], self.holders[other] = self.holders[other], self.holders[one]

    def _resize(self, slots: int) -> None:
        """Move to a block of so many slots. For a while there are both; where that is too much, the old one is kept in
        the CPU's memory meanwhile."""
        taken, before = len(self.holders), self.data.shape[2]
        beside = slots * self._slot <= self._budget.left
        more = slots if beside else max(0, slots - before)
        less = before if beside else max(0, before - slots)
        self._budget.take(more * self._slot)
        kept = self.data[:, :, :taken]
        if not beside:
            kept = kept.to("cpu", copy=True)
            self.data = self._block(0)
        try:
            block = self._block(slots)
        except RuntimeError:
            self._budget.give(more * self._slot)
            if not beside:
                self.data = self._block(before)
                self.data[:, :, :taken] = kept
                self.version += 1
            raise
        block[:, :, :taken] = kept
        self.data = block
        self.version += 1
        self._budget.give(less * self._slot)

    def _block(self, slots: int) -> Tensor:
        # Zeros, not empty: what lies beyond a sequence is multiplied with a probability of 0, and must be finite.
        return self.data.new_zeros(*self.data.shape[:2], slots, *self.data.shape[3:])


class Cache:
    """Sequences by key, each in a slot of the smallest pool that holds it.

    Args:
        shape: Layers, key-value heads, dimensions of a head.
        capacities: Of the pools, ascending; the last is the longest sequence there can be.
        dtype: Of the keys and values.
        device: That they live on.
        budget: That they are taken from.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        capacities: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        budget: Budget,
    ) -> None:
        self.pools = [Pool(shape, capacity, dtype, device, budget) for capacity in capacities]
        self._places: dict[Hashable, tuple[Pool, int]] = {}

    def place(self, key: Hashable) -> tuple[Pool, int]:
        """Pool and slot of a sequence; changes when others are added, grown, dropped or arranged."""
        return self._places[key]

    def reserve(self, key: Hashable, length: int) -> bool:
        """Make room for `length` tokens of a sequence, keeping what it has; whether anything moved.

        Raises:
            torch.OutOfMemoryError: there is no room; nothing has changed.
        """
        old = self._places.get(key)
        if old is not None and old[0].capacity >= length:
            return False
        pool = next((pool for pool in self.pools if pool.capacity >= length), None)
        if pool is None:
            raise ValueError(f"a sequence of {length} tokens; at most {self.pools[-1].capacity} were provided for")
        slot = pool.take(key)
        if old is not None:
            was, where = old
            pool.data[:, :, slot, :, : was.capacity] = was.data[:, :, where]
            self._leave(was, where)
        self._places[key] = pool, slot
        return True

    def drop(self, key: Hashable) -> None:
        """Forget a sequence; one that is not there is forgotten already."""
        if key in self._places:
            self._leave(*self._places.pop(key))

    def clear(self) -> None:
        """Forget all sequences; their memory is kept for others."""
        self._places.clear()
        for pool in self.pools:
            pool.clear()

    def trim(self) -> None:
        """Give the memory of spare slots back."""
        for pool in self.pools:
            pool.trim()

    def arrange(self, keys: Collection[Hashable]) -> list[tuple[Pool, list[Hashable]]]:
        """Bring `keys` to the front of their pools: each pool that has any, and its keys in the order of slots."""
        wanted = set(keys)
        found: list[tuple[Pool, list[Hashable]]] = []
        for pool in self.pools:
            count = sum(holder in wanted for holder in pool.holders)
            behind = iter([slot for slot in range(count, len(pool.holders)) if pool.holders[slot] in wanted])
            for slot in range(count):
                if pool.holders[slot] not in wanted:
                    other = next(behind)
                    pool.swap(slot, other)
                    self._places[pool.holders[slot]] = pool, slot
                    self._places[pool.holders[other]] = pool, other
            if count:
                found.append((pool, pool.holders[:count]))
        return found

    def _leave(self, pool: Pool, slot: int) -> None:
        last = len(pool.holders) - 1
        if slot != last:
            pool.copy(last, slot)
            pool.holders[slot] = pool.holders[last]
            self._places[pool.holders[slot]] = pool, slot
        pool.holders.pop()
