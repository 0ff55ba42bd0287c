"""Rewards by name: what an ended episode is worth, as named terms that sum to the reward.

A reward is a function from an `Outcome` to its terms. It sees how the episode ended and where the positive stands in
the list as judged, not the text, so two agents that rank alike and call alike are paid alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agentrec_env import metrics
from agentrec_env.registry import Registry
from agentrec_env.types import StopReason

TOP = 10
"""Places that are judged (AgenticRec, arXiv:2603.21613, sec. 3)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An ended episode, as a reward sees it."""

    stop: StopReason
    rank: int
    """Place of the positive among the first `TOP` of the list, 1 = first; 0 where it is not there."""
    length: int
    """Entries judged, 0..TOP."""
    calls: int
    """Tool calls made."""

    @property
    def valid(self) -> bool:
        """Whether the agent gave a valid answer within its budgets."""
        return self.stop is StopReason.ANSWERED


Reward: TypeAlias = Callable[[Outcome], Mapping[str, float]]
REWARDS: Registry[Reward] = Registry("reward")


@REWARDS.register("agenticrec")
def agenticrec(outcome: Outcome) -> dict[str, float]:
    """The list-wise reward of AgenticRec, arXiv:2603.21613, stage 1.

    NDCG@10 where the list is valid and holds the positive; -0.5 where it is valid and misses it; -1 for anything else
    (format, an item outside the pool, an unknown tool, more calls than allowed). +0.1 on top where the positive is
    first and at least one tool was called, so the maximum is 1.1.
    """
    found = outcome.valid and outcome.rank > 0
    return {
        "ndcg": metrics.value("ndcg@10", outcome.rank) if found else 0.0,
        "missed": -0.5 if outcome.valid and not found else 0.0,
        "invalid": 0.0 if outcome.valid else -1.0,
        "tool_use": 0.1 if found and outcome.rank == 1 and outcome.calls > 0 else 0.0,
    }


@REWARDS.register("pair")
def pair(outcome: Outcome) -> dict[str, float]:
    """The reward of AgenticRec's pair tasks (stage 2): 1 for the right letter, 0 for the wrong one, -1 for neither."""
    return {
        "correct": 1.0 if outcome.valid and outcome.rank == 1 else 0.0,
        "invalid": 0.0 if outcome.valid else -1.0,
    }


def _metric(name: str) -> Reward:
    def reward(outcome: Outcome) -> dict[str, float]:
        return {name: metrics.value(name, outcome.rank) if outcome.valid else 0.0}

    reward.__doc__ = f"{name} of the list, 0 where there is no valid one; no penalties."
    return reward


for _name in ("ndcg@10", "hit@1", "mrr"):
    REWARDS.register(_name, _metric(_name))
