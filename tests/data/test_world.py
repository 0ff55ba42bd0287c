"""Worlds: pools that are seeded, fair, and never hold what the user has already taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from agentrec_env.data.splits import Split, temporal
from agentrec_env.data.world import NEGATIVES, Draw, World
from agentrec_env.registry import UnknownNameError
from tests.conftest import random_dataset


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 50),
    st.sampled_from(["temporal", "leave_one_out"]),
    st.sampled_from(["uniform", "popularity", "hard"]),
    st.integers(2, 40),
    st.none() | st.integers(0, 2**40),
)
def test_pools(seed: int, split: str, negatives: str, size: int, episode: int | None) -> None:
    world = World(random_dataset(seed), split, size, negatives)
    again = World(random_dataset(seed), split, size, negatives)
    for task_split in ("train", "valid", "test"):
        index = seed % world.num_tasks(task_split)
        task = world.task(task_split, index, episode)
        pool = task.candidates.tolist()
        assert pool == again.task(task_split, index, episode).candidates.tolist()
        assert len(set(pool)) == len(pool) == size
        assert pool.count(task.target) == 1
        assert not set(pool) & set(world.view(task).known.tolist())
        assert task.target == world.dataset.item[world.dataset.rows(task.user)][task.position]
        with pytest.raises(ValueError, match="read-only"):
            task.candidates[0] = 1


def test_episode_seeds_draw_fresh_pools_and_evaluation_pools_stay() -> None:
    world = World(random_dataset(), "temporal")
    fixed = [world.task("test", 1).candidates.tolist() for _ in range(2)]
    fresh = [world.task("test", 1, seed).candidates.tolist() for seed in (1, 2, 1)]
    assert fixed[0] == fixed[1] not in [*fresh, world.task("test", 1, 0).candidates.tolist()]
    assert fresh[0] == fresh[2] != fresh[1]
    assert World(random_dataset(), "temporal", seed=1).task("test", 1).candidates.tolist() != fixed[0]


def test_target_stands_anywhere_with_equal_chance() -> None:
    world = World(random_dataset(), "leave_one_out")
    places = [
        int(np.flatnonzero(task.candidates == task.target)[0])
        for seed in range(50)
        for task in (world.task("test", i, seed) for i in range(world.num_tasks("test")))
    ]
    assert chisquare(np.bincount(places, minlength=20)).pvalue > 0.001


def test_uniform_negatives_are_uniform_and_popular_ones_popular() -> None:
    world = World(random_dataset(users=60), "leave_one_out", num_candidates=8)
    counts = np.zeros(60)
    for seed in range(60):
        for index in range(world.num_tasks("test")):
            task = world.task("test", index, seed)
            counts[task.candidates[task.candidates != task.target]] += 1
    chance = np.zeros(60)
    for index in range(world.num_tasks("test")):
        task = world.task("test", index)
        free = np.setdiff1d(np.arange(60), np.append(world.view(task).known, task.target))
        chance[free] += 1 / len(free)
    assert chisquare(counts, chance * counts.sum() / chance.sum()).pvalue > 0.001
    popular = World(random_dataset(users=60), "leave_one_out", num_candidates=8, negatives="popularity")
    weight = popular.split.evidence(0).popularity
    drawn = np.zeros(60)
    for index in range(popular.num_tasks("test")):
        for seed in range(20):
            task = popular.task("test", index, seed)
            drawn[task.candidates[task.candidates != task.target]] += 1
    assert np.corrcoef(weight, drawn)[0, 1] > 0.8


def test_hard_negatives_are_nearer_to_the_history() -> None:
    def likeness(negatives: str) -> float:
        world = World(random_dataset(items=400), "leave_one_out", num_candidates=5, negatives=negatives)
        cosine = world.split.evidence(0).cosine
        tasks = [world.task("test", i) for i in range(world.num_tasks("test"))]
        return float(np.mean([cosine[t.history][:, t.candidates[t.candidates != t.target]].sum() for t in tasks]))

    assert likeness("hard") > 2 * likeness("uniform")


def test_catalogue_mode_has_no_pool() -> None:
    world = World(random_dataset(), "temporal", "catalog")
    assert world.catalog
    assert world.task("test", 0).candidates.tolist() == []


def test_own_negative_sampler() -> None:
    def first(draw: Draw, generator: np.random.Generator) -> np.ndarray:
        return np.setdiff1d(np.arange(draw.world.dataset.num_items), draw.forbidden)[: draw.count]

    NEGATIVES.register("first", first)
    try:
        task = World(random_dataset(), "temporal", 3, "first").task("test", 0)
        assert len(task.candidates) == 3
    finally:
        NEGATIVES.unregister("first")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"num_candidates": 61},
            ValueError,
            "60 items; use num_candidates <= 60 or num_candidates='catalog'",
        ),
        ({"num_candidates": 1}, ValueError, "give 2..1000 or 'catalog'"),
        ({"num_candidates": True}, ValueError, "give 2..1000"),
        ({"num_candidates": "all"}, ValueError, "give 2..1000 or 'catalog'"),
        ({"split": "tempral"}, UnknownNameError, "Did you mean 'temporal'"),
        ({"negatives": "unifrom"}, UnknownNameError, "Did you mean 'uniform'"),
        ({"history_length": 0}, ValueError, "at least 1"),
        ({"seed": -1}, ValueError, "not be negative"),
    ],
)
def test_bad_arguments(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        World(random_dataset(), **kwargs)  # type: ignore[arg-type]


def test_more_candidates_than_a_user_leaves() -> None:
    crowded = World(random_dataset(), "leave_one_out", 60)
    assert crowded.num_tasks("test") == 0  # such tasks are left out
    with pytest.raises(ValueError, match="use num_candidates <= "):
        crowded.build_task("test", 0, 0, 7, np.random.default_rng(0))


@pytest.mark.parametrize("split", ["temporal", "leave_one_out"])
def test_only_tasks_whose_pool_can_be_filled(split: str) -> None:
    data = random_dataset(users=12, items=30, per_user=20)
    world, easy = World(data, split, 14), World(data, split, 5)
    for task_split in ("train", "valid", "test"):
        pools = [world.task(task_split, i).candidates for i in range(world.num_tasks(task_split))]
        assert all(len(set(pool.tolist())) == 14 for pool in pools)
        assert world.num_tasks(task_split) <= easy.num_tasks(task_split)
    assert 0 < world.num_tasks("train") < easy.num_tasks("train")


def test_a_split_of_another_name_follows_the_same_rules() -> None:
    data = random_dataset()
    named = temporal(data)
    other = Split("weekly", data, cutoffs=named.cutoffs)
    for index in range(20):
        one, two = World(data, named), World(data, other)
        items = np.arange(data.num_items)
        first, second = (world.view(world.task("train", index)).popularity(items) for world in (one, two))
        assert first.tolist() == second.tolist()


def test_other_boundaries_are_another_key() -> None:
    data = random_dataset()
    assert data.time is not None
    named = temporal(data)
    later = temporal(data, (*named.cutoffs[:-1], named.cutoffs[-1] + 86_400_000))
    assert World(data, named).key != World(data, later).key == World(data, later).key


def test_no_such_task() -> None:
    world = World(random_dataset(), "temporal")
    with pytest.raises(IndexError, match=r"0\.\."):
        world.task("test", 10**6)


def test_protocol_names_what_a_number_depends_on() -> None:
    protocol = World(random_dataset(), "temporal", 20, "hard", seed=3).protocol
    for part in ("random", "temporal", "1 + 19 hard negatives", "history <= 10", "pool seed 3"):
        assert part in protocol
