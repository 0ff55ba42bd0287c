"""The ids of this project in Gymnasium and PettingZoo; entry points are strings, so that nothing else is loaded."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pettingzoo

IDS: dict[str, dict[str, Any]] = {
    "AgentRec-Amazon-v0": {},
    "AgentRec-AmazonPair-v0": {"mode": "pair", "num_candidates": 2, "reward": "pair"},
}
"""Id -> keyword arguments that differ from the defaults of `agentrec_env.scenario.Config`."""
ABOUT = {
    "AgentRec-Amazon-v0": "Rank a pool of candidates, or the catalogue, for one user, with tools",
    "AgentRec-AmazonPair-v0": "Say which of two items a user likes more, or less, with tools",
    "AgentRec-AmazonDialogue-v0": "Ask a user who wants one of the candidates, then rank; two seats in PettingZoo",
}
"""Id -> what it asks, in a line."""
DIALOGUE = "AgentRec-AmazonDialogue-v0"
"""In PettingZoo two seats, user and recommender; in Gymnasium the recommender's, with a scripted user in the other."""


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
    if DIALOGUE not in gym.registry:
        gym.register(
            DIALOGUE,
            entry_point="agentrec_env.dialogue.env:DialogueEnv",
            vector_entry_point="agentrec_env.dialogue.env:DialogueVectorEnv",
        )
    if DIALOGUE not in pettingzoo.aec_registry:
        pettingzoo.register("aec", DIALOGUE, "agentrec_env.multi_agent:DialogueAEC")
        pettingzoo.register("parallel", DIALOGUE, "agentrec_env.multi_agent:DialogueParallel")
