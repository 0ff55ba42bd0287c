"""The command lines of the algorithms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from algos.command import main
from tests.agents.llm.test_agent import puppet
from tests.algos.small import HABITS

SMALL = ["--device", "cpu", "--rows", "4", "--env.tools", "get_user_profile", "--max-turn-tokens", "8"]


def test_a_dry_run_tells_the_plan_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    puppet(HABITS).save_pretrained(tmp_path / "model")
    out = tmp_path / "run"
    chosen = ["--model", str(tmp_path / "model"), "--out", str(out), "--groups", "16", "--steps", "3", "--dry-run"]
    assert main("ppo", [*SMALL, *chosen]) == 0
    told = capsys.readouterr().out
    assert "16 tasks x 1: 16 episodes, 4 updates" in told
    assert "3 steps, 48 episodes" in told
    assert "at most" in told
    assert "optimizer" in told
    assert not out.exists()


def test_a_run_from_the_command_line_and_its_resume(tmp_path: Path) -> None:
    puppet(HABITS).save_pretrained(tmp_path / "model")
    chosen = [
        *("--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), "--groups", "2", "--group-size", "2"),
        *("--steps", "2", "--evaluate-every", "0", "--lora-rank", "2", "--lr", "0.001", "--kl", "loss"),
    ]
    main("grpo", [*SMALL, *chosen])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["algorithm"]["kl"] == "loss"
    assert config["optimization"]["lr"] == 0.001
    assert config["env"]["tools"] == ["get_user_profile"]
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    main("grpo", [*SMALL, *chosen, "--resume"])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_word_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("grpo", ["--baseline", "median"])
    assert "leave_one_out" in capsys.readouterr().err
