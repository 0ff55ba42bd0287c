"""The OpenEnv server with OpenEnv's own client: two sessions at once, worth what the Gymnasium environment pays."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import pytest

import agentrec_env  # noqa: F401 - registers the ids
from agentrec_env.actions import render
from agentrec_env.types import ToolCall
from tests.adapters.venvs import ROOT, environment

pytestmark = [pytest.mark.adapters, pytest.mark.timeout(1200)]

KWARGS = {"num_candidates": 3, "retries": 2, "max_calls": 4}
SEEDS = (11, 12)
HERE = os.environ | {"NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1"}


@contextmanager
def serving(programs: Path, log: Path) -> Iterator[str]:
    """The URL of a server; gone at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [programs / "python", "-m", "agentrec_env.adapters.openenv", "--port", port, "--env", json.dumps(KWARGS)]
    with log.open("w") as output:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=HERE, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def healthy(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_two_sessions_at_once(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    programs = environment("openenv", pytestconfig)
    with serving(programs, tmp_path / "log") as url:
        client = [programs / "python", Path(__file__).with_name("openenv_client.py"), url, *SEEDS]
        run = subprocess.run([*map(str, client)], env=HERE, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr + (tmp_path / "log").read_text()
    played = json.loads(run.stdout.splitlines()[-1])

    env = gymnasium.make("AgentRec-Amazon-v0", **KWARGS)
    rewards = []
    for seed, messages, tools, steps, state in zip(
        SEEDS, played["messages"], played["tools"], played["steps"], played["states"], strict=True
    ):
        observation, _ = env.reset(seed=seed)
        assert [message["role"] for message in messages] == ["system", "user"]
        assert observation["text"].startswith(messages[1]["content"])
        assert set(tools) == {*env.unwrapped.scenario.rules.tools, "submit_ranking"}
        actions = [
            render([ToolCall("score_candidates", {})]),
            render([ToolCall("search_items", {"querry": "guitar"})]),
            render([ToolCall("nothing", {})]),
            "<answer>[3, 1, 2]</answer>",
        ]
        for action, step in zip(actions, steps, strict=True):
            observation, reward, done, _, _ = env.step(action)
            assert (step["reward"], step["done"]) == (reward, done)
            if not done and "nothing" not in action:
                assert step["text"] == observation["text"]
        rewards.append(reward)
        assert (state["step_count"], state["episode_id"]) == (4, f"number {seed}")
    assert min(rewards) > 0
    assert "over" in played["late"]["error"]
    assert (played["late"]["reward"], played["late"]["done"]) == (rewards[0], True)
