"""The command of an algorithm: settings in, a run out, by one process or by as many as torchrun starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import tyro

from algos.distributed import joined
from algos.learner import Learner
from algos.memory import available, needed, table
from algos.pairs import Mining
from algos.training import Training


def run(algorithm: type[Any], name: str, arguments: Sequence[str] | None = None) -> None:
    """Train, or tell what would be trained.

    Args:
        algorithm: A dataclass of settings, an `algos.algorithm.Algorithm`.
        name: Of its module.
        arguments: Of the command line; None: those of the process.
    """
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)  # of the handler: bm25s sets its own logger to tell all
    logging.basicConfig(handlers=[handler], format="%(levelname)s: %(message)s")
    training: Training[Any] = tyro.cli(Training[algorithm], args=arguments, prog=f"python -m {name}")  # type: ignore[valid-type]
    with joined(training.device) as ranks:
        learner = Learner(training, ranks=ranks)
        if not training.dry_run:
            learner.train()
        elif ranks.first:
            print(plan(learner))


def plan(learner: Learner) -> str:
    """What a run would do and need, in words."""
    training, algorithm, envs = learner.training, learner.algorithm, learner.envs
    groups, episodes = algorithm.groups, algorithm.groups * algorithm.group_size
    weights = sum(weight.numel() for weight in learner.updater.weights.values())
    every = training.evaluate_every
    mining: Mining | None = getattr(algorithm, "mining", None)
    lines = [
        f"{type(algorithm).__name__} on {envs.world.protocol}",
        f"  model       {training.model}: {weights:,} weights to train, {training.dtype} on {learner.policy.device}",
        f"  a step      {groups:,} tasks x {algorithm.group_size}: {episodes:,} episodes, "
        f"{algorithm.epochs * algorithm.minibatches} updates",
        f"  the run     {training.steps:,} steps, {training.steps * episodes:,} episodes, "
        f"{training.steps * groups / envs.num_tasks:.2f} times the {envs.num_tasks:,} training tasks",
        *([] if mining is None else [f"  mined       {mining.plan(envs.num_tasks)}"]),
        f"  judged      {f'every {every} steps on {training.evaluate_tasks:,} valid tasks' if every else 'never'}",
        f"  processes   {learner.ranks.size}",
        f"  folder      {training.out}",
        "Memory of each process",
        table(needed(learner.policy, algorithm, training, learner.ranks.size), available(learner.policy.device)),
    ]
    return "\n".join(lines)
