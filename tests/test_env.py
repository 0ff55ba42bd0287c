"""RecEnv through Gymnasium's own eyes, and the promises of its docstring."""

from __future__ import annotations

import json
import logging
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.load import DataError
from agentrec_env.data.world import World
from agentrec_env.env import RecEnv
from agentrec_env.registration import IDS, register_env, register_envs
from agentrec_env.registry import UnknownNameError

register_envs()

LIST, PAIR = "AgentRec-Amazon-v0", "AgentRec-AmazonPair-v0"
CALL = '<tool_call>{"name": "cheap", "arguments": {}}</tool_call>'
VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_candidates": "catalog"},
    {"num_candidates": 100, "negatives": "hard", "history_length": 3},
    {"split": "leave_one_out", "task_split": "test", "negatives": "popularity", "retries": 0},
    {"tools": [], "max_calls": 0, "reward": "ndcg@10", "max_turns": 3},
]


def tiny_env(tiny: Dataset, candidates: Any = 20, **kwargs: Any) -> RecEnv:
    return RecEnv(world=World(tiny, num_candidates=candidates), tools=["tests.fakes:cheap"], **kwargs)


def answer(env: RecEnv, rank: int = 1) -> str:
    """A list with the positive at `rank`."""
    task = env.session.task
    place = task.candidates.tolist().index(task.target) + 1
    numbers = [n for n in range(1, len(task.candidates) + 1) if n != place]
    return f"<answer>{[*numbers[: rank - 1], place, *numbers[rank - 1 :]]}</answer>"


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_check_env(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, render_mode="ansi").unwrapped)


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_variants_pass_check_env_and_round_trip(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(LIST, **kwargs)
        check_env(env.unwrapped, skip_render_check=True)
    spec = EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec
    assert json.loads(json.dumps(spec.kwargs)) == spec.kwargs
    assert same(gym.make(spec).reset(seed=3), env.reset(seed=3))


def same(one: Any, two: Any) -> bool:
    np.testing.assert_equal(one, two)
    return True


@pytest.mark.parametrize("env_id", IDS)
def test_pickle(env_id: str) -> None:
    env = gym.make(env_id, task_split="test")
    copy = pickle.loads(pickle.dumps(env))
    assert same(copy.reset(seed=5), env.reset(seed=5))
    assert same(copy.step("hm"), env.step("hm"))
    assert copy.unwrapped.world is env.unwrapped.world


def test_pickle_of_a_world_in_memory(tiny: Dataset) -> None:
    env = tiny_env(tiny)
    assert same(pickle.loads(pickle.dumps(env)).reset(seed=5), env.reset(seed=5))


@pytest.mark.parametrize("env_id", IDS)
def test_async_vector(env_id: str) -> None:
    envs = gym.make_vec(env_id, 2, vectorization_mode="async", vector_kwargs={"shared_memory": False})
    alone = gym.make(env_id)
    observations, _ = envs.reset(seed=11)
    assert observations["text"] == tuple(alone.reset(seed=11 + i)[0]["text"] for i in range(2))
    observations, rewards, terminations, _, infos = envs.step(["hm é漢", "<answer>[1]</answer>\\boxed{A}"])
    assert "Invalid" in observations["text"][0]
    assert infos["invalid"][0] == "no_action"
    assert rewards[0] == 0
    assert not terminations[0]
    envs.close()


def test_worlds_are_shared() -> None:
    one, two = gym.make(LIST).unwrapped, gym.make(LIST, max_calls=3, reward="mrr").unwrapped
    assert one.world is two.world
    other = gym.make(LIST, num_candidates=5).unwrapped
    assert other.world is not one.world
    assert other.world.dataset is one.world.dataset


def test_a_seed_fixes_the_episode(tiny: Dataset) -> None:
    env, other = tiny_env(tiny), tiny_env(tiny)
    first = env.reset(seed=9)
    following = env.reset()
    assert same(other.reset(seed=9), first)
    assert same(other.reset(), following)
    assert len({tiny_env(tiny).reset(seed=s)[0]["text"] for s in range(30)}) > 20


def test_a_named_task_has_its_fixed_pool(tiny: Dataset) -> None:
    env = tiny_env(tiny, task_split="test")
    env.reset(seed=1)
    first, info = env.reset(options={"task": 3})
    assert info["task"] == 3
    env.reset(seed=2)
    assert same(env.reset(options={"task": 3})[0], first)
    assert same(tiny_env(tiny, task_split="test").reset(options={"task": 3})[0], first)
    drawn = {tuple(env.reset(seed=s, options={"task": 3})[0]["candidates"]) for s in range(5)}
    assert len(drawn) == 5
    assert env.session.task.index == 3


def test_positions_of_the_positive_are_uniform(tiny: Dataset) -> None:
    env = tiny_env(tiny, candidates=4)
    places = Counter()
    for seed in range(400):
        env.reset(seed=seed)
        places[env.session.task.candidates.tolist().index(env.session.task.target)] += 1
    expected = 100
    # Chi-square with 3 degrees of freedom: 16.3 is passed by chance once in a thousand; the seeds are fixed.
    assert sum((places[i] - expected) ** 2 / expected for i in range(4)) < 16.3


def test_every_drawn_task_is_reached(tiny: Dataset) -> None:
    env = tiny_env(tiny, task_split="test")
    env.reset(seed=0)
    seen = {env.reset()[1]["task"] for _ in range(40 * env.num_tasks)}
    assert seen == set(range(env.num_tasks))


def test_observation_arrays(tiny: Dataset) -> None:
    env = tiny_env(tiny)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    history = observation["history"]
    assert history[: len(env.session.task.history)].tolist() == env.session.task.history.tolist()
    assert (history[len(env.session.task.history) :] == -1).all()
    observation["candidates"][:] = 0
    assert env.session.task.candidates.any()
    following = env.step(CALL)[0]
    assert following["turn"] == 1
    assert following in env.observation_space
    assert len(following["text"]) < 100


def test_nothing_tells_the_target_before_the_end(tiny: Dataset) -> None:
    env = tiny_env(tiny)
    assert set(env.reset(seed=0)[1]) == {"task", "calls"}
    assert set(env.step(CALL)[4]) == {"calls"}
    assert set(env.step("hm")[4]) == {"calls", "invalid"}
    info = env.step(answer(env, 2))[4]
    assert {"target", "rank", "stop", "reward/ndcg", "hit@1", "ndcg@10"} <= set(info)
    assert info["rank"] == 2


def test_render(tiny: Dataset) -> None:
    env = tiny_env(tiny, render_mode="ansi")
    assert env.render() == ""
    env.reset(seed=0)
    env.step(CALL)
    text = env.render()
    assert text is not None
    assert "known items" in text
    assert CALL in text
    assert "positive" not in text
    env.step(answer(env, 2))
    text = env.render()
    assert text is not None
    assert "reward 0.631" in text
    assert next(line for line in text.splitlines() if "← the positive" in line).startswith("  2. ")
    env.reset(seed=0)
    task = env.session.task
    env.step(f"<answer>[{next(n for n in (1, 2) if task.candidates[n - 1] != task.target)}]</answer>")
    assert "not in the list" in str(env.render())


def test_pair_tasks_are_balanced_and_follow_options(tiny: Dataset) -> None:
    env = tiny_env(tiny, candidates=2, mode="pair", reward="pair", task_split="test")
    directions, letters = Counter[Any](), Counter[int]()
    for seed in range(200):
        env.reset(seed=seed)
        directions[env.session.direction] += 1
        letters[env.session.task.candidates.tolist().index(env.session.task.target)] += 1
    assert 70 < directions["more"] < 130
    assert 70 < letters[0] < 130
    env.reset(options={"task": 0})
    target = env.session.task.target
    hard = next(i for i in range(60) if i != target)
    for negative in (hard, tiny.items.ids[hard], np.int64(hard)):
        for direction, right in (("more", target), ("less", hard)):
            env.reset(seed=1, options={"task": 0, "negative": negative, "direction": direction})
            pool = env.session.task.candidates.tolist()
            assert sorted(pool) == sorted([target, hard])
            assert direction.upper() in env.session.prompt
            assert env.step(f"\\boxed{{{'AB'[pool.index(right)]}}}")[1] == 1.0
            env.reset(seed=1, options={"task": 0, "negative": negative, "direction": direction})
            assert env.step(f"\\boxed{{{'BA'[pool.index(right)]}}}")[1] == 0.0
    for letter, pool in (("A", [target, hard]), ("B", [hard, target])):
        for seed in range(4):
            env.reset(seed=seed, options={"task": 0, "negative": hard, "letter": letter})
            assert env.session.task.candidates.tolist() == pool
    env.reset(seed=1)
    env.step("hm")
    assert env.step("hm")[1] == -1.0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tusk": 1}, ValueError, "Did you mean 'task'"),
        ({"task": -1}, IndexError, "there are"),
        ({"task": 10**9}, IndexError, "there are"),
        ({"task": "3"}, TypeError, "task index"),
        ({"task": True}, TypeError, "task index"),
        ({"direction": "more"}, ValueError, "AmazonPair"),
    ],
)
def test_bad_options(tiny: Dataset, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tiny_env(tiny).reset(options=options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negative": "nope"}, "not an item id"),
        ({"negative": 60}, r"0\.\.59"),
        ({"direction": "mor"}, "Did you mean 'more'"),
        ({"letter": "C"}, "letter 'C'"),
    ],
)
def test_bad_pair_options(tiny: Dataset, options: dict[str, Any], words: str) -> None:
    env = tiny_env(tiny, candidates=2, mode="pair")
    with pytest.raises(ValueError, match=words):
        env.reset(options=options)
    env.reset(options={"task": 0})
    with pytest.raises(ValueError, match="positive"):
        env.reset(options={"task": 0, "negative": env.session.task.target})


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"datasets": "x"}, TypeError, "Did you mean 'dataset'"),
        ({"dataset": "sinthetic"}, DataError, "synthetic"),
        ({"tools": ["get_user_profil"]}, UnknownNameError, "Did you mean 'get_user_profile'"),
        ({"tools": "get_user_profile"}, TypeError, "list of names"),
        ({"reward": "ndgc@10"}, UnknownNameError, "Did you mean 'ndcg@10'"),
        ({"split": "temporel"}, UnknownNameError, "Did you mean 'temporal'"),
        ({"task_split": "tests"}, ValueError, "Did you mean 'test'"),
        ({"negatives": "unifrom"}, UnknownNameError, "Did you mean 'uniform'"),
        ({"num_candidates": 1001}, ValueError, "1000"),
        ({"num_candidates": "all"}, ValueError, "catalog"),
        ({"mode": "pear"}, ValueError, "Did you mean 'pair'"),
        ({"mode": "pair"}, ValueError, "num_candidates=2"),
        ({"max_calls": -1}, ValueError, "max_calls"),
        ({"history_length": 0}, ValueError, "history_length"),
        ({"render_mode": "human"}, ValueError, "ansi"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        RecEnv(**kwargs)


def test_step_before_reset(tiny: Dataset) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        tiny_env(tiny).step("hm")


def test_tool_schemas_are_json() -> None:
    env = RecEnv()
    schemas = json.loads(json.dumps(env.tool_schemas))
    names = [schema["function"]["name"] for schema in schemas]
    assert "get_user_profile" in names
    assert all(f"- {name}(" in env.reset(seed=0)[0]["text"] for name in names)


def test_the_embedded_world_says_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    from agentrec_env import scenario

    scenario._dataset.cache_clear()
    with caplog.at_level(logging.WARNING, logger="agentrec_env"):
        scenario._dataset("synthetic", 0, ())
        scenario._dataset("synthetic", 0, ())
    assert sum("not real reviews" in record.message for record in caplog.records) == 1


def test_registering_a_variant() -> None:
    register_env("TestShop-v0", num_candidates=7, reward="mrr")
    try:
        assert gym.make("TestShop-v0").reset(seed=0)[0]["candidates"].shape == (7,)
        assert gym.make_vec("TestShop-v0", 2).reset(seed=0)[0]["candidates"].shape == (2, 7)
    finally:
        del gym.registry["TestShop-v0"]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    fingerprints = []
    for shift in (0, 1):
        rows = [f"u{u},i{(u + shift * t + t) % 40},{t}" for u in range(30) for t in range(8)]
        path.write_text("user,item,timestamp\n" + "\n".join(rows) + f"\nextra{'x' * shift},i1,9\n")
        fingerprints.append(RecEnv(dataset=str(path)).world.dataset.fingerprint)
    assert fingerprints[0] != fingerprints[1]
