"""The text-only view of the environment."""

from __future__ import annotations

import gymnasium as gym

import agentrec_env  # noqa: F401 - registers the ids
from agentrec_env.wrappers import TextObservation


def test_text_alone() -> None:
    whole, text = gym.make("AgentRec-Amazon-v0"), TextObservation(gym.make("AgentRec-Amazon-v0"))
    observation, _ = text.reset(seed=3)
    assert observation == whole.reset(seed=3)[0]["text"]
    assert observation in text.observation_space
    assert text.step("<answer>[1, 2]</answer>")[0] == whole.step("<answer>[1, 2]</answer>")[0]["text"]
