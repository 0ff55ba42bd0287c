"""SASRec: a function of its evidence, repeatable to the bit, silent to the global RNG, kept on disk."""

from __future__ import annotations

import numpy as np
import pytest

from agents import make
from agents.models import load_model, save_model

torch = pytest.importorskip("torch")

from agents import sasrec  # noqa: E402 - needs torch
from agents.sasrec import SASRecConfig, fitted, item_embeddings  # noqa: E402

QUICK = {"epochs": 2, "dim": 16, "blocks": 1}


def test_training_is_repeatable_and_leaves_the_global_generator_alone(shop):
    evidence = shop.split.evidence(1)
    config = SASRecConfig(**QUICK)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    one = sasrec.train(evidence, config).state_dict()
    torch.rand(3)
    two = sasrec.train(evidence, config).state_dict()
    other = sasrec.train(evidence, SASRecConfig(**QUICK, seed=1)).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["position.weight"], other["position.weight"])
    torch.set_rng_state(before)
    sasrec.train(evidence, config)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_weights_are_kept_and_damage_is_noticed(shop, monkeypatch, caplog):
    evidence = shop.split.evidence(2)
    config = SASRecConfig(**QUICK, seed=3)
    first = fitted(evidence, config)
    evidence.cache.clear()
    monkeypatch.setattr(sasrec, "train", lambda *_: pytest.fail("trained again"))
    again = fitted(evidence, config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    save_model("sasrec", "x", b"weights")
    path = sasrec.load_model.__globals__["_path"]("sasrec", "x")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert load_model("sasrec", "x") is None
    assert "damaged" in caplog.text


def test_scores_follow_the_item_and_the_order_of_the_history(shop):
    agent = make("sasrec", **QUICK)
    agent.fit(shop)
    view = shop.view(shop.task("test", 3))
    items = view.candidates
    scores = agent.scores(view, items)
    order = np.random.default_rng(0).permutation(len(items))
    np.testing.assert_array_equal(agent.scores(view, items[order]), scores[order])
    assert np.isfinite(scores).all()
    assert agent.metrics["fit_seconds"] > 0


def test_embeddings_have_a_row_for_each_item(shop):
    vectors = item_embeddings(shop.split.evidence(0), SASRecConfig(**QUICK))
    assert vectors.shape == (shop.dataset.num_items, 16)
    assert vectors.dtype == np.float32


def test_causal_states_ignore_what_comes_later():
    model = sasrec.SASRecModel.untrained(50, SASRecConfig(**QUICK)).eval()
    sequence = torch.arange(1, 9)[None]
    changed = sequence.clone()
    changed[0, 5:] = torch.tensor([40, 41, 42])
    one, two = model(sequence), model(changed)
    assert torch.equal(one[0, :5], two[0, :5])
    assert not torch.allclose(one[0, 5:], two[0, 5:])


def test_long_histories_are_cut_to_the_longest_input(shop):
    model = sasrec.SASRecModel.untrained(50, SASRecConfig(**QUICK, max_length=4)).eval()
    state = sasrec.pool_scores(model, [np.array([1, 2, 3, 4])], torch.arange(1, 51)[None])
    assert state.shape == (1, 50)
