"""Pair tasks beside list-wise ones: what is asked in a group, and the environment in which it is asked.

A question (AgenticRec, arXiv:2603.21613, stage 2) shows the item that a user took and another, and asks which the user
is MORE, or LESS, likely to choose. It has the data, tools and budgets of the list-wise tasks it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from agentrec_env.data.world import World
from agentrec_env.prompts import Direction
from agentrec_env.types import Episode, IntArray
from agentrec_env.vector import RecVectorEnv
from algos.tally import Tally

Letter = Literal["A", "B"]
OTHER: dict[Letter, Letter] = {"A": "B", "B": "A"}


@dataclass(frozen=True)
class Question:
    """Which of two items; the other one is the task's target."""

    negative: int
    """Item that the target is compared with."""
    direction: Direction
    """Whether the more or the less likely one is asked for."""
    letter: Letter
    """Where the target stands."""

    @property
    def right(self) -> Letter:
        """The letter of the right answer."""
        return self.letter if self.direction == "more" else OTHER[self.letter]


def pair_environment(envs: RecVectorEnv) -> tuple[RecVectorEnv, IntArray]:
    """The pair tasks beside list-wise ones.

    Args:
        envs: List-wise.

    Returns:
        The environment of pairs, and int64 [num_tasks]: its task for each task of `envs`. They are numbered alike
        unless some users have too few items left for a pool of `envs`, but not for a pair.
    """
    listwise = envs.world
    world = World(listwise.dataset, listwise.split, 2, listwise.negatives, listwise.history_length, listwise.seed)
    config = replace(envs.scenario.config, mode="pair", num_candidates=2, reward="pair")
    pairs = RecVectorEnv(envs.num_envs, world=world, **asdict(config))
    split = config.task_split
    numbers = {(user, position): task for task, (user, position) in enumerate(world.positions(split).tolist())}
    return pairs, np.array([numbers[user, position] for user, position in listwise.positions(split).tolist()])


def answers(episodes: Sequence[Episode], questions: Sequence[Question]) -> Tally:
    """How questions were answered, by direction and by letter.

    Returns:
        `pair/more`, `pair/less`: shares of right answers; `pair/says_a`: share of valid answers that were A, which is
        0.5 for a policy that looks at the items.
    """
    tally = Tally()
    for episode, question in zip(episodes, questions, strict=True):
        right = episode.rank == 1
        tally.add(f"pair/{question.direction}", right)
        if episode.ranking:
            tally.add("pair/says_a", right == (question.right == "A"))
    return tally
