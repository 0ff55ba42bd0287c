"""Which episodes a training step plays: tasks drawn without replacement, and a seed for each group.

A function of the run's seed and the step alone. There is no cursor that a checkpoint could lose, and step 7 plays the
same episodes whether or not the run was interrupted before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentrec_env.types import IntArray
from algos.questions import Question


@dataclass(frozen=True, eq=False)
class Requests:
    """K groups of G episodes; the episodes of a group differ in nothing but what the policy samples."""

    tasks: IntArray
    """int64 [K]: numbers of tasks, in 0 to the number of training tasks."""
    seeds: IntArray
    """int64 [K]: seed of the group's pool; equal for all its members."""
    group_size: int
    """G"""
    questions: tuple[Question | None, ...] = ()
    """K, or none: what is asked of a pair; None where a list is asked for."""

    def episodes(self) -> tuple[IntArray, IntArray, IntArray]:
        """int64 [K * G] each: task, seed and group number of every episode, group by group."""
        groups = np.repeat(np.arange(len(self.tasks)), self.group_size)
        return self.tasks[groups], self.seeds[groups], groups


def draw(step: int, groups: int, group_size: int, num_tasks: int, seed: int) -> Requests:
    """The episodes of a training step.

    Args:
        step: Number of the step, from 0.
        groups: K, groups a step.
        group_size: G, episodes a group.
        num_tasks: Training tasks; all are played once before any is played again.
        seed: Of the run.
    """
    if num_tasks < 1:
        raise ValueError(f"there is no task to train on: the training split has {num_tasks}")
    tasks = shuffled(step * groups + np.arange(groups), num_tasks, [seed, 0])
    return Requests(tasks, np.random.default_rng([seed, 1, step]).integers(2**31, size=groups), group_size)


def shuffled(places: IntArray, count: int, key: Sequence[int]) -> IntArray:
    """int64 [n]: what stands at `places`, int64 [n], of an endless row of random orders of 0 to `count` - 1.

    Args:
        places: From 0.
        count: At least 1.
        key: Of the random numbers.
    """
    rounds = places // count
    found = np.empty(len(places), np.int64)
    for number in np.unique(rounds):
        here = rounds == number
        found[here] = np.random.default_rng([*key, int(number)]).permutation(count)[places[here] % count]
    return found
