"""Rollouts: the episodes of a training step, played and laid out as the batch that an algorithm gives credit to.

What a step plays depends on the run's seed and the step alone, and what an episode samples on its number among all
episodes of the step: neither a resume nor the number of processes changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from agentrec_env.types import Episode, IntArray, StopReason
from agentrec_env.vector import RecVectorEnv
from agents.llm.agent import LLMAgent
from agents.llm.policy import Policy
from agents.play import play
from agents.protocol import Observation
from algos.batch import Batch
from algos.behaviour import behaviour
from algos.distributed import Ranks
from algos.questions import Question, answers, pair_environment
from algos.requests import Requests
from algos.tally import Tally
from algos.training import Training

FAULTS = (StopReason.AGENT_ERROR, StopReason.ENVIRONMENT_ERROR)
"""Ends that say nothing of the policy; such episodes are not learnt from."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """What this rank learns from in a step."""

    batch: Batch
    """Its groups have the numbers that they have among those of all ranks."""
    groups: int
    """K, of all ranks."""
    figures: Tally = field(default_factory=Tally)
    """What they were like."""


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


@dataclass(frozen=True, eq=False)
class _Table:
    """Where episodes of one kind are played, and by whom."""

    envs: RecVectorEnv
    numbers: IntArray
    """int64 [num_tasks]: number that each training task has there."""
    agent: LLMAgent

    def play(
        self, requests: Requests, places: IntArray, seed: int, on_episode: Callable[[Episode], None] | None
    ) -> list[Episode]:
        """Episodes `places` of the requests."""
        tasks, seeds, groups = requests.episodes()
        options: dict[str, list[Any]] = {}
        if self.envs.scenario.rules.mode == "pair":
            asked = [requests.questions[group] for group in groups[places]]
            options = {name: [getattr(question, name) for question in asked] for name in Question.__dataclass_fields__}
        agent = Numbered(self.agent, places.tolist())
        numbers = self.numbers[tasks[places]].tolist()
        played = play(self.envs, agent, numbers, seed, on_episode, seeds[places].tolist(), options)
        if self.agent.policy.device.type == "cuda":
            self.agent.free()
        return played


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

    def play(self, requests: Requests, step: int, on_episode: Callable[[Episode], None] | None = None) -> Rollout:
        """Play this rank's groups of `requests`: whole ones, every `size`-th.

        Raises:
            RuntimeError: All episodes were lost; says to what.
        """
        groups = requests.episodes()[2]
        mine = np.flatnonzero(groups % self._ranks.size == self._ranks.rank)
        seed = int(np.random.default_rng([self._training.seed, 2, step]).integers(2**62))
        pair = np.array([question is not None for question in requests.questions] or [False] * len(requests.tasks))
        played: dict[int, Episode] = {}
        figures = Tally()
        for is_pair in (False, True):
            places = mine[pair[groups[mine]] == is_pair]
            if len(places):
                table = self._pairs if is_pair else self._lists
                episodes = dict(zip(places.tolist(), table.play(requests, places, seed, on_episode), strict=True))
                sound = {place: episode for place, episode in episodes.items() if _is_sound(episode)}
                said = list(sound.values())
                figures.join(behaviour(said, len(episodes) - len(said), table.envs.scenario.rules))
                if is_pair:
                    figures.join(answers(said, [requests.questions[groups[place]] for place in sound]))
                played |= episodes
        kept = [place for place in mine.tolist() if _is_sound(played[place])]
        if played and not kept:
            first = played[int(mine[0])]
            raise RuntimeError(f"all {len(played)} episodes of step {step} were lost; the first to: {first.error}")
        batch = Batch.of(
            [played[place].info["transcript"] for place in kept],
            [played[place].reward for place in kept],
            groups[kept].tolist(),
            self._policy.device,
            pair[groups[kept]].tolist(),
        )
        return Rollout(batch, len(requests.tasks), figures)

    @cached_property
    def _lists(self) -> _Table:
        return _Table(self._envs, np.arange(self._envs.num_tasks), self._agent())

    @cached_property
    def _pairs(self) -> _Table:
        return _Table(*pair_environment(self._envs), self._agent())

    def _agent(self) -> LLMAgent:
        return sampler(self._policy, self._training, self._training.temperature)


def _is_sound(episode: Episode) -> bool:
    """Whether the episode says something of the policy."""
    return episode.stop not in FAULTS and "transcript" in episode.info


def sampler(policy: Policy, training: Training[Any], temperature: float) -> LLMAgent:
    """The policy as an agent, within the budgets of a run."""
    return LLMAgent(
        policy=policy,
        temperature=temperature,
        max_turn_tokens=training.max_turn_tokens,
        max_episode_tokens=training.max_episode_tokens,
        dtype="float32" if training.dtype == "float32" else None,
    )
