"""Whether what an agent gets to see depends on what it must not know, for one task.

Used on prompts by the environment's check and on answers by the tools'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agentrec_env.counterfactual import CHANGES, counterfactual
from agentrec_env.data.splits import TASK_SPLITS
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.types import Task


def check_hidden(world: World, task: Task, show: Callable[[View], str], what: str) -> None:
    """`show` must give the same text where everything hidden is different."""
    before = show(world.view(task))
    for change in CHANGES:
        other, moved = counterfactual(world, task, change, np.random.default_rng(task.index))
        after = show(other.view(moved))
        if before != after:
            at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
            raise AssertionError(
                f"{what} leaks: with what is hidden changed ({change}), task {task.index} of {task.split!r} reads "
                f"{after[max(at - 20, 0) : at + 40]!r} instead of {before[max(at - 20, 0) : at + 40]!r}"
            )


def some_tasks(world: World, count: int, splits: Sequence[str] = TASK_SPLITS) -> list[Task]:
    """`count` tasks of each split, spread over it."""
    return [
        world.task(split, int(index))
        for split in splits
        for index in np.unique(np.linspace(0, world.num_tasks(split) - 1, count).astype(int))
        if world.num_tasks(split)
    ]
