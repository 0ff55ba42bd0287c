"""What asking is worth, on few tasks: it pays, it pays only through answers, and the filter is what keeps it honest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agentrec_env.dialogue import core
from agentrec_env.dialogue.env import DialogueVectorEnv
from agentrec_env.dialogue.user import ScriptedUser
from agents import make, play
from benchmarks.dialogue import METRICS, ROWS, MuteUser, NamingUser, main

TASKS = range(150)


def gains(agent: str, user: ScriptedUser, tasks: range = TASKS) -> np.ndarray:
    """N@10 of each task."""
    envs = DialogueVectorEnv(32, task_split="test", user=user)
    return np.array([episode.metrics["ndcg@10"] for episode in play(envs, make(agent), tasks)])


@pytest.mark.slow
def test_the_agent_that_asks_beats_the_one_that_does_not_and_only_by_the_answers() -> None:
    asking, mute, silent = (
        gains("asking", ScriptedUser()),
        gains("asking", MuteUser()),
        gains("scripted", ScriptedUser()),
    )
    gap = asking - silent
    assert gap.mean() - 4 * gap.std(ddof=1) / np.sqrt(len(gap)) > 0.1
    assert abs((mute - silent).mean()) < 0.02


@pytest.mark.slow
def test_a_user_that_names_the_item_is_worth_no_more_than_one_that_is_mute(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = range(60)
    mute, naming = gains("asking", MuteUser(), tasks), gains("asking", NamingUser(), tasks)
    assert abs((naming - mute).mean()) < 0.03
    monkeypatch.setattr(core, "redact", lambda text, names: text)
    assert (gains("asking", NamingUser(), tasks) - mute).mean() > 0.2


@pytest.mark.slow
def test_the_script_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dialogue.json"
    assert main(["--tasks", "8", "--seeds", "2", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["rows"]] == [row.name for row in ROWS]
    assert all(
        row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"] for row in report["rows"] for metric in METRICS
    )
    assert "8 tasks" in capsys.readouterr().out
