"""The taskset under `vf-eval`, against a server on loopback that streams: it is paid as the Gymnasium environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import agentrec_env  # noqa: F401 - registers the ids
from agentrec_env.actions import render
from agentrec_env.adapters.conversation import Conversation, scenario
from agentrec_env.types import ToolCall
from tests.adapters.venvs import environment
from tests.agents.chat_server import CALL, Body, completion, serving

pytestmark = [pytest.mark.adapters, pytest.mark.timeout(1800)]

KWARGS: dict[str, Any] = {"num_candidates": 5, "task_split": "test", "tools": ["score_candidates", "get_user_profile"]}
ORDERS: tuple[list[int] | None, ...] = ([2, 4, 1], [5], None, [1, 2, 3, 4, 5])
"""What the model answers to each task; None: nothing."""


def submit(ranking: list[int]) -> Body:
    """A native call that answers."""
    function = {"name": "submit_ranking", "arguments": json.dumps({"ranking": ranking})}
    return {"id": "abc124", "type": "function", "function": function}


def test_an_evaluation_of_an_endpoint(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    conversation = Conversation(scenario(**KWARGS))
    prompts = [conversation.reset(task=task)[1]["content"] for task in range(len(ORDERS))]

    def model(body: Body) -> Body:
        asked, *said = [message for message in body["messages"] if message["role"] != "system"]
        order = ORDERS[prompts.index(asked["content"])]
        if not said:
            return completion(calls=[CALL], finish="tool_calls")
        return completion("I do not know.") if order is None else completion(calls=[submit(order)], finish="tool_calls")

    programs = environment("verifiers", pytestconfig)
    with serving() as server:
        server.answer = model
        command = [
            programs / "vf-eval",
            "agentrec-v1",
            *("-n", len(ORDERS), "-m", "mine", "--no-push", "--no-rich", "--output-dir", tmp_path / "out"),
            *("--client.base-url", server.url, "--client.api-key-var", "NO_KEY"),
            *("--env.agent.harness.id", "null", "--env.agent.runtime.type", "subprocess"),
            *("--env.taskset.task.kwargs", json.dumps(KWARGS)),
        ]
        here = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "127.0.0.1,localhost"}
        here |= {"NO_KEY": "none", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=os.environ | here, capture_output=True, text=True, timeout=900
        )
        assert run.returncode == 0, run.stdout + run.stderr
        asked = server.bodies
    assert {tool["function"]["name"] for tool in asked[0]["tools"]} == {*KWARGS["tools"], "submit_ranking"}
    assert all(body["stream"] for body in asked)

    (file,) = (tmp_path / "out").rglob("traces.jsonl")
    episodes = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(episode["task"]["data"]["task"] for episode in episodes) == list(range(len(ORDERS)))
    env = gymnasium.make("AgentRec-Amazon-v0", **KWARGS)
    for episode in episodes:
        task, (trace,) = episode["task"]["data"]["task"], episode["traces"]
        env.reset(options={"task": task})
        observation, *_ = env.step(render([ToolCall("score_candidates", {})]))
        answer = f"<answer>{ORDERS[task]}</answer>"
        _, reward, _, _, info = env.step(answer) if ORDERS[task] else (None, -1.0, None, None, {"ndcg@10": 0.0})
        assert trace["rewards"]["reward"]["score"] == reward
        assert trace["metrics"]["ndcg@10"] == info["ndcg@10"]
        assert trace["metrics"]["calls"] == 1
        assert json.dumps(observation["text"])[1:-1] in json.dumps(trace)
