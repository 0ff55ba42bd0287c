"""Conformance of datasets: well formed, plausible, and enough for tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agentrec_env.check.leaks import some_tasks
from agentrec_env.check.points import Points
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.load import load
from agentrec_env.data.splits import TASK_SPLITS
from agentrec_env.data.world import World
from agentrec_env.types import Task


def check_dataset(dataset: Dataset | str | Path) -> list[str]:
    """Check interactions of your own: well formed, plausible, and enough for tasks.

    Args:
        dataset: A dataset, or what `agentrec_env.data.load` takes.

    Returns:
        The points that hold.

    Raises:
        ConformanceError: Listing those that do not.
    """
    data = dataset if isinstance(dataset, Dataset) else load(dataset)
    points = Points(f"dataset {data.name}")
    with points.point("interactions are sorted by user, then time"):
        assert len(data.indptr) == data.num_users + 1, "indptr has not one entry more than there are users"
        assert data.indptr[0] == 0, "indptr does not begin at 0"
        assert data.indptr[-1] == len(data), "indptr does not end at N"
        assert (np.repeat(np.arange(data.num_users), np.diff(data.indptr)) == data.user).all(), "users are not in order"
        if data.time is not None:
            falling = (np.diff(data.time) < 0) & (np.diff(data.user) == 0)
            assert not falling.any(), f"{falling.sum()} interactions are earlier than the one before them"
    with points.point("items are in the catalogue, ids are unique"):
        assert data.item.min(initial=0) >= 0, "a negative item"
        assert data.item.max(initial=0) < data.num_items, "an item beyond the catalogue"
        assert len(data.items.index) == data.num_items
        assert len(set(data.user_ids)) == data.num_users, "a user id occurs twice"
    with points.point("times are milliseconds since 1970"):
        if data.time is not None and len(data):
            low, high = int(data.time.min()), int(data.time.max())
            assert low > 6e11, f"the earliest is {low}, before 1990: are they seconds?"
            assert high < 4.1e12, f"the latest is {high}, after 2099: are they microseconds?"
    with points.point("no user takes an item twice"):
        repeats = len(data) - len(data.drop_repeats())
        assert not repeats, f"{repeats} interactions repeat an earlier one; use drop_repeats(), or targets were seen"
    with points.point("most items have a title"):
        named = sum(bool(title) for title in data.items.titles)
        assert named >= len(data.items) / 2, f"{named} of {len(data.items)} have one; a language model reads titles"
    size = min(20, data.num_items)
    for split in ("temporal", "leave_one_out"):
        if split == "temporal" and data.time is None:
            continue
        with points.point(f"{split}: there are tasks, and pools are sound"):
            world = World(data, split, size)
            for task_split in TASK_SPLITS:
                assert world.num_tasks(task_split), f"no {task_split} tasks; users need earlier interactions"
            for task in some_tasks(world, 20):
                _check_pool(world, task)
    return points.result()


def _check_pool(world: World, task: Task) -> None:
    known = set(world.view(task).known.tolist())
    candidates = task.candidates.tolist()
    assert task.target in candidates, f"task {task.index}: the pool lacks the target"
    assert len(set(candidates)) == len(candidates), f"task {task.index}: a candidate stands twice in the pool"
    assert not known & (set(candidates) - {task.target}), f"task {task.index}: a negative was taken before"
    assert task.target not in known, f"task {task.index}: the target was taken before"
