"""A training run of a second: a policy that knows a few habits, in a world of a few users.

    python -m tests.algos.small '{"out": "…", "steps": 6, "resume": false}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agentrec_env.data.world import World
from agentrec_env.scenario import Config
from agents.llm.policy import Policy
from algos.config import Optimization
from algos.distributed import Ranks, joined
from algos.learner import Learner
from algos.listwise_grpo import ListwiseGRPO
from algos.ppo import PPO
from algos.training import Training
from tests.agents.llm.test_agent import CALL, LIST, OTHER, puppet
from tests.conftest import random_dataset

HABITS: Mapping[str, Mapping[str, float]] = {
    "\n": {"<tool_call>": 20.0, "<answer>": 20.0, "hm": 20.0},
    "<tool_call>": {CALL: 20.0},
    CALL: {"</tool_call>": 20.0},
    "<answer>": {LIST: 20.0, OTHER: 20.0},
    LIST: {"</answer>": 20.0},
    OTHER: {"</answer>": 20.0},
    "hm": {"hm": 20.0, "<|im_end|>": 20.0},
}
"""A third of all turns is a call, a third a list, a third nothing that the environment understands."""
ENVIRONMENT = Config(tools=["get_user_profile"], max_calls=3, retries=1)


def settings(algorithm: Any, out: Path, **changes: Any) -> Training[Any]:
    """Settings of a small run, with `changes`."""
    chosen: dict[str, Any] = {
        "steps": 4,
        "max_turn_tokens": 8,
        "max_episode_tokens": 4096,
        "micro_tokens": 4096,
        "evaluate_every": 2,
        "evaluate_tasks": 8,
        "checkpoint_every": 1,
        "rows": 16,
        "threads": 1,
        "device": "cpu",
        "env": ENVIRONMENT,
        "optimization": Optimization(lr=2e-3, warmup=0, final_lr=1.0, weight_decay=0.0),
    }
    return Training(algorithm, out, **(chosen | changes))


def learner(training: Training[Any], ranks: Ranks | None = None) -> Learner:
    """A run of the puppet, which has a value head where the algorithm asks for one."""
    policy = puppet(HABITS)
    if training.algorithm.uses_values:
        policy = Policy(policy.model, policy.tokenizer, value_head=True)
    world = World(random_dataset(), num_candidates=5, history_length=3)
    return Learner(training, policy, world, ranks)


def main() -> None:
    """Train as the JSON in the first argument says; `kill_after`: seconds until SIGKILL."""
    changes = json.loads(sys.argv[1])
    algorithm = {"grpo": ListwiseGRPO(groups=4, group_size=4), "ppo": PPO(groups=8, epochs=2, minibatches=2)}
    torch.set_num_threads(1)
    if (seconds := changes.pop("kill_after", None)) is not None:
        threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    chosen = algorithm[changes.pop("algorithm", "grpo")]
    with joined("cpu") as ranks:
        learner(settings(chosen, Path(changes.pop("out")), **changes), ranks).train()


if __name__ == "__main__":
    main()
