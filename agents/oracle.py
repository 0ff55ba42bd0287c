"""The ceiling: on the embedded world the best ranking that anyone could give, elsewhere the answer itself.

It is privileged: it reads the task, target included, and the world's true choice model. No other agent may; what it
scores is a bound in the table, and on real data a check that the metrics are wired up (every figure must be 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.types import FloatArray, IntArray, Task
from agents.protocol import Observation, ScoringAgent


class Oracle(ScoringAgent):
    """Sorts by the posterior probability of being the choice, given the pool.

    The pool holds the choice c with probability ∝ exp(utility) and negatives drawn with odds q, so the posterior of
    c is ∝ exp(utility(c)) / q(c). Uniform negatives have a constant q, popularity negatives q = popularity (drawn
    without replacement, for which this is a close approximation); the odds of hard and other negatives are not known
    and taken as constant. Without a choice model the target comes first.
    """

    _tasks: dict[int, Task]

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        envs: Any = self._envs
        if envs is not None:
            sessions = envs.unwrapped
            self._tasks = {
                id(view): sessions.session(row).task for row, view in zip(rows, envs.views(rows), strict=True)
            }
        return super().act(observations, rows)

    def scores(self, view: View, items: IntArray) -> FloatArray:
        task = self._tasks[id(view)]
        assert self._envs is not None
        return true_scores(self._envs.world, task, items)


def true_scores(world: World, task: Task, items: IntArray) -> FloatArray:
    """float64 [M]: log posterior of each of ``items`` up to a constant, or 1 for the target and 0 for the others."""
    data = world.dataset
    if data.choice_model is None:
        return np.where(items == task.target, 1.0, 0.0)
    utilities = data.choice_model.utilities(int(data.indptr[task.user]) + task.position, items)
    if world.negatives == "popularity" and not world.catalog:
        popularity = world.split.evidence(task.fold).popularity[items]
        utilities = utilities - np.log(np.maximum(popularity, 1e-9))
    return np.asarray(utilities, dtype=np.float64)
