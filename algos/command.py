"""The command of an algorithm: settings in, a run out, by one process or by as many as torchrun starts.

It is `agentrec train NAME`, and `python -m algos.NAME` for torchrun.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from algos import ALGORITHMS
from algos.algorithm import Algorithm
from algos.distributed import joined
from algos.learner import Learner
from algos.memory import available, needed, table
from algos.pairs import Mining
from algos.sft import SFT, SFTConfig
from algos.training import Training

REFUSED = (ValueError, LookupError, TypeError, OSError)
"""What settings that cannot be used are refused with, before anything is trained."""
STOPPED = 130
"""Exit code of a run that was asked to stop: the same command goes on from there with --resume."""


EXAMPLES = """examples:
  {prog} --out runs/first --steps 20
  {prog} --out runs/first --steps 20 --resume
  {prog} --out runs/qwen --model Qwen/Qwen3-0.6B --lora-rank 16 --lr 1e-5
  {prog} --out runs/mine --env.dataset my_shop:interactions --env.tools my_shop:stock score_candidates"""


def main(name: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Train, or tell what would be trained.

    Args:
        name: A name in `ALGORITHMS`, or "module:attribute" of a dataclass that is an `algos.algorithm.Algorithm`.
        arguments: Of the command line; None: those of the process.
        prog: How the command is called in its help.

    Returns:
        0; 2 for settings that cannot be used, after a message on stderr; or 130 where the process was asked to stop.
    """
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)  # of the handler: bm25s sets its own logger to tell all
    logging.basicConfig(handlers=[handler], format="%(levelname)s: %(message)s")
    prog = prog or f"agentrec train {name}"
    try:
        algorithm = find(name)
        about = f"{ALGORITHMS.describe(name)}.\n\n{EXAMPLES.format(prog=prog)}"
        settings = SFTConfig if algorithm is SFTConfig else Training[algorithm]  # type: ignore[valid-type]
        chosen: Any = tyro.cli(settings, args=arguments, prog=prog, description=about)
        warm = SFT(chosen) if isinstance(chosen, SFTConfig) else None
    except REFUSED as error:
        return _refuse(prog, error)
    if warm is not None:
        if chosen.dry_run:
            print(warm_plan(warm))
        else:
            warm.train()
        return STOPPED if warm.stopped else 0
    with joined(chosen.device) as ranks:
        try:
            learner = Learner(chosen, ranks=ranks)
        except REFUSED as error:
            return _refuse(prog, error)
        if not chosen.dry_run:
            learner.train()
        elif ranks.first:
            print(plan(learner))
    return STOPPED if learner.stopped else 0


def find(name: str) -> type[Any]:
    """The settings of an algorithm.

    Args:
        name: In `ALGORITHMS`, or "module:attribute".

    Raises:
        UnknownNameError: There is none of that name.
        TypeError: What is there is no algorithm; says what it lacks.
    """
    found = ALGORITHMS.get(name)
    if found is SFTConfig:
        return found
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise TypeError(
            f"{name!r} is no algorithm: it must be a dataclass of settings, as algos.listwise_grpo.ListwiseGRPO; to "
            "change one thing of that, subclass it and decorate the class with @dataclass(frozen=True)"
        )
    has = {field.name for field in dataclasses.fields(found)}
    lacks = [part for part in vars(Algorithm) if not (part.startswith("_") or part in has or hasattr(found, part))]
    if lacks:
        raise TypeError(f"{name!r} is no algorithm: it lacks {', '.join(lacks)}; see algos.algorithm.Algorithm")
    return found


def _refuse(prog: str, error: Exception) -> int:
    print(f"{prog}: {error}", file=sys.stderr)
    return 2


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
        table(
            needed(
                learner.policy,
                training.dtype,
                training.micro_tokens,
                training.rows,
                training.max_episode_tokens,
                training.gradient_checkpointing,
                algorithm.uses_reference,
                learner.ranks.size if training.shard else 1,
            ),
            available(learner.policy.device),
        ),
    ]
    return "\n".join(lines)


def warm_plan(run: SFT) -> str:
    """What a warm start would do and need, in words."""
    config, policy = run.config, run.policy
    episodes, every = config.steps * config.episodes, config.evaluate_every
    rows = config.rows if every else 0
    lines = [
        f"A warm start from {config.teacher!r} on {run.envs.world.protocol}",
        f"  model       {config.model}: {sum(w.numel() for w in run.weights.values()):,} weights to train, "
        f"{config.dtype} on {policy.device}",
        f"  a step      {config.episodes:,} episodes, 1 update",
        f"  the run     {config.steps:,} steps, {episodes:,} episodes, {episodes / run.envs.num_tasks:.2f} times the "
        f"{run.envs.num_tasks:,} training tasks",
        f"  judged      {f'every {every} steps on {config.evaluate_tasks:,} valid tasks' if every else 'never'}",
        f"  folder      {config.out}",
        "Memory",
        table(needed(policy, config.dtype, config.micro_tokens, rows, policy.context), available(policy.device)),
    ]
    return "\n".join(lines)
