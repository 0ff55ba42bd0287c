"""Which episodes a training step plays: tasks drawn without replacement, and a seed for each group.

A function of the run's seed and the step alone. There is no cursor that a checkpoint could lose, and step 7 plays the
same episodes whether or not the run was interrupted before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentrec_env.types import IntArray


@dataclass(frozen=True, eq=False)
class Requests:
    """K groups of G episodes; the episodes of a group differ in nothing but what the policy samples."""

    tasks: IntArray
    """int64 [K]: numbers of tasks, in 0 to the number of training tasks."""
    seeds: IntArray
    """int64 [K]: seed of the group's pool; equal for all its members."""
    group_size: int
    """G"""

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
    places = step * groups + np.arange(groups)
    rounds = places // num_tasks
    tasks = np.empty(groups, np.int64)
    for number in np.unique(rounds):
        order = np.random.default_rng([seed, 0, int(number)]).permutation(num_tasks)
        here = rounds == number
        tasks[here] = order[places[here] % num_tasks]
    return Requests(tasks, np.random.default_rng([seed, 1, step]).integers(2**31, size=groups), group_size)
