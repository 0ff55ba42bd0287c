"""The same request in a world where all that an agent must not know is different: what leak checks compare with.

Whatever a prompt, tool or signal shows before the answer must be equal, byte for byte, in both worlds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.world import World
from agentrec_env.types import Task

Change: TypeAlias = Literal["relabel", "rewrite", "delete"]
CHANGES: tuple[Change, ...] = get_args(Change)
"""Another candidate is the answer; and what is hidden is other items and ratings; or it is gone."""


def hidden(world: World, task: Task) -> NDArray[np.bool_]:
    """bool [N]: the interactions that the agent must not know, the target's included.

    Temporal: anyone's at or after the task's time. Leave-one-out: every user's held-out ones, and the user's own from
    the target on.
    """
    data, lengths = world.dataset, world.split.train_lengths
    if lengths is None:
        if data.time is None or task.time is None:
            raise ValueError(f"split {world.split.name!r} has no training lengths, so the dataset must have times")
        late: NDArray[np.bool_] = data.time >= task.time
        return late
    place = np.arange(len(data)) - data.indptr[data.user]
    own = data.user == task.user
    return np.where(own, place >= task.position, place >= lengths[data.user])


def counterfactual(world: World, task: Task, change: Change, generator: np.random.Generator) -> tuple[World, Task]:
    """`task` and its world after `change`; the pool, its order and everything known stay as they are.

    Raises:
        ValueError: The pool holds nothing but the target.
    """
    data = world.dataset
    others = np.setdiff1d(task.candidates if len(task.candidates) else np.arange(data.num_items), [task.target])
    if not len(others):
        raise ValueError(f"task {task.index}: the pool holds only the target, so no other candidate can be the answer")
    target = int(generator.choice(others))
    row = int(data.indptr[task.user]) + task.position
    other = data.with_items(np.array([row]), np.array([target]))
    if change != "relabel":
        mask = hidden(world, task)
        if change == "rewrite":
            rows = np.setdiff1d(np.flatnonzero(mask), [row])
            other = other.with_items(rows, generator.integers(data.num_items, size=len(rows)))
            rating = other.rating.copy()
            rating[mask] = generator.integers(1, 6, int(mask.sum()))
            rating.flags.writeable = False
            other = replace(other, rating=rating)
        else:
            other = other.keep(~mask)
    return world.on(other), replace(task, target=target)
