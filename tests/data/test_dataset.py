"""Datasets sort, validate, filter and stay as they were made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.synthetic import make_world
from tests.conftest import random_dataset

LOGS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 4)), min_size=1, max_size=60)


def build(log: list[tuple[int, int, int]], with_time: bool = True) -> Dataset:
    user, item, time = (list(column) for column in zip(*log, strict=True))
    ratings = np.arange(len(log), dtype=np.float32)  # the place in the file, so that order can be checked
    items = Items.bare([f"i{i}" for i in range(8)])
    return Dataset.build("log", items, [f"u{u}" for u in range(6)], user, item, ratings, time if with_time else None)


@given(LOGS)
def test_rows_are_sorted_by_user_then_time_then_file_order(log: list[tuple[int, int, int]]) -> None:
    data = build(log)
    assert data.time is not None
    got = list(zip(data.user.tolist(), data.time.tolist(), data.rating.astype(int).tolist(), strict=True))
    assert got == sorted((u, t, place) for place, (u, _, t) in enumerate(log))
    for user in range(6):
        assert (data.user[data.rows(user)] == user).all()
    assert data.indptr[-1] == len(log)


def test_order_breaks_ties_of_time() -> None:
    data = Dataset.build("d", Items.bare(["a", "b", "c"]), ["u"], [0, 0, 0], [0, 1, 2], None, [5, 5, 1], [1, 0, 2])
    assert data.item.tolist() == [2, 1, 0]


@given(LOGS)
def test_drop_repeats_keeps_the_first(log: list[tuple[int, int, int]]) -> None:
    data = build(log)
    kept = data.drop_repeats()
    seen: set[tuple[int, int]] = set()
    expected = []
    for user, item, place in zip(data.user.tolist(), data.item.tolist(), data.rating.tolist(), strict=True):
        if (user, item) not in seen:
            seen.add((user, item))
            expected.append(place)
    assert kept.rating.tolist() == expected


@given(LOGS, st.integers(1, 4))
def test_k_core_equals_a_plain_loop(log: list[tuple[int, int, int]], k: int) -> None:
    left = {(u, i, place) for place, (u, i, _) in enumerate(log)}
    while True:
        users = {u: sum(u == x for x, _, _ in left) for u, _, _ in left}
        items = {i: sum(i == x for _, x, _ in left) for _, i, _ in left}
        new = {(u, i, p) for u, i, p in left if users[u] >= k and items[i] >= k}
        if new == left:
            break
        left = new
    if not left:
        with pytest.raises(ValueError, match="smaller k"):
            build(log).k_core(k)
        return
    core = build(log).k_core(k)
    got = {
        (core.user_ids[u], core.items.ids[i], int(p)) for u, i, p in zip(core.user, core.item, core.rating, strict=True)
    }
    assert got == {(f"u{u}", f"i{i}", p) for u, i, p in left}
    assert core.num_users == len({u for u, _, _ in left})
    assert core.num_items == len({i for _, i, _ in left})


def test_arrays_are_read_only(tiny: Dataset) -> None:
    for array in (tiny.user, tiny.item, tiny.rating, tiny.time, tiny.indptr, tiny.items.prices):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_filters_keep_the_choice_model() -> None:
    world = make_world(num_users=200, num_items=600).dataset
    core = world.k_core(3)
    assert core.num_items < world.num_items
    assert core.choice_model is not None
    assert world.choice_model is not None
    row = len(core) // 2
    user, place = core.user[row], row - core.indptr[core.user[row]]
    times = world.time[world.rows(world.user_ids.index(core.user_ids[user]))]  # type: ignore[index]
    old = world.rows(world.user_ids.index(core.user_ids[user])).start + times.tolist().index(core.time[row])  # type: ignore[index]
    assert old - world.rows(world.user_ids.index(core.user_ids[user])).start >= place
    items = np.arange(core.num_items)
    same = np.array([world.items.index[core.items.ids[i]] for i in items])
    assert core.choice_model.utilities(row, items).tolist() == world.choice_model.utilities(old, same).tolist()


def test_with_items_rewrites_a_copy(tiny: Dataset) -> None:
    before = tiny.item[3]
    changed = tiny.with_items(np.array([3]), np.array([(before + 1) % tiny.num_items]))
    assert changed.item[3] != before == tiny.item[3]
    assert changed.fingerprint != tiny.fingerprint


def test_fingerprint_is_of_the_data_not_of_the_name(tiny: Dataset) -> None:
    assert random_dataset().fingerprint == tiny.fingerprint != random_dataset(seed=1).fingerprint


@pytest.mark.parametrize(
    ("user", "item", "rating", "message"),
    [([], [], None, "no interactions"), ([0], [9], None, "'item' must lie in 0..1"), ([3], [0], None, "'user'"),
     ([0, 0], [0], None, "'item' has 1 values for 2"), ([0], [0], [1, 2], "'rating' has 2")],
)  # fmt: skip
def test_bad_columns_are_named(user: list[int], item: list[int], rating: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset.build("d", Items.bare(["a", "b"]), ["u"], user, item, rating)


def test_items_of_unequal_length_and_repeated_ids() -> None:
    with pytest.raises(ValueError, match=r"titles has 1 entries for 2 ids"):
        Items(["a", "b"], ["x"], [None] * 2, [()] * 2, np.zeros(2), [""] * 2)
    with pytest.raises(ValueError, match="unique"):
        _ = Items.bare(["a", "a"]).index
