"""What learns must learn: a planted rule is found, and many signals together beat each alone."""

from __future__ import annotations

import numpy as np
import pytest

from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.synthetic import make_world
from agentrec_env.data.world import World
from agentrec_env.vector import RecVectorEnv
from agents import make, play


def cycle(users: int = 300, items: int = 30, length: int = 9) -> Dataset:
    """Item i is always followed by item i + 7 (mod the number of items): only order tells, popularity is flat."""
    generator = np.random.default_rng(0)
    start = generator.integers(items, size=users)
    item = (start[:, None] + 7 * np.arange(length)) % items
    user = np.repeat(np.arange(users), length)
    ids = [f"I{i}" for i in range(items)]
    order = np.tile(np.arange(length), users)
    return Dataset.build("cycle", Items.bare(ids), [f"U{u}" for u in range(users)], user, item.ravel(), order=order)


def test_sasrec_learns_a_planted_cycle():
    pytest.importorskip("torch")
    world = World(cycle(), "leave_one_out", 20)
    envs = RecVectorEnv(8, world=world, task_split="test")
    agent = make("sasrec", dim=32, blocks=1, dropout=0.1, epochs=30, learning_rate=5e-3, batch_size=32)
    episodes = play(envs, agent, range(200))
    assert np.mean([e.metrics["hit@1"] for e in episodes]) > 0.95
    assert np.mean([e.metrics["hit@1"] for e in play(envs, "popularity", range(200))]) < 0.3


def test_fusion_beats_its_best_single_signal():
    pytest.importorskip("lightgbm")
    signals = ("popularity", "title_recent", "item_knn", "category_recent", "transition", "embedding_recent", "brand")
    world = World(make_world(num_users=900, num_items=700, seed=2).dataset)
    envs = RecVectorEnv(16, world=world, task_split="test")
    tasks = range(min(600, envs.num_tasks))

    def gains(agent) -> np.ndarray:
        return np.array([e.metrics["ndcg@10"] for e in play(envs, agent, tasks)])

    fused = gains(make("fusion", signals=signals, draws=1, members=3, min_data_in_leaf=50))
    best = max((gains(make("signal", name=name)) for name in signals), key=np.mean)
    difference = fused - best
    assert difference.mean() > 3 * difference.std() / np.sqrt(len(difference))
