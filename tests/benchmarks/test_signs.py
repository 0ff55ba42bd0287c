"""Signs are judged on valid tasks, by what other users of those taught."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agentrec_env.tools.comparison import SIGNS
from benchmarks.signs import Pools, compare, eighths, judge, main

G, C = 400, 10


@pytest.fixture
def pools() -> Pools:
    """Of three signs one tells where the target is, four times out of five; among the other signals is one that always
    tells, and one that nobody knows."""
    rng = np.random.default_rng(0)
    target = rng.integers(C, size=G)
    taken = target[:, None] == np.arange(C)
    told = np.where(rng.random((G, 1)) < 0.8, taken, np.roll(taken, 1, axis=1))
    shown = {"told": 1 + 3 * told, **{word: 1 + rng.integers(9, size=(G, C)) for word in ("noise", "more noise")}}
    signals = {signal: rng.random((G, C)) for signal, _, _ in SIGNS.values()}
    others = signals | {"truth": taken + 0.0, "nothing": np.full((G, C), np.nan)}
    return Pools(shown, others, target, np.arange(G) // 2)


def test_a_sign_is_worth_what_others_taught(pools: Pools):
    found = {choice.name: choice for choice in compare(pools, 0)}
    assert next(iter(found)) == "as shown"
    assert found["as shown"].hit.mean == pytest.approx(0.8, abs=0.07)
    assert found["with truth"].hit.mean == 1.0
    assert found["with truth"].difference.low > 0
    assert found["without told"].difference.high < -0.2
    assert found["without told"].hit.mean < 0.2
    assert found["without noise"].difference.low < 0.01
    assert "with nothing" not in found
    assert found["in eighths"].hit.mean < 0.2  # it grades the signals themselves, which are noise here


def test_no_user_is_judged_by_what_they_taught(pools: Pools):
    own = pools.user[:, None] + np.zeros((1, C), np.int64)  # each user knows their target by a cell of their own
    secret = np.where(pools.target[:, None] == np.arange(C), own % 9, 9)
    shuffled = Pools(pools.shown, pools.others, np.random.default_rng(1).permutation(pools.target), pools.user)
    assert judge([secret], pools, 0)["hit@1"].mean() > 0.95
    assert judge([secret], shuffled, 0)["hit@1"].mean() < 0.25


@given(arrays(np.float64, st.integers(1, 60), elements=st.one_of(st.just(np.nan), st.integers(-5, 30).map(float))))
def test_eighths_keep_order(values: np.ndarray):
    cells = eighths(values)
    known = ~np.isnan(values)
    assert (cells[~known] == 0).all()
    assert ((cells[known] >= 1) & (cells[known] <= 9)).all()
    order = np.argsort(values[known], kind="stable")
    assert (np.diff(cells[known][order]) >= 0).all()
    if known.any():
        assert (cells[known & (values == np.nanmin(values))] == 1).all()
        assert (cells[known & (values > np.nanmin(values))] > 1).all()


def test_eighths_are_even():
    cells = eighths(np.arange(8001.0))
    assert np.bincount(cells).tolist() == [0, 1, *[1000] * 8]


def test_the_table_of_a_world_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--tasks", "40", "--draws", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("## synthetic")
    assert "40 pools of " in shown
    kept = json.loads((tmp_path / "signs.json").read_text())
    names = [choice["name"] for choice in kept["worlds"]["synthetic"]]
    assert names[0] == "as shown"
    assert {f"without {word}" for word in SIGNS} <= set(names)
    assert "with description" in names
    assert (tmp_path / "signs.md").read_text().endswith(f"`{kept['command']}`\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["signs.json", "signs.md"]
