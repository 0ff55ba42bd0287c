"""Rollouts: the episodes of a training step, played and laid out as the batch that an algorithm gives credit to.

What a step plays depends on the run's seed and the step alone, and what an episode samples on its number among all
episodes of the step: neither a resume nor the number of processes changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agentrec_env.types import Episode, StopReason
from agentrec_env.vector import RecVectorEnv
from agents.llm.agent import LLMAgent
from agents.llm.policy import Policy
from agents.play import play
from agents.protocol import Observation
from algos.batch import Batch
from algos.distributed import Ranks
from algos.requests import Requests
from algos.training import Training

FAULTS = (StopReason.AGENT_ERROR, StopReason.ENVIRONMENT_ERROR)
"""Ends that say nothing of the policy; such episodes are not learnt from."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """What this rank played in a step."""

    batch: Batch
    """Its groups have the numbers that they have among those of all ranks."""
    episodes: tuple[Episode, ...]
    """Of the batch, in its order."""
    lost: tuple[Episode, ...]
    """Ended by a fault, and not in the batch."""


class Numbered:
    """A streaming agent whose episodes have other numbers than their places in the list of tasks.

    Args:
        agent: The agent.
        numbers: Number of the episode at each place.
    """

    def __init__(self, agent: LLMAgent, numbers: Sequence[int]) -> None:
        self._agent = agent
        self._numbers = numbers

    def bind(self, envs: RecVectorEnv) -> None:
        """As the agent does; so are all others."""
        self._agent.bind(envs)

    def reset(self, num_envs: int, seed: int) -> None:
        self._agent.reset(num_envs, seed)

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        return self._agent.act(observations, rows)

    def send(self, observations: Sequence[Observation], rows: Sequence[int], episodes: Sequence[int]) -> None:
        """With the numbers that the episodes have."""
        self._agent.send(observations, rows, [self._numbers[place] for place in episodes])

    def recv(self) -> tuple[list[str | Exception], list[int]]:
        return self._agent.recv()

    def record(self, row: int) -> Mapping[str, Any]:
        return self._agent.record(row)


class Rollouts:
    """Plays with the policy as it is.

    Args:
        envs: Training tasks.
        policy: Who plays.
        training: The run's settings.
        ranks: Who plays the other groups.
    """

    def __init__(self, envs: RecVectorEnv, policy: Policy, training: Training[Any], ranks: Ranks) -> None:
        self._envs = envs
        self._policy = policy
        self._training = training
        self._ranks = ranks
        self._agent = sampler(policy, training, training.temperature)

    def play(self, requests: Requests, step: int, on_episode: Callable[[Episode], None] | None = None) -> Rollout:
        """Play this rank's groups of `requests`: whole ones, every `size`-th.

        Raises:
            RuntimeError: All episodes were lost; says to what.
        """
        tasks, seeds, groups = requests.episodes()
        mine = np.flatnonzero(groups % self._ranks.size == self._ranks.rank)
        seed = int(np.random.default_rng([self._training.seed, 2, step]).integers(2**62))
        agent = Numbered(self._agent, mine.tolist())
        played = play(self._envs, agent, tasks[mine].tolist(), seed, on_episode, seeds[mine].tolist())
        if self._policy.device.type == "cuda":  # the engine's keys and values, which the update has better use for
            self._agent.reset(self._envs.num_envs, seed)
            torch.cuda.empty_cache()
        kept = [i for i, episode in enumerate(played) if episode.stop not in FAULTS and "transcript" in episode.info]
        lost = tuple(episode for i, episode in enumerate(played) if i not in set(kept))
        if played and not kept:
            raise RuntimeError(f"all {len(played)} episodes of step {step} were lost; the first to: {lost[0].error}")
        episodes = tuple(played[i] for i in kept)
        batch = Batch.of(
            [episode.info["transcript"] for episode in episodes],
            [episode.reward for episode in episodes],
            groups[mine][kept].tolist() if kept else [],
            self._policy.device,
        )
        return Rollout(batch, episodes, lost)


def sampler(policy: Policy, training: Training[Any], temperature: float) -> LLMAgent:
    """The policy as an agent, within the budgets of a run."""
    return LLMAgent(
        policy=policy,
        temperature=temperature,
        max_turn_tokens=training.max_turn_tokens,
        max_episode_tokens=training.max_episode_tokens,
        dtype="float32" if training.dtype == "float32" else None,
    )
