"""RecVectorEnv against N single environments, stepped in any order and portion."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrec_env.data.world import World
from agentrec_env.env import RecEnv
from agentrec_env.registration import IDS, register_envs
from agentrec_env.vector import RecVectorEnv, batch_infos, rows_of
from tests.conftest import random_dataset

register_envs()

WORLDS = {n: World(random_dataset(), num_candidates=n) for n in (2, 8, "catalog")}  # type: ignore[arg-type]
TOOLS = ["tests.fakes:cheap", "tests.fakes:echo"]
CALL = '<tool_call>{"name": "cheap", "arguments": {}}</tool_call>'
ACTIONS = [
    CALL,
    CALL + CALL,
    '<tool_call>{"name": "echo", "arguments": {"text": "é漢", "times": 2}}</tool_call>',
    '<tool_call>{"name": "echo", "arguments": {}}</tool_call>',
    "hm",
    '<tool_call>{"name": "nope", "arguments": {}}</tool_call>',
    "<answer>[1, 2, 3]</answer>",
    "<answer>[8]</answer>",
    "\\boxed{A}",
    '<answer>["B0001", "B0002"]</answer>',
]


def make(num_envs: int, candidates: Any = 8, **kwargs: Any) -> RecVectorEnv:
    return RecVectorEnv(num_envs, **common(candidates), **kwargs)


def single(candidates: Any = 8, **kwargs: Any) -> RecEnv:
    return RecEnv(**common(candidates), **kwargs)


def common(candidates: Any) -> dict[str, Any]:
    kwargs = {"world": WORLDS[candidates], "tools": TOOLS, "max_calls": 4}
    return kwargs | ({"mode": "pair", "reward": "pair"} if candidates == 2 else {})


def info_of(infos: dict[str, Any], place: int) -> dict[str, Any]:
    """The info of one row, from Gymnasium's arrays and masks."""
    return {key: infos[key][place] for key in infos if not key.startswith("_") and infos[f"_{key}"][place]}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 8, "catalog"]),
    st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.sampled_from([None, 3]),
)
def test_same_as_single_envs(candidates: Any, seeds: list[int], random: Any, max_turns: int | None) -> None:
    """The same observations, rewards and infos for the same seeds and actions, with partial stepping in any order."""
    envs = make(len(seeds), candidates, max_turns=max_turns)
    alone = [single(candidates, max_turns=max_turns) for _ in seeds]
    observations, infos = envs.reset(seed=seeds)
    firsts = [env.reset(seed=seed) for env, seed in zip(alone, seeds, strict=True)]
    for row, (observation, info) in enumerate(firsts):
        np.testing.assert_equal(rows_of(observations)[row], observation)
        assert info_of(infos, row) == info
    running = set(range(len(seeds)))
    for _ in range(25):
        if not running:
            break
        expected = {}
        for _ in range(random.randint(1, 2)):
            chosen = random.sample(sorted(running), random.randint(1, len(running)))
            rows = [row for row in chosen if row not in expected]
            actions = [random.choice(ACTIONS) for _ in rows]
            envs.send(actions, rows)
            expected |= {row: alone[row].step(action) for row, action in zip(rows, actions, strict=True)}
        observations, rewards, terminations, truncations, infos, received = envs.recv()
        assert received.tolist() == list(expected)
        for place, row in enumerate(received.tolist()):
            observation, reward, terminated, truncated, info = expected[row]
            np.testing.assert_equal(rows_of(observations)[place], observation)
            assert (rewards[place], terminations[place], truncations[place]) == (reward, terminated, truncated)
            assert info_of(infos, place) == info
            if terminated or truncated:
                running.remove(row)
                if random.random() < 0.5:
                    mask = np.arange(len(seeds)) == row
                    again, infos_again = envs.reset(options={"reset_mask": mask})
                    observation, info = alone[row].reset()
                    np.testing.assert_equal(rows_of(again)[row], observation)
                    assert info_of(infos_again, row) == info
                    running.add(row)


@pytest.mark.parametrize("env_id", IDS)
def test_same_as_sync_vector_env(env_id: str) -> None:
    ours = gym.make_vec(env_id, 4)
    theirs = gym.make_vec(
        env_id, 4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED}
    )
    assert isinstance(ours, RecVectorEnv)
    assert isinstance(theirs, SyncVectorEnv)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_equal(ours.reset(seed=3), theirs.reset(seed=3))
    call = '<tool_call>{"name": "get_user_profile"}</tool_call>'
    for actions in ([call, "hm", call, call], ["\\boxed{[3]}\\boxed{A}", call, "hm", "hm"]):
        mine, other = ours.step(actions), theirs.step(actions)
        np.testing.assert_equal(mine, other)
        assert mine[0] in ours.observation_space
        assert {key: value.dtype for key, value in mine[4].items()} == {k: v.dtype for k, v in other[4].items()}


@pytest.mark.parametrize("env_id", IDS)
def test_pickle(env_id: str) -> None:
    envs = gym.make_vec(env_id, 2)
    np.testing.assert_equal(pickle.loads(pickle.dumps(envs)).reset(seed=1), envs.reset(seed=1))


def test_a_group_is_a_seed_repeated() -> None:
    observations, infos = make(4).reset(seed=[5] * 4)
    assert len(set(observations["text"])) == 1
    assert len(set(infos["task"].tolist())) == 1
    assert len(set(make(4).reset(seed=5)[0]["text"])) > 1


def test_finished_rows_hold_until_reset() -> None:
    envs = make(3)
    envs.reset(seed=0)
    first = envs.step(["<answer>[1]</answer>", CALL, CALL])
    held = envs.step(["ignored", CALL, "<answer>[2]</answer>"])
    assert held[2].tolist() == [True, False, True]
    assert held[1][0] == 0
    assert held[0]["text"][0] == first[0]["text"][0]
    assert held[0]["turn"].tolist() == [1, 2, 2]
    assert not held[4]["_calls"][0]
    before = envs.session(1).prompt
    observations, infos = envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert observations["turn"].tolist() == [0, 2, 2]
    assert infos["_task"].tolist() == [True, False, False]
    assert envs.session(1).prompt == before
    assert envs.step([CALL, CALL, "ignored"])[2].tolist() == [False, False, True]


def test_tasks_by_row() -> None:
    envs = make(3)
    _, infos = envs.reset(options={"task": [4, 4, 7]})
    assert infos["task"].tolist() == [4, 4, 7]
    assert envs.session(0).prompt == envs.session(1).prompt
    _, infos = envs.reset(options={"task": 2})
    assert infos["task"].tolist() == [2, 2, 2]
    _, infos = envs.reset(options={"task": [0, 1, 9], "reset_mask": np.array([False, True, True])})
    assert infos["task"].tolist() == [0, 1, 9]
    assert [envs.session(row).task.index for row in range(3)] == [2, 1, 9]
    assert [view.user for view in envs.views([2, 1])] == [envs.session(row).task.user for row in (2, 1)]


def test_directions() -> None:
    envs = make(2, 2)
    envs.reset(options={"task": 0, "direction": ["more", "less"]})
    assert envs.directions([1, 0]) == ["less", "more"]
    assert make(1).reset(seed=0)
    envs = make(1)
    envs.reset()
    assert envs.directions([0]) == [None]


def test_returned_arrays_are_copies() -> None:
    envs = make(2)
    first, _ = envs.reset(seed=0)
    kept = {key: np.array(value) for key, value in first.items()}
    second, *_ = envs.step([CALL, CALL])
    for key in ("history", "candidates", "turn"):
        assert not np.shares_memory(first[key], second[key])
        np.testing.assert_array_equal(first[key], kept[key])


def test_a_bug_in_a_tool_ends_only_its_row(caplog: pytest.LogCaptureFixture) -> None:
    envs = RecVectorEnv(2, world=WORLDS[8], tools=[*TOOLS, "tests.fakes:broken"])
    envs.reset(seed=0)
    with caplog.at_level(logging.ERROR):
        _, rewards, terminations, truncations, infos = envs.step(['<tool_call>{"name": "broken"}</tool_call>', CALL])
    assert rewards.tolist() == [0, 0]
    assert terminations.tolist() == [False, False]
    assert truncations.tolist() == [True, False]
    assert infos["stop"][0] == "environment_error"
    assert "ZeroDivisionError" in infos["error"][0]
    assert "a bug in the tool" in caplog.text


def test_abort() -> None:
    envs = make(2)
    envs.reset(seed=0)
    envs.abort(1, "the agent fell over")
    episode = envs.session(1).episode()
    assert (str(episode.stop), episode.reward, episode.error) == ("agent_error", -1.0, "the agent fell over")
    assert envs.step([CALL, "ignored"])[2].tolist() == [False, True]


def test_misuse() -> None:
    envs = make(2)
    with pytest.raises(RuntimeError, match="never reset"):
        envs.step([CALL, CALL])
    with pytest.raises(RuntimeError, match="send actions first"):
        envs.recv()
    envs.reset(seed=0)
    for actions, rows, words in [
        ([CALL], [0, 1], "one action for each"),
        ([CALL, CALL], [0, 0], "different"),
        ([CALL], [2], r"0\.\.1"),
    ]:
        with pytest.raises(ValueError, match=words):
            envs.send(actions, rows)
    with pytest.raises(ValueError, match="one action for each"):
        envs.step([CALL])
    envs.send([CALL], [1])
    with pytest.raises(ValueError, match="waiting"):
        envs.send([CALL], [1])
    with pytest.raises(RuntimeError, match="recv"):
        envs.step([CALL, CALL])
    envs.recv()
    envs.step(["\\boxed{[1]}", CALL])
    with pytest.raises(ValueError, match="finished"):
        envs.send([CALL], [0])
    for options in ({"reset_mask": [True, False]}, {"reset_mask": np.zeros(2, bool)}, {"reset_mask": np.ones(3, bool)}):
        with pytest.raises(ValueError, match="reset_mask"):
            envs.reset(options=options)
    with pytest.raises(ValueError, match="2 rows"):
        envs.reset(options={"task": [1]})
    with pytest.raises(ValueError, match="one seed for each"):
        envs.reset(seed=[1])
    with pytest.raises(ValueError, match="at least 1"):
        make(0)


def test_render() -> None:
    envs = make(2, render_mode="ansi")
    assert envs.render() == ("", "")
    envs.reset(seed=0)
    frames = envs.render()
    assert frames is not None
    assert all("candidates" in frame for frame in frames)
    assert make(1).render() is None


kinds = {"a": st.integers(0, 9), "b": st.floats(0, 1), "c": st.text(max_size=3)}
single_infos = st.fixed_dictionaries({}, optional=kinds)


@given(st.lists(single_infos, min_size=1, max_size=5))
def test_infos_are_batched_as_gymnasium_does(infos: list[dict[str, Any]]) -> None:
    envs = make(len(infos))
    expected: dict[str, Any] = {}
    for row, info in enumerate(infos):
        expected = envs._add_info(expected, info, row)
    np.testing.assert_equal(batch_infos(infos, range(len(infos)), len(infos)), expected)
