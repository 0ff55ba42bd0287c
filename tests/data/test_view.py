"""Views: every number equals a plain loop over what may be known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrec_env.data.view import DAY, View
from agentrec_env.data.world import World
from agentrec_env.types import Task
from tests.conftest import random_dataset


def visible(world: World, task: Task) -> np.ndarray:
    """bool [N], the slow way: what statistics may count for ``task``."""
    data, split = world.dataset, world.split
    if split.name == "temporal":
        assert data.time is not None
        return data.time < task.time
    mask = split.evidence_mask(0).copy()
    start = data.rows(task.user).start
    mask[start + task.position : data.rows(task.user).stop] = False
    return mask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["temporal", "leave_one_out"]), st.booleans(), st.integers(0, 10**6))
def test_numbers_equal_a_plain_loop(seed: int, split: str, times: bool, pick: int) -> None:
    world = World(random_dataset(seed, users=20, items=30, times=times or split == "temporal"), split)
    data = world.dataset
    for task_split in ("train", "valid", "test"):
        if not world.num_tasks(task_split):
            continue
        task = world.task(task_split, pick % world.num_tasks(task_split))
        view, mask = world.view(task), visible(world, task)
        items = np.arange(data.num_items)
        expected = np.bincount(data.item[mask], minlength=data.num_items)
        assert view.popularity(items).tolist() == expected.tolist()
        for item, mean in zip(items, view.mean_rating(items), strict=True):
            ratings = data.rating[mask & (data.item == item)]
            ratings = ratings[~np.isnan(ratings)]
            assert mean == pytest.approx(ratings.mean()) if len(ratings) else np.isnan(mean)
        recent = view.recent_popularity(items, 30)
        if data.time is None:
            assert np.isnan(recent).all()
        else:
            window = mask & (data.time >= task.time - 30 * DAY) & (data.time < task.time)
            assert recent.tolist() == np.bincount(data.item[window], minlength=data.num_items).tolist()


def test_known_is_the_past_and_history_its_end() -> None:
    world = World(random_dataset(per_user=16), "leave_one_out", history_length=10)
    task = world.task("test", 3)
    view = world.view(task)
    rows = world.dataset.rows(task.user)
    assert view.known.tolist() == world.dataset.item[rows][:15].tolist()
    assert view.history.tolist() == view.known[-10:].tolist()
    assert view.known_times is not None
    assert len(view.known_times) == len(view.known_ratings) == 15


def test_view_holds_no_target() -> None:
    world = World(random_dataset(), "temporal")
    view = world.view(world.task("test", 0))
    assert not any("target" in name for name in dir(view))


def test_candidate_numbers() -> None:
    world = World(random_dataset(), "temporal")
    task = world.task("test", 0)
    view: View = world.view(task)
    assert [view.number(int(item)) for item in task.candidates] == list(range(1, 21))
    outside = next(i for i in range(60) if i not in task.candidates)
    assert view.number(outside) is None
