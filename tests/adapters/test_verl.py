"""verl's own worker plays rows of its own dataset through the agent loop: paid as the Gymnasium environment pays."""

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
from agentrec_env.types import ToolCall
from tests.adapters.venvs import ROOT, environment

pytestmark = [pytest.mark.adapters, pytest.mark.timeout(1800)]

KWARGS = {"num_candidates": 5, "tools": ["score_candidates", "get_item_stats"], "max_calls": 2}
HERE = os.environ | {"OMP_NUM_THREADS": "1", "RAY_DISABLE_IMPORT_WARNING": "1"}
SCORES = ToolCall("score_candidates", {})


def written(name: str, arguments: dict[str, Any]) -> str:
    """A call as Qwen and Hermes write it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SUBMIT = written("submit_ranking", {"ranking": [2, 4, 1]})
CALL = written("score_candidates", {})
ROUNDS = (
    [CALL, SUBMIT],
    [f"Both at once. {CALL}\n{SUBMIT}"],
    ["I do not know."],
    [written("submit_ranking", {"ranking": [2, 2]}), SUBMIT],
    [f"{'word ' * 700}{SUBMIT}"],
)


def paid(seed: int, *actions: Any) -> tuple[float, str]:
    """What `RecEnv` pays for the same, and the first observation after the prompt."""
    env = gymnasium.make("AgentRec-Amazon-v0", **KWARGS)
    env.reset(seed=seed)
    told = ""
    for action in actions:
        observation, reward, terminated, *_ = env.step(action)
        told = told or observation["text"]
    assert terminated
    return float(reward), told


def test_a_batch_in_verls_worker(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    programs = environment("verl", pytestconfig)

    def python(*arguments: Any) -> str:
        command = [str(programs / "python"), *map(str, arguments)]
        run = subprocess.run(command, cwd=ROOT, env=HERE, capture_output=True, text=True, timeout=900)
        assert run.returncode == 0, run.stderr[-4000:]
        return run.stdout

    sizes = ("--train", len(ROUNDS), "--valid", 3, "--seed", 7, "--env", json.dumps(KWARGS))
    python("-m", "agentrec_env.adapters.verl", "--out", tmp_path / "data", *sizes)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"train.parquet", "valid.parquet", "agent.yaml"}
    client = ROOT / "tests" / "adapters" / "verl_client.py"
    printed = python(client, ROOT / "agents" / "llm" / "tiny", tmp_path / "data", json.dumps(ROUNDS))
    rows = json.loads(printed.splitlines()[-1])
    assert [row["seed"] for row in rows] == [7, 8, 9, 10, 11]

    answer = "<answer>[2, 4, 1]</answer>"
    ranked, told = paid(7, render([SCORES]), answer)
    called, _ = paid(8, render([SCORES]), answer)
    silent = -1.0
    retried, _ = paid(10, "<answer>[2, 2]</answer>", answer)
    assert [row["reward"] for row in rows] == pytest.approx([ranked, called, silent, retried, silent])
    assert [row["calls"] for row in rows] == [1, 1, 0, 0, 0]
    assert [row["turns"] for row in rows] == [5, 3, 3, 5, 3]
    scores = told.removeprefix("<observation>").partition("</observation>")[0]
    assert scores.splitlines()[0] in rows[0]["last"]

    for row, lines in zip(rows, ROUNDS, strict=True):
        assert row["prompt_ids"] == row["first_ids"], "the prompt stands whole"
        assert row["trained"] == row["sampled"][: len(row["trained"])], "the tokens that are trained were sampled"
        assert row["logprobs"] == [-0.5] * len(row["trained"])
        assert "submit_ranking" in row["prompt"]
        assert (row["length"] == 600) == ("word word" in lines[0])
    assert all(row["trained"] == row["sampled"] for row in rows[:-1])
    assert rows[0]["length"] > len(rows[0]["trained"]), "what the tools wrote is not trained"
