"""The Gymnasium ids of this project. Entry points are strings, so that registering imports nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

IDS: dict[str, dict[str, Any]] = {
    "AgentRec-Amazon-v0": {},
    "AgentRec-AmazonPair-v0": {"mode": "pair", "num_candidates": 2, "reward": "pair"},
}
"""Id -> keyword arguments that differ from the defaults of `agentrec_env.scenario.Config`."""
ABOUT = {
    "AgentRec-Amazon-v0": "Rank a pool of candidates, or the catalogue, for one user, with tools",
    "AgentRec-AmazonPair-v0": "Say which of two items a user likes more, or less, with tools",
}
"""Id -> what it asks, in a line."""


def register_env(env_id: str, **kwargs: Any) -> None:
    """Register a variant of the environment, single and vector.

    Args:
        env_id: Gymnasium id, such as "MyShop-v0".
        kwargs: Fields of `Config`, all JSON; `gym.make` may override them.
    """
    gym.register(
        env_id,
        entry_point="agentrec_env.env:RecEnv",
        vector_entry_point="agentrec_env.vector:RecVectorEnv",
        kwargs=kwargs,
    )


def register_envs() -> None:
    """Register the built-in ids; a second call changes nothing."""
    for env_id, kwargs in IDS.items():
        if env_id not in gym.registry:
            register_env(env_id, **kwargs)
