"""Training algorithms for recommender agents: supervised warm start, list-wise GRPO, PPO, progressive preference
refinement, DPO, and the learner they share.

`ALGORITHMS` holds the registered names; `algos.learner` owns the loop, `algos.algorithm` says what it asks of an
algorithm. Nothing heavy is imported until an algorithm is used.
"""

from __future__ import annotations

from typing import Any

from agentrec_env.registry import Registry

__all__ = ["ALGORITHMS"]

ALGORITHMS: Registry[type[Any]] = Registry("algorithm")
"""Dataclasses of settings by the names of `agentrec train`. Each is an `algos.algorithm.Algorithm`; "sft" alone has a
loop of its own."""

for _name, _path in {
    "sft": "algos.sft:SFTConfig",
    "grpo": "algos.listwise_grpo:ListwiseGRPO",
    "ppr": "algos.ppr:PPR",
    "ppo": "algos.ppo:PPO",
    "dpo": "algos.dpo:DPO",
}.items():
    ALGORITHMS.register(_name, _path)
