"""A training run of a second: a policy that knows a few habits, in a world of a few users.

python -m tests.algos.small '{"out": "…", "steps": 6, "resume": false}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentrec_env.data.world import World
from agentrec_env.scenario import Config
from agents.llm.agent import LLMAgent
from agents.llm.policy import Policy
from algos import checkpoint
from algos.config import Optimization
from algos.distributed import Ranks, joined
from algos.dpo import DPO
from algos.learner import Learner
from algos.listwise_grpo import ListwiseGRPO
from algos.pairs import Mining
from algos.ppo import PPO
from algos.ppr import PPR
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
LETTERS: Mapping[str, Mapping[str, float]] = {
    **HABITS,
    "<answer>": {LIST: 20.0, OTHER: 20.0, "A": 20.0, "B": 19.5},
    "A": {"</answer>": 20.0},
    "B": {"</answer>": 20.0},
}
"""The same for algorithms of pairs: an answer is now a list, now a letter, whatever was asked for."""
MINING = Mining(mine_tasks=24, mine_temperature=1.0)
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the puppet leaves to chance what has no part in its habits
        policy = puppet(LETTERS if hasattr(training.algorithm, "mining") else HABITS)
    if training.algorithm.uses_values:
        policy = Policy(policy.model, policy.tokenizer, value_head=True)
    world = World(random_dataset(), num_candidates=5, history_length=3)
    return Learner(training, policy, world, ranks)


def moments(learner: Learner, at: int | None, number: int) -> Callable[[], int]:
    """Have this process get signal `number` at the `at`-th moment; how many moments there were.

    A moment is a turn of the agent, an optimizer step, the half of a file of a checkpoint, a rename, or a sync: all
    places at which what is on the disk changes, or between which it does.
    """
    passed = 0

    def moment() -> None:
        nonlocal passed
        passed += 1
        if passed == at:
            os.kill(os.getpid(), number)

    def before(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            moment()
            return real(*args, **kwargs)

        setattr(owner, name, wrapped)

    def write(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        moment()
        path.write_bytes(content)

    before(os, "rename")
    before(os, "replace")
    before(os, "fsync")
    before(LLMAgent, "recv")
    for optimizer in learner.updater.optimizers:
        before(optimizer, "step")
    checkpoint._write = write
    return lambda: passed


def attempt(training: Training[Any], at: int | None = None, number: int = signal.SIGKILL) -> tuple[str, int]:
    """Train in a process of its own, as far as it gets.

    Returns:
        How it ended: "killed", "stopped" as it was asked to, or "done"; and how many moments there were, 0 where it was
        killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run = learner(training)
            passed = moments(run, at, number)
            run.train()
            os.write(writer, f"{'stopped' if run.stopped else 'done'} {passed()}".encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must end here, whatever happened
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reader) as file:
        told = file.read()
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the run failed with status {status}")
    end, passed_in_all = told.split() if told else ("killed", 0)
    return end, int(passed_in_all)


def killed_runs(training: Training[Any], kills: int) -> Counter[str]:
    """Do a run whole, in `whole`, then in `cut-0`, `cut-1`, … until it was killed `kills` times at random moments, of
    which one at least fell into the writing of a checkpoint.

    Every third attempt is asked to stop instead. Each folder is gone on with until its run has ended. All is done by
    processes of their own, forked from this one, which must not have computed anything.

    Returns:
        How often an attempt was "killed", in how many of these while "writing" a checkpoint, and how often one was
        "stopped" or "done"; as many are done as there are folders.
    """
    _, whole = attempt(replace(training, out=training.out / "whole"))
    draw = np.random.default_rng(training.seed)
    ends: Counter[str] = Counter()
    for number in count():
        cut = replace(training, out=training.out / f"cut-{ends['done']}")
        cut = replace(cut, resume=(cut.out / "config.json").is_file())
        enough = ends["killed"] >= kills and ends["writing"] > 0
        at = None if enough else int(draw.integers(1, whole // 2))
        before = partial(cut.out)
        end, _ = attempt(cut, at, signal.SIGTERM if number % 3 == 1 else signal.SIGKILL)
        ends[end] += 1
        ends["writing"] += end == "killed" and bool(partial(cut.out) - before)
        print(f"{end} at moment {at} of {whole}, {sorted(path.name for path in cut.out.rglob('*step-*[0-9]'))}")
        if at is None:
            break
    return ends


def partial(folder: Path) -> set[str]:
    """Checkpoints of a run that were never finished."""
    return {path.name for path in folder.glob("checkpoints/.step-*")}


def main() -> None:
    """Train as the JSON in the first argument says; as ranks of torchrun do, where its variables are set.

    With `kills`, a number, see `killed_runs`; prints its counts as JSON in the last line.
    """
    changes = json.loads(sys.argv[1])
    algorithm: Mapping[str, Any] = {
        "grpo": ListwiseGRPO(groups=4, group_size=4),
        "ppo": PPO(groups=8, epochs=2, minibatches=2),
        "ppr": PPR(groups=4, group_size=4, lists=0.25, mining=replace(MINING, rounds=2)),
        "dpo": DPO(groups=4, negatives=2, nll=0.5, mining=MINING),
    }
    torch.set_num_threads(1)
    chosen, out, kills = algorithm[changes.pop("algorithm", "grpo")], changes.pop("out"), changes.pop("kills", None)
    if kills is None:
        with joined("cpu") as ranks:
            learner(settings(chosen, Path(out), **changes), ranks).train()
        return
    print(json.dumps(killed_runs(settings(chosen, Path(out), **changes), kills)))


if __name__ == "__main__":
    main()
