"""The records that travel between the environment, the agents and the benchmarks.

All are frozen: an episode that has been judged cannot be edited afterwards. Items are dataset indices (``int64``)
everywhere; only text shown to an agent speaks of candidate numbers (1..C) or item ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One recommendation request: who asks, when, what is known, and (for the judge alone) the answer.

    AgenticRec, arXiv:2603.21613, sec. 3: history of at most 10 items, a pool of 1 positive and 19 negatives.
    """

    split: str
    """Task split: "train", "valid" or "test"."""
    index: int
    """Place in the task split, 0..num_tasks-1."""
    user: int
    position: int
    """Place of the target in the user's own history, 0-based."""
    time: int | None
    """Time of the request, ms since the epoch; None where the data has no times."""
    history: IntArray
    """int64 [H], H <= history_length: the user's latest known items, oldest first."""
    target: int
    candidates: IntArray
    """int64 [C], shuffled, holds the target; empty in catalogue mode, where every item is a candidate."""
    fold: int
    """Which evidence the fitted models may use for this task (see ``Split.evidence``)."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool and the JSON arguments that the agent gave it."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A final list, best first: candidate numbers (1..C), or item ids in catalogue mode."""

    entries: tuple[int, ...] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer to a pair task."""

    letter: Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class Invalid:
    """An action outside the grammar; ``message`` tells the agent what was wrong and what is allowed."""

    code: str
    message: str


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    INVALID = "invalid"
    TOO_MANY_CALLS = "too_many_calls"
    TOO_MANY_TURNS = "too_many_turns"
    OVERFLOW = "overflow"
    """The agent ran out of tokens (or another budget of its own) before its action was whole; paid as invalid."""
    LEFT = "left"
    """The user of a dialogue left before a list was given; paid as invalid."""
    AGENT_ERROR = "agent_error"
    ENVIRONMENT_ERROR = "environment_error"


@dataclass(frozen=True, slots=True)
class Turn:
    """One action and what it brought."""

    action: str
    calls: tuple[ToolCall, ...]
    observation: str
    """Text returned for the action; empty for the action that ended the episode."""
    seconds: float
    """Time the agent took for the action."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode, with all that is needed to judge it again."""

    task_split: str
    task_index: int
    user_id: str
    seed: int | None
    prompt: str
    turns: tuple[Turn, ...]
    candidates: tuple[int, ...]
    ranking: tuple[int, ...]
    """Item indices as judged, best first; empty where no valid list was given."""
    target: int
    reward: float
    terms: Mapping[str, float]
    """Reward terms by name; they sum to ``reward``."""
    metrics: Mapping[str, float]
    stop: StopReason
    error: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Number of tool calls made."""
        return sum(len(turn.calls) for turn in self.turns)

    @property
    def rank(self) -> int | None:
        """1-based place of the target in the list; None where it is not there."""
        return self.ranking.index(self.target) + 1 if self.target in self.ranking else None
