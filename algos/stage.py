"""What a run lends to its algorithm, which decides what is learnt from in a step: tasks, players, the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agentrec_env.types import Episode
from agentrec_env.vector import RecVectorEnv
from agents.llm.policy import Policy
from algos.distributed import Ranks
from algos.requests import Requests
from algos.rollout import Rollout, Rollouts
from algos.training import Training

T = TypeVar("T")


class Together(Protocol):
    """Does work in which `Stage.check` may raise, on all ranks; see `Stage.together`."""

    def __call__(self, work: Callable[[], T], /) -> T: ...


@dataclass(frozen=True, eq=False)
class Stage:
    """A run, as its algorithm sees it. All ranks ask the same of it, in the same order."""

    envs: RecVectorEnv
    """List-wise training tasks."""
    policy: Policy
    """As it is now."""
    training: Training[Any]
    ranks: Ranks
    rollouts: Rollouts
    check: Callable[[Episode], None]
    """To be called after each episode; raises `Stopped` where the process was asked to stop."""
    together: Together
    """Gives what the work gives, or raises `Stopped` on all ranks where one of them was asked to stop."""
    say: Callable[[str], None]
    """Tells people something."""

    @property
    def num_tasks(self) -> int:
        """Training tasks."""
        return self.envs.num_tasks

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.training.seed

    @property
    def steps(self) -> int:
        """Of the run."""
        return self.training.steps

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.training.out

    def play(self, requests: Requests, step: int) -> Rollout:
        """This rank's part of `requests`, played by the policy.

        Raises:
            RuntimeError: All episodes were lost; says to what.
            Stopped: Some rank was asked to stop.
        """
        return self.together(lambda: self.rollouts.play(requests, step, self.check))
