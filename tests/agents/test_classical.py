"""Each baseline against plain loops on data small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.splits import leave_one_out
from agentrec_env.data.world import World
from agentrec_env.tools.signals import SIGNALS
from agentrec_env.vector import RecVectorEnv
from agents import classical, make, play

NAMES = ("popularity", "item_knn", "ease", "bm25")


def small() -> Dataset:
    """Five users, four items; item 3 is bought with item 0, item 1 with item 2."""
    baskets = [[0, 3, 1, 2], [0, 3, 2, 1], [1, 2, 0, 3], [2, 1, 3], [0, 3, 2]]
    user = [u for u, basket in enumerate(baskets) for _ in basket]
    item = [i for basket in baskets for i in basket]
    titles = ["Blue guitar", "Red drum", "Red drum sticks", "Guitar strap"]
    return Dataset.build(
        "small", Items.bare([f"I{i}" for i in range(4)], titles), [f"U{u}" for u in range(5)], user, item
    )


@pytest.fixture(scope="module")
def asked():
    dataset = small()
    world = World(dataset, leave_one_out(dataset), "catalog")
    return world.view(world.task("test", 0))


def test_popularity_counts_the_training_part(asked):
    # Training parts: [0,3] [0,3] [1,2] [2] [0]
    assert classical.Popularity().scores(asked, np.arange(4)).tolist() == [3, 1, 2, 2]


def test_item_knn_is_the_cosine_summed_over_the_latest_items(asked):
    x = asked.evidence.matrix.toarray()
    norm = np.sqrt(x.sum(axis=0))
    cosine = x.T @ x / np.outer(norm, norm)
    np.fill_diagonal(cosine, 0)
    for history in (1, 2, 10):
        expected = cosine[asked.known[-history:]].sum(axis=0)
        np.testing.assert_allclose(classical.ItemKNN(history).scores(asked, np.arange(4)), expected, rtol=1e-6)


@pytest.mark.parametrize("regularisation", [0.5, 10.0])
def test_ease_solves_its_constrained_least_squares(asked, regularisation):
    """Each column minimises |X_j - X b|² + λ|b|² with b_j = 0: a ridge regression on the other items."""
    x = asked.evidence.matrix.toarray().astype(np.float64)
    weights = classical.ease_weights(asked.evidence, regularisation)
    for j in range(4):
        others = [i for i in range(4) if i != j]
        a = x[:, others]
        solution = np.linalg.solve(a.T @ a + regularisation * np.eye(3), a.T @ x[:, j])
        np.testing.assert_allclose(weights[others, j], solution, atol=1e-6)
    assert np.diag(weights).tolist() == [0] * 4


def test_ease_refuses_what_cannot_be_inverted(asked, monkeypatch):
    monkeypatch.setattr(classical, "EASE_MAX_ITEMS", 3)
    with pytest.raises(ValueError, match="item_knn"):
        classical.ease_weights(asked.evidence, 7.0)
    with pytest.raises(ValueError, match="must be positive"):
        make("ease", regularisation=0)


def test_bm25_prefers_shared_words_and_rare_ones(asked):
    assert asked.known.tolist() == [0, 3, 1]  # blue guitar, guitar strap, red drum
    latest = classical.BM25(history=1).scores(asked, np.arange(4))
    assert latest[0] == latest[3] == 0
    assert latest[1] > latest[2] > 0  # the same words in a shorter title
    assert (classical.BM25(history=3).scores(asked, np.arange(4)) > 0).all()


def test_signal_agent_sorts_by_its_signal(shop):
    view = shop.view(shop.task("test", 7))
    np.testing.assert_array_equal(
        make("signal", name="item_knn").scores(view, view.candidates), SIGNALS.get("item_knn")(view, view.candidates)
    )


@pytest.mark.parametrize("name", NAMES)
def test_scores_follow_the_item_not_its_place(shop, name):
    agent = make(name)
    view = shop.view(shop.task("test", 3))
    items = view.candidates
    order = np.random.default_rng(0).permutation(len(items))
    np.testing.assert_array_equal(agent.scores(view, items[order]), agent.scores(view, items)[order])


def test_controls_score_as_random_does(shop):
    """The mean N@10 of any fixed order is that of a random one, .2272 for 20 candidates (AgenticRec, sec. 4)."""
    envs = RecVectorEnv(16, world=shop, task_split="train")
    for name in ("random", "identity", "reversed"):
        gains = [e.metrics["ndcg@10"] for e in play(envs, name, range(1500), seed=2)]
        assert abs(np.mean(gains) - 0.2272) < 4 * np.std(gains) / np.sqrt(len(gains))
    one, two = (play(envs, name, range(40)) for name in ("identity", "reversed"))
    assert all(a.ranking == tuple(a.candidates[:10]) for a in one)
    assert all(b.ranking == tuple(b.candidates[:-11:-1]) for b in two)


def test_random_changes_with_the_seed_alone(shop):
    envs = RecVectorEnv(4, world=shop)
    first, again, other = (play(envs, "random", range(8), seed=seed) for seed in (1, 1, 2))
    assert [e.ranking for e in first] == [e.ranking for e in again] != [e.ranking for e in other]
