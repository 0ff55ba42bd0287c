"""The conformance suite passes what is sound, and names what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agentrec_env.check import ConformanceError, check_agent, check_dataset, check_rec_env, check_tool
from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.env import RecEnv
from agentrec_env.registration import IDS
from agentrec_env.tools import TOOLS, tool
from agentrec_env.vector import RecVectorEnv
from tests.conftest import random_dataset


@pytest.mark.parametrize("env_id", IDS)
def test_registered_ids_conform(env_id: str) -> None:
    points = check_rec_env(env_id, tools=False)
    assert "gymnasium check_env" in points
    assert "the vector environment gives the same" in points


def test_a_catalogue_env_conforms() -> None:
    check_rec_env("AgentRec-Amazon-v0", num_candidates="catalog", tools=False, render_mode="ansi")


@pytest.mark.parametrize("split", ["temporal", "leave_one_out"])
@pytest.mark.parametrize("name", TOOLS.names())
def test_built_in_tools_conform(name: str, split: str, tiny: Dataset) -> None:
    assert "it tells nothing that is hidden" in check_tool(name, World(tiny, split, 8), tasks=2)


def failures(check: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConformanceError) as caught:
        check(*args, **kwargs)
    assert len(caught.value.failures) == str(caught.value).count("\n- ")
    return str(caught.value)


def test_a_tool_that_looks_ahead_is_found(tiny: Dataset) -> None:
    text = failures(check_tool, "tests.fakes:peeking", World(tiny, num_candidates=8))
    assert "it tells nothing that is hidden" in text
    assert "1 of" in text


@tool(register=False, guarded=False)
def moody(view: View, words: str) -> str:
    """Answer differently each time.

    Args:
        words: Ignored.
    """
    moods.append(words)
    return str(len(moods))


moods: list[str] = []


@tool(register=False, guarded=False)
def wrong_type(view: View) -> str:
    """Return a number where text is asked for."""
    return 3  # type: ignore[return-value]


def test_bad_tools_are_found(tiny: Dataset) -> None:
    world = World(tiny, num_candidates=8)
    assert "equal calls give equal answers" in failures(check_tool, moody, world)
    assert "must return str" in failures(check_tool, wrong_type, world)
    assert "a bug in the tool" in failures(check_tool, "tests.fakes:broken", world)


class Leaky(RecEnv):
    """Tells the target in info from the start, and pays along the way."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward or 0.5, terminated, truncated, info | {"target": self.session.task.target}


def test_bad_envs_are_found(tiny: Dataset) -> None:
    text = failures(check_rec_env, Leaky(world=World(tiny, num_candidates=8), tools=[]))
    assert "reward and target come at the end" in text
    assert "make it a RecEnv" in failures(check_rec_env, gym.make("CartPole-v1"))


def first_five(observation: dict[str, Any]) -> str:
    return "<answer>[1, 2, 3, 4, 5]</answer>"


class Forgetful:
    """Draws from a generator that `reset` does not seed."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def reset(self, num_envs: int, seed: int) -> None:
        pass

    def act(self, observations: list[dict[str, Any]], rows: list[int]) -> list[str]:
        return [f"<answer>{(self.generator.permutation(20)[:5] + 1).tolist()}</answer>" for _ in rows]


class Short(Forgetful):
    def act(self, observations: list[dict[str, Any]], rows: list[int]) -> list[str]:
        return ["hm"] * (len(rows) - 1)


def test_agents(tiny: Dataset) -> None:
    envs = RecVectorEnv(3, world=World(tiny), task_split="test", tools=[])
    assert len(check_agent(first_five, envs)) == 6
    assert check_agent("tests.test_check:first_five", envs)
    assert "equal seeds give equal episodes" in failures(check_agent, Forgetful, envs)
    assert "2 actions for 3 observations" in failures(check_agent, Short(), envs)
    assert "not a text" in failures(check_agent, lambda observation: 3, envs)
    assert "are not; 'hm'" in failures(check_agent, lambda observation: "hm", envs)
    assert "must be a function" in failures(check_agent, 3, envs)


def test_datasets(tiny: Dataset, tmp_path: Path) -> None:
    assert check_dataset(random_dataset(times=False))
    assert len(check_dataset(tiny)) == 7
    assert tiny.time is not None
    assert "are they seconds?" in failures(check_dataset, replace(tiny, time=tiny.time // 1000))
    item = tiny.item.copy()
    item[1] = item[0]
    assert "drop_repeats" in failures(check_dataset, replace(tiny, item=item))
    assert "not in order" in failures(check_dataset, replace(tiny, user=tiny.user[::-1].copy()))
    bare = Items.bare(tiny.items.ids)
    assert "reads titles" in failures(check_dataset, replace(tiny, items=bare))


def test_real_reviews_conform(shared_data: Path) -> None:
    for name in ("office", "cds"):
        check_dataset(shared_data / name)
