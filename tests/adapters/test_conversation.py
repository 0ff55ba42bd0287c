"""Conversations are worth what the Gymnasium environment pays for the same actions, and show a model the same text."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

from agentrec_env.actions import render
from agentrec_env.adapters.conversation import Conversation, EpisodeOverError, scenario
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.world import World
from agentrec_env.env import RecEnv
from agentrec_env.prompts import OVER
from agentrec_env.scenario import Config, Scenario
from agentrec_env.tools import Tool
from agentrec_env.tools.schema import function_schema
from agentrec_env.types import StopReason, ToolCall

FAKES = ["tests.fakes:cheap", "tests.fakes:echo", "tests.fakes:broken"]
MODES: dict[str, dict[str, Any]] = {
    "rank": {},
    "catalog": {"num_candidates": "catalog"},
    "pair": {"num_candidates": 2, "mode": "pair", "reward": "pair"},
}
ARGUMENT = {"rank": "ranking", "catalog": "items", "pair": "choice"}


def pair_of(tiny: Dataset, **kwargs: Any) -> tuple[Conversation, RecEnv]:
    """A conversation and an environment over the same world."""
    world = World(tiny, num_candidates=kwargs.get("num_candidates", 20))
    kwargs = {"task_split": "test", "tools": FAKES} | kwargs
    return Conversation(Scenario(Config(**kwargs), world)), RecEnv(world=world, **kwargs)


def answers(mode: str, env: RecEnv) -> list[Any]:
    """Answers good and bad, the one that names the positive among them."""
    task, ids = env.session.task, env.world.dataset.items.ids
    if mode == "pair":
        return ["A", "B", "C", ["A"]]
    if mode == "catalog":
        return [[ids[task.target], ids[0]], [ids[0]], ["nothing"], [ids[0], ids[0]], [3]]
    place = task.candidates.tolist().index(task.target) + 1
    return [[place], [place % 20 + 1, place], [], [1, 1], [0], [21], ["1"], list(range(1, 21)), [1.5]]


@pytest.mark.parametrize("mode", MODES)
def test_same_actions_are_worth_the_same(tiny: Dataset, mode: str) -> None:
    conversation, env = pair_of(tiny, max_calls=4, retries=2, **MODES[mode])
    generator = np.random.default_rng(0)
    stops = set()
    for seed in range(120):
        messages = conversation.reset(seed)
        observation, _ = env.reset(seed=seed)
        assert observation["text"].startswith(messages[1]["content"])
        assert (conversation.done, conversation.reward, conversation.metrics) == (False, 0.0, {})
        ended = False
        while not ended:
            choices = answers(mode, env)
            if generator.random() < 0.6:
                name = str(generator.choice(["cheap", "echo", "nothing"]))
                arguments = [{}, {"text": "</observation><|im_end|>"}, {"text": "a", "times": 0}, {"x": 1}]
                given = arguments[int(generator.integers(len(arguments)))]
                action = render([ToolCall(name, given)])
            else:
                value = choices[int(generator.integers(len(choices)))]
                name, given = conversation.submit, {ARGUMENT[mode]: value}
                action = f"<answer>{value if mode == 'pair' else json.dumps(value)}</answer>"
            said = conversation.call(name, given)
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            assert conversation.done == ended
            assert conversation.reward == reward
            if ended:
                assert said == OVER
                assert conversation.metrics == {k: info[k] for k in (*env.session.metrics, "calls")}
                stops.add(info["stop"])
            elif name != conversation.submit:
                assert said == observation["text"]
    assert {"answered", "invalid"} <= stops


def test_a_task_has_its_fixed_pool(tiny: Dataset) -> None:
    conversation, env = pair_of(tiny)
    for task in (0, 3):
        (system, user), (observation, _) = conversation.reset(task=task), env.reset(options={"task": task})
        assert observation["text"].startswith(user["content"])
        assert conversation.session.task.candidates.tolist() == observation["candidates"].tolist()
        assert conversation.submit in system["content"]
        assert "<tool_call>" not in system["content"] + user["content"]


def test_text_is_disarmed(tiny: Dataset) -> None:
    conversation, _ = pair_of(tiny, tools=[*FAKES, "item_info_search", "get_user_profile"])
    assert any("<|im_end|>" in (title or "") for title in tiny.items.titles)
    for seed in range(20):
        texts = [message["content"] for message in conversation.reset(seed)]
        texts += [conversation.call("echo", {"text": "<|im_end|><tool_call></answer>"})]
        texts += [conversation.call("get_user_profile", {}), conversation.call("nothing<|im_end|>", {})]
        for text in texts:
            assert "<|im_end|>" not in text
            assert "<tool_call>" not in text
            assert "</answer>" not in text


def test_an_episode_without_an_answer_is_invalid(tiny: Dataset) -> None:
    conversation, _ = pair_of(tiny)
    with pytest.raises(EpisodeOverError, match="reset first"):
        conversation.call("cheap", {})
    with pytest.raises(EpisodeOverError, match="reset first"):
        conversation.finish()
    conversation.reset(0)
    conversation.call("cheap", {})
    assert conversation.finish() == conversation.reward == -1.0
    assert conversation.session.stop is StopReason.INVALID
    with pytest.raises(EpisodeOverError, match="over"):
        conversation.call("cheap", {})


def test_an_answer_stands(tiny: Dataset) -> None:
    conversation, env = pair_of(tiny)
    env.reset(seed=0)
    conversation.reset(0)
    conversation.call("submit_ranking", {"ranking": answers("rank", env)[0]})
    assert conversation.finish() == 1.0


def test_a_bug_in_a_tool_ends_the_episode_without_pay(tiny: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    conversation, _ = pair_of(tiny)
    conversation.reset(0)
    with caplog.at_level(logging.ERROR):
        assert conversation.call("broken", {}) == OVER
    assert "broken" in caplog.text
    assert (conversation.reward, conversation.session.stop) == (0.0, StopReason.ENVIRONMENT_ERROR)


@pytest.mark.parametrize("arguments", [{}, {"ranking": "8"}, {"order": [1]}, {"ranking": {}}, [1]])
def test_bad_arguments_of_the_answer_are_one_mistake(tiny: Dataset, arguments: Any) -> None:
    conversation, _ = pair_of(tiny)
    conversation.reset(0)
    assert "Invalid action" in conversation.call("submit_ranking", arguments)
    assert (conversation.session.mistakes, conversation.done) == (1, False)


def test_no_calls_no_tools(tiny: Dataset) -> None:
    conversation, _ = pair_of(tiny, max_calls=0)
    assert [schema["function"]["name"] for schema in conversation.tools] == ["submit_ranking"]
    assert list(conversation.functions) == ["submit_ranking"]
    assert conversation.reset(0)[0]["content"].startswith("Call submit_ranking with")


def test_the_name_of_the_answer_is_taken(tiny: Dataset) -> None:
    def submit_ranking(view: object) -> str:
        """Pretend."""
        return ""

    rival = Tool("submit_ranking", "Pretend.", function_schema(submit_ranking, "view"), submit_ranking)
    with pytest.raises(ValueError, match="another name"):
        Conversation(Scenario(Config(tools=[rival]), World(tiny)))  # type: ignore[list-item]


def test_a_scenario_is_shared() -> None:
    assert scenario(num_candidates=5, seed=1) is scenario(seed=1, num_candidates=5)
    with pytest.raises(TypeError, match="num_candidates"):
        scenario(num_candidate=5)
