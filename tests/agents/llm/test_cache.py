"""Keys and values: what is planned is used, and what sequences hold survives every move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.llm.cache import Budget, Cache, Pool

SHAPE = (2, 1, 4)
CAPACITY = 8
SLOT = 2 * 2 * 1 * 4 * CAPACITY * 4
"""Bytes: layers, keys and values, heads, dimensions, tokens, float32."""


def cache(slots: int) -> Cache:
    return Cache(SHAPE, [CAPACITY], torch.float32, torch.device("cpu"), Budget(slots * SLOT))


def mark(cache: Cache, key: int) -> None:
    pool, slot = cache.place(key)
    pool.data[:, :, slot] = key + 1


def holds(cache: Cache, key: int) -> bool:
    pool, slot = cache.place(key)
    return bool((pool.data[:, :, slot] == key + 1).all())


def fill(cache: Cache) -> int:
    """Sequences that find room."""
    for key in range(10_000):
        try:
            cache.reserve(key, CAPACITY)
        except torch.OutOfMemoryError:
            return key
        mark(cache, key)
    raise AssertionError("there is no end to it")


@given(st.integers(1, 300))
def test_all_that_is_planned_holds_sequences(slots: int) -> None:
    held = cache(slots)
    assert fill(held) == slots
    assert all(holds(held, key) for key in range(slots))


@given(st.integers(1, 60), st.lists(st.integers(0, 60), max_size=60))
def test_spare_slots_are_given_back_and_taken_again(slots: int, dropped: list[int]) -> None:
    held = cache(slots)
    fill(held)
    left = set(range(slots)) - set(dropped)
    for key in set(range(slots)) - left:
        held.drop(key)
    held.trim()
    assert held.pools[0].data.shape[2] == len(left)
    assert all(holds(held, key) for key in left)
    for key in range(10_000, 10_000 + slots - len(left)):
        held.reserve(key, CAPACITY)
        mark(held, key)
    assert all(holds(held, key) for key in left)


def test_a_device_without_room_for_a_block_leaves_sequences_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    held = cache(10)
    for key in range(8):
        held.reserve(key, CAPACITY)
        mark(held, key)
    block = Pool._block

    def full(pool: Pool, slots: int) -> torch.Tensor:
        if slots > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return block(pool, slots)

    monkeypatch.setattr(Pool, "_block", full)
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            held.reserve(8, CAPACITY)
        assert all(holds(held, key) for key in range(8))
    monkeypatch.undo()
    held.reserve(8, CAPACITY)
    assert all(holds(held, key) for key in range(8))
