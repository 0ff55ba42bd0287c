"""Conformance of environments: Gymnasium's own suite with warnings as errors, and the promises of `RecEnv`."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from agentrec_env.check.leaks import check_hidden, some_tasks
from agentrec_env.check.points import ConformanceError, Points, assert_same
from agentrec_env.check.tool import check_tool
from agentrec_env.env import RecEnv
from agentrec_env.prompts import task_prompt
from agentrec_env.registration import register_envs
from agentrec_env.vector import rows_of

HOSTILE = ("", "hm", "<think>", "<tool_call>", "<tool_call>{", "<answer>[1e999]</answer>", "\x00\ud800", "[" * 5000)
"""Actions that must be answered, not raised."""


def check_rec_env(env: str | gym.Env[Any, Any], episodes: int = 5, tools: bool = True, **kwargs: Any) -> list[str]:
    """Check an environment: Gymnasium's own suite with warnings as errors, and the promises of `RecEnv`.

    Args:
        env: An id, made with `kwargs`, or an environment.
        episodes: How many episodes to play for each point.
        tools: Whether to check each of its tools for leaks too.

    Returns:
        The points that hold.

    Raises:
        ConformanceError: Listing those that do not.
    """
    register_envs()
    made = gym.make(env, **kwargs) if isinstance(env, str) else env
    rec = made.unwrapped
    points = Points(str(env))
    if not isinstance(rec, RecEnv):
        raise ConformanceError(str(env), [f"it is a {type(rec).__name__}; make it a RecEnv or a subclass"])

    with points.point("gymnasium check_env"), warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(rec, skip_render_check=rec.render_mode is None)
    if made.spec is not None:
        with points.point("the spec survives JSON"):
            assert EnvSpec.from_json(made.spec.to_json()) == made.spec, "it reads back different"
    with points.point("pickle"):
        twin = pickle.loads(pickle.dumps(rec))
        assert_same(twin.reset(seed=1), rec.reset(seed=1), "a copy starts seed 1 differently")
    with points.point("a seed fixes the episode"):
        for seed in range(episodes):
            first = copy.deepcopy(rec.reset(seed=seed))
            rec.reset(seed=seed + 1)
            assert_same(rec.reset(seed=seed), first, f"seed {seed} starts differently the second time")
    with points.point("a named task has one fixed pool"):
        for index in range(min(episodes, rec.num_tasks)):
            first = copy.deepcopy(rec.reset(options={"task": index}))
            rec.reset(seed=index)
            assert_same(rec.reset(options={"task": index}), first, f"task {index} starts differently the second time")
    with points.point("no action text raises"):
        for text in HOSTILE:
            rec.reset(seed=0)
            rec.step(text)
    with points.point("reward and target come at the end, the terms sum to the reward"):
        for seed in range(episodes):
            _check_end(rec, seed)
    with points.point("the prompt tells nothing that is hidden"):
        for task in some_tasks(rec.world, episodes, splits=(rec.scenario.config.task_split,)):
            check_hidden(rec.world, task, lambda view: task_prompt(view, "", rec.session.rules.mode, "more"), "prompt")
    if made.spec is not None and made.spec.vector_entry_point is not None:
        with points.point("the vector environment gives the same"):
            _check_vector(rec, made.spec, episodes)
    if tools:
        for tool in rec.scenario.rules.tools.values():
            with points.point(f"tool {tool.name}"):
                check_tool(tool, rec.world, tasks=2)
    return points.result()


def _check_end(env: RecEnv, seed: int) -> None:
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for turn in range(env.scenario.rules.turns_allowed + 1):
        text = "hm" if turn == 0 and seed % 2 else _random_answer(env, rng)
        observation, reward, terminated, truncated, info = env.step(text)
        assert observation in env.observation_space, "an observation is outside the space"
        if terminated or truncated:
            terms = sum(value for key, value in info.items() if key.startswith("reward/"))
            assert abs(terms - reward) < 1e-9, f"the terms sum to {terms}, the reward is {reward}"
            assert info["target"] == env.session.task.target, "info names another target"
            return
        assert reward == 0, f"a reward of {reward} before the end"
        assert not {"target", "rank"} & set(info), "info tells the target before the end"
    raise AssertionError(f"an episode of {env.scenario.rules.turns_allowed} turns did not end")


def _random_answer(env: RecEnv, rng: np.random.Generator) -> str:
    mode = env.scenario.rules.mode
    if mode == "pair":
        return f"\\boxed{{{rng.choice(['A', 'B'])}}}"
    if mode == "catalog":
        return f'<answer>["{rng.choice(env.world.dataset.items.ids)}"]</answer>'
    numbers = rng.permutation(env.scenario.rules.num_candidates)[:10] + 1
    return f"<answer>{numbers.tolist()}</answer>"


def _check_vector(env: RecEnv, spec: EnvSpec, rows: int) -> None:
    envs = gym.make_vec(spec.id, rows, **{k: v for k, v in spec.kwargs.items() if k != "render_mode"})
    observations, _ = envs.reset(seed=3)
    singles = rows_of(observations)
    stepped = rows_of(envs.step(["hm"] * rows)[0])
    for row in range(rows):
        assert_same(env.reset(seed=3 + row)[0], singles[row], f"row {row} starts differently")
        assert_same(env.step("hm")[0], stepped[row], f"row {row} answers differently")
    envs.close()
