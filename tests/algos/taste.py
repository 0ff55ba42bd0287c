"""A world in which taste can be read from a title, and a small policy that has an inkling of it.

Users take good things alone, and most negatives are bad ones. The policy imitates a clerk who often errs, so what it
gets right beyond that was learnt from rewards.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from agentrec_env.actions import render
from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.world import World
from agentrec_env.scenario import Config
from agentrec_env.types import Choice, Ranking
from agentrec_env.vector import RecVectorEnv
from agents.llm.chat import Chat
from agents.llm.fresh import NewModel, new_policy
from agents.llm.packing import packs
from agents.llm.policy import Policy
from agents.play import play
from agents.protocol import Observation
from algos.config import Optimization
from algos.demonstrations import Scribe
from algos.questions import pair_environment

POOL = 5
ENVIRONMENT = Config(tools=[], max_calls=0, retries=0, history_length=2, num_candidates=POOL)
SHAPE = NewModel(hidden=32, layers=2, heads=2, kv_heads=2, intermediate=64, vocabulary=420, text_episodes=20)


@cache
def taste(users: int = 40, good: int = 12, bad: int = 48, per_user: int = 6) -> World:
    """A world of `users` who take `per_user` of the good things each."""
    generator = np.random.default_rng(0)
    titles = [f"good {i}" for i in range(good)] + [f"bad {i}" for i in range(bad)]
    item = np.concatenate([generator.permutation(good)[:per_user] for _ in range(users)])
    user = np.repeat(np.arange(users), per_user)
    data = Dataset.build(
        "taste",
        Items.bare([f"B{i}" for i in range(good + bad)], titles),
        [f"A{i}" for i in range(users)],
        user,
        item,
        np.full(len(item), np.nan, np.float32),
        generator.permutation(len(item)) * 86_400_000 + 1_600_000_000_000,
    )
    return World(data, num_candidates=POOL, history_length=2)


def environment(rows: int = 16) -> RecVectorEnv:
    """List-wise training tasks."""
    return RecVectorEnv(rows, world=taste(), **{n: getattr(ENVIRONMENT, n) for n in Config.__dataclass_fields__})


def clerk(observation: Observation) -> str:
    """A list of one candidate, drawn by the request; of two items, where one is good and one is not, the good one in 3
    of 4 cases, whatever was asked for, and else any."""
    pool = observation["candidates"]
    generator = np.random.default_rng([*pool.tolist(), *observation["history"].clip(0).tolist()])
    if len(pool) > 2:
        return render(Ranking((int(generator.integers(len(pool))) + 1,)))
    good = [f"{letter}. good" in observation["text"] for letter in "AB"]
    letters = "AB" if good[0] else "BA"
    chance = 0.75 if good[0] != good[1] else 0.5
    return render(Choice(letters[int(generator.random() > chance)]))  # type: ignore[arg-type]


@cache
def beginner(steps: int = 150, counts: tuple[int, int] = (4, 32)) -> dict[str, torch.Tensor]:
    """Weights of a policy that imitates the clerk."""
    policy = fresh()
    lists = environment()
    optimization = Optimization(method="muon", lr=1e-2, matrix_lr=4e-2, warmup=5, final_lr=0.2, weight_decay=0.0)
    optimizers = optimization.optimizers(policy.trainable())
    tables = [
        (envs, Scribe(policy.tokenizer, Chat(policy.tokenizer), envs.scenario.rules.text))
        for envs in (lists, pair_environment(lists)[0])
    ]
    generator = np.random.default_rng(1)
    for step in range(steps):
        transcripts = []
        for (envs, scribe), count in zip(tables, counts, strict=True):
            tasks = generator.integers(envs.num_tasks, size=count).tolist()
            seeds = generator.integers(2**31, size=count).tolist()
            options = {"direction": ["more"] * count} if envs.scenario.rules.mode == "pair" else None
            episodes = play(envs, clerk, tasks, seeds=seeds, options=options)
            transcripts += [scribe.transcript(episode) for episode in episodes]
        total = sum(int(transcript.mask.sum()) for transcript in transcripts)
        optimization.set_rate(optimizers, step, steps)
        policy.zero_grad()
        for pack in packs(transcripts, 8192, policy.shares):
            (-policy(pack).logprobs.sum() / total).backward()
        for optimizer in optimizers:
            optimizer.step()
    return {name: weight.detach().clone() for name, weight in policy.state_dict().items()}


def fresh() -> Policy:
    """The policy before it has learnt anything."""
    return new_policy(SHAPE, environment(), seed=0)


def start() -> Policy:
    """A new copy of the policy that imitates the clerk."""
    policy = fresh()
    policy.load_state_dict(beginner())
    return policy
