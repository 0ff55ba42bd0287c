"""Unicode behaves as a Gymnasium space: membership, seeding, JSON, batching, pickling."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.spaces import Unicode


@given(st.text(max_size=40), st.integers(1, 40))
def test_contains_is_length_alone(text: str, max_length: int) -> None:
    assert (text in Unicode(max_length)) == (len(text) <= max_length)


@pytest.mark.parametrize("value", [None, 3, b"bytes", ["a"], np.zeros(2)])
def test_only_strings_are_members(value: object) -> None:
    assert value not in Unicode(10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
def test_samples_are_members_and_seeded(seed: int, max_length: int) -> None:
    space, twin = Unicode(max_length, seed=seed), Unicode(max_length)
    twin.seed(seed)
    drawn = [space.sample() for _ in range(5)]
    assert drawn == [twin.sample() for _ in range(5)]
    assert all(text in space for text in drawn)


def test_different_seeds_differ() -> None:
    assert [Unicode(50, seed=s).sample() for s in range(8)] != [Unicode(50, seed=s + 8).sample() for s in range(8)]


def test_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="no mask"):
        Unicode(5).sample(mask=np.ones(3, np.int8))


@pytest.mark.parametrize("bad", [0, -1, 2.5, "9", True, None])
def test_bad_length_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Unicode(bad)  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=20), max_size=5))
def test_json_round_trip(texts: list[str]) -> None:
    space = Unicode(20)
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(texts)))) == texts


def test_equality_hash_repr() -> None:
    assert Unicode(5) == Unicode(5, seed=3)
    assert Unicode(5) != Unicode(6)
    assert Unicode(5) != spaces.Text(5)
    assert hash(Unicode(5)) == hash(Unicode(5))
    assert repr(Unicode(5)) == "Unicode(5)"
    assert not Unicode(5).is_np_flattenable


def test_pickle_keeps_the_random_state() -> None:
    space = Unicode(30, seed=1)
    space.sample()
    copy = pickle.loads(pickle.dumps(space))
    assert copy == space
    assert copy.sample() == space.sample()


def test_batches_inside_dict_and_tuple() -> None:
    single = spaces.Dict(text=Unicode(9), pair=spaces.Tuple((Unicode(4), spaces.Discrete(3))))
    batch = batch_space(single, 2)
    members = [{"text": "é漢", "pair": ("", 2)}, {"text": "naïve", "pair": ("🎸", 0)}]
    joined = concatenate(single, members, create_empty_array(single, 2))
    assert joined in batch
    assert joined["text"] == ("é漢", "naïve")
    assert [dict(row) for row in iterate(batch, joined)] == members
    assert create_empty_array(Unicode(3), 2) in batch_space(Unicode(3), 2)
    assert batch.sample() in batch
