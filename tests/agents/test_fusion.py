"""Fusion: no feature knows a place in the list, training is repeatable, what was trained is kept."""

from __future__ import annotations

import numpy as np
import pytest

from agentrec_env.data.splits import temporal
from agentrec_env.data.world import World
from agentrec_env.registry import UnknownNameError
from agentrec_env.vector import RecVectorEnv
from agents import fusion, make, play
from agents.fusion import features, training_pools

pytest.importorskip("lightgbm")

SIGNALS = ("popularity", "title_recent", "item_knn", "brand", "transition")
QUICK = {"signals": SIGNALS, "members": 2, "rounds": 40, "min_data_in_leaf": 20}


@pytest.fixture(scope="module")
def trained(shop):
    agent = make("fusion", **QUICK)
    agent.fit(shop)
    return agent


def test_scores_follow_the_item_not_its_place(shop, trained):
    """A rank feature that broke ties by list order once scored N@10 .98; here permuting permutes, to the bit."""
    generator = np.random.default_rng(0)
    for index in range(20):
        view = shop.view(shop.task("test", index))
        scores = trained.scores(view, view.candidates)
        order = generator.permutation(len(scores))
        np.testing.assert_array_equal(trained.scores(view, view.candidates[order]), scores[order])


def test_features_are_raw_and_within_the_pool(shop):
    view = shop.view(shop.task("test", 1))
    rows = features(view, view.candidates, SIGNALS).astype(np.float64)
    raw, within = rows[:, :5], rows[:, 5:]
    assert (np.isnan(raw) == np.isnan(within)).all()
    for column in range(5):
        known = raw[~np.isnan(raw[:, column]), column]
        if len(known) and known.std() > 1e-6:
            expected = (known - known.mean()) / known.std()
            np.testing.assert_allclose(within[~np.isnan(raw[:, column]), column], expected, atol=1e-4)


def test_training_reads_valid_tasks_alone(shop, monkeypatch):
    asked = []
    original = World.task

    def spy(self, task_split, index, seed=None):
        asked.append(task_split)
        return original(self, task_split, index, seed)

    monkeypatch.setattr(World, "task", spy)
    fresh = World(shop.dataset, temporal(shop.dataset), seed=9)
    pools = training_pools(fresh, SIGNALS, fusion.FusionConfig(draws=2))
    assert set(asked) == {"valid"}
    assert len(pools.user) == 2 * fresh.num_tasks("valid")
    assert (pools.relevance.sum(axis=1) == 1).all()


def test_the_place_of_the_answer_in_training_pools_is_even(shop):
    pools = training_pools(shop, SIGNALS, fusion.FusionConfig())
    places = np.bincount(pools.relevance.argmax(axis=1), minlength=20)
    expected = places.sum() / 20
    assert ((places - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees of freedom, p = .001


def test_row_limit_samples_tasks(shop):
    pools = training_pools(shop, SIGNALS, fusion.FusionConfig(max_rows=2_000))
    assert len(pools.user) == 100


def test_training_is_repeatable_and_kept(shop, trained, monkeypatch):
    view = shop.view(shop.task("test", 2))
    expected = trained.scores(view, view.candidates)
    monkeypatch.setattr(fusion, "save_model", lambda *_: None)
    monkeypatch.setattr(fusion, "load_model", lambda *_: None)
    again = make("fusion", **QUICK)
    again.fit(shop)
    np.testing.assert_array_equal(again.scores(view, view.candidates), expected)
    monkeypatch.undo()
    monkeypatch.setattr(fusion, "_train", lambda *_: pytest.fail("trained again"))
    kept = make("fusion", **QUICK)
    kept.fit(shop)
    np.testing.assert_array_equal(kept.scores(view, view.candidates), expected)
    other = make("fusion", **QUICK, seed=1)
    monkeypatch.undo()
    other.fit(shop)
    assert not np.array_equal(other.scores(view, view.candidates), expected)


def test_batches_do_not_change_scores(shop, trained):
    views = [shop.view(shop.task("test", i)) for i in range(9)]
    together = trained.score_many(views, [view.candidates for view in views])
    for view, scores in zip(views, together, strict=True):
        np.testing.assert_array_equal(trained.scores(view, view.candidates), scores)


def test_whole_catalogue_is_ranked(shop):
    world = World(shop.dataset, shop.split, "catalog")
    envs = RecVectorEnv(2, world=world, task_split="test")
    episodes = play(envs, make("fusion", **QUICK), range(3))
    assert all(len(set(e.ranking)) == 10 for e in episodes)


def test_metrics_name_what_counted(trained):
    assert trained.metrics["fit_seconds"] > 0
    assert any(name.startswith("gain/") for name in trained.metrics)


def test_bad_arguments(shop):
    with pytest.raises(UnknownNameError, match="popularity"):
        make("fusion", signals=["populariti"])
    few = World(shop.dataset, shop.split)
    with pytest.raises(ValueError, match="valid tasks"):
        make("fusion", **(QUICK | {"max_rows": 200})).fit(few)


def first_letter(view, items):
    """A plug-in signal that is a plain function."""
    return np.array([float(ord(view.items.ids[i][-1])) for i in items])


def test_signals_of_ones_own(shop):
    agent = make("fusion", **(QUICK | {"signals": ["popularity", f"{__name__}:first_letter"]}))
    agent.fit(shop)
    view = shop.view(shop.task("test", 0))
    assert np.isfinite(agent.scores(view, view.candidates)).all()
