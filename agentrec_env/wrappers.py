"""Wrappers for agents that need less than the whole observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class TextObservation(gym.ObservationWrapper[str, str, dict[str, Any]]):
    """The observation's text alone: what a language model reads.

    Args:
        env: A `RecEnv`, wrapped or not.
    """

    def __init__(self, env: gym.Env[dict[str, Any], str]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, gym.spaces.Dict)
        self.observation_space = env.observation_space["text"]

    def observation(self, observation: dict[str, Any]) -> str:
        """The text of `observation`."""
        return str(observation["text"])
