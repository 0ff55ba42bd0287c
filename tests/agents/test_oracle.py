"""The ceiling is a ceiling: above every agent on the embedded world, perfect where the answer is all there is."""

from __future__ import annotations

import numpy as np
import pytest

from agentrec_env.data.world import World
from agentrec_env.vector import RecVectorEnv
from agents import play
from agents.oracle import true_scores


@pytest.mark.parametrize("pool", [20, "catalog"])
def test_knows_the_answer_without_a_choice_model(tiny, pool):
    envs = RecVectorEnv(5, world=World(tiny, num_candidates=pool), task_split="test")
    for episode in play(envs, "oracle", range(12)):
        assert set(episode.metrics.values()) == {1.0}


def test_sorts_by_the_true_choice_probabilities(shop):
    task = shop.task("test", 4)
    row = int(shop.dataset.indptr[task.user]) + task.position
    np.testing.assert_array_equal(
        true_scores(shop, task, task.candidates), shop.dataset.choice_model.utilities(row, task.candidates)
    )


def test_corrects_for_how_popular_negatives_are_drawn(shop):
    world = World(shop.dataset, shop.split, 20, "popularity")
    envs = RecVectorEnv(8, world=world, task_split="test")
    tasks = range(400)
    corrected = [e.metrics["ndcg@10"] for e in play(envs, "oracle", tasks)]
    plain = []
    for index in tasks:
        task = world.task("test", index)
        row = int(shop.dataset.indptr[task.user]) + task.position
        utilities = shop.dataset.choice_model.utilities(row, task.candidates)
        rank = 1 + int((utilities > utilities[task.candidates == task.target]).sum())
        plain.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    gain = np.array(corrected) - np.array(plain)
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))


def test_is_above_the_others(shop):
    envs = RecVectorEnv(8, world=shop, task_split="test")
    best = np.array([e.metrics["ndcg@10"] for e in play(envs, "oracle", range(200))])
    for name in ("popularity", "bm25", "item_knn"):
        other = np.array([e.metrics["ndcg@10"] for e in play(envs, name, range(200))])
        gain = best - other
        assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))
