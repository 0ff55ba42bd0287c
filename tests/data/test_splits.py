"""Splits: shares, order, and evidence that never holds what a task must not know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.splits import Split, leave_one_out, temporal
from tests.conftest import random_dataset

SEEDS = st.integers(0, 10_000)


def rows_of(split: Split, task_split: str) -> np.ndarray:
    positions = split.positions(task_split)
    return split.dataset.indptr[positions[:, 0]] + positions[:, 1]


def test_temporal_is_8_1_1_in_time_order(tiny: Dataset) -> None:
    split = temporal(tiny)
    assert tiny.time is not None
    train = split.evidence_mask(0)
    valid, test = split.cutoffs[-2:]
    assert train.mean() == pytest.approx(0.8, abs=0.02)
    assert (tiny.time >= test).mean() == pytest.approx(0.1, abs=0.02)
    assert tiny.time[train].max() < valid < test
    for name, low, high in (("valid", valid, test), ("test", test, np.inf)):
        times = tiny.time[rows_of(split, name)]
        assert (times >= low).all()
        assert (times < high).all()


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_temporal_evidence_is_strictly_before_each_task(seed: int) -> None:
    split = temporal(random_dataset(seed, users=20, items=30))
    data = split.dataset
    assert data.time is not None
    for name in ("train", "valid", "test"):
        for user, position in split.positions(name).tolist():
            row = int(data.indptr[user]) + position
            time = int(data.time[row])
            evidence = split.evidence_mask(split.fold(user, time, name))
            assert evidence.any()
            assert (data.time[evidence] < time).all()
            known = split.known(user, position, time)
            assert known.stop > known.start
            assert (data.time[known] < time).all()
            assert known.stop == row or data.time[known.stop] >= time


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(3, 9))
def test_leave_one_out_holds_out_the_last_two(seed: int, per_user: int) -> None:
    split = leave_one_out(random_dataset(seed, users=15, items=30, per_user=per_user, times=False))
    data = split.dataset
    assert split.positions("test").tolist() == [[u, per_user - 1] for u in range(15)]
    assert split.positions("valid").tolist() == [[u, per_user - 2] for u in range(15) if per_user > 2]
    train = split.evidence_mask(0)
    assert train.sum() == 15 * (per_user - 2)
    for user, position in split.positions("train").tolist():
        assert 0 < position < per_user - 2
        evidence = split.evidence_mask(split.fold(user, None, "train"))
        assert not evidence[data.rows(user)].any()
        assert not (evidence & ~train).any()
    for name in ("valid", "test"):
        assert {split.fold(int(user), None, name) for user, _ in split.positions(name)} == {0}


def test_short_histories_are_training_alone() -> None:
    data = Dataset.build("d", Items.bare(list("abc")), ["u", "v"], [0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
    split = leave_one_out(data)
    assert split.positions("test").tolist() == [[1, 2]]
    assert split.evidence_mask(0).tolist() == [True, True, True, False, False]


def test_boundaries_are_kept_on_other_data(tiny: Dataset) -> None:
    split = temporal(tiny)
    assert tiny.time is not None
    assert split.on(tiny.keep(tiny.time < split.cutoffs[-1])).cutoffs == split.cutoffs


def test_temporal_without_times_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="leave_one_out"):
        temporal(random_dataset(times=False))
    one_day = Dataset.build("d", Items.bare(["a", "b"]), ["u"], [0, 0], [0, 1], None, [7, 7])
    with pytest.raises(ValueError, match="too few distinct times"):
        temporal(one_day)


def test_unknown_task_split(tiny: Dataset) -> None:
    with pytest.raises(ValueError, match="Did you mean 'test'"):
        temporal(tiny).positions("tests")
