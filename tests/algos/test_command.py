"""The command lines of the algorithms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from algos.batch import Batch
from algos.command import main
from algos.learner import Learner
from algos.listwise_grpo import ListwiseGRPO
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


def test_a_dry_run_of_a_warm_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    chosen = ["--model", "new", "--new.hidden", "32", "--new.layers", "1", "--new.vocabulary", "500"]
    chosen += ["--new.text-episodes", "5", "--teacher", "scripted", "--steps", "3", "--rows", "4", "--device", "cpu"]
    assert main("sft", [*chosen, "--evaluate-every", "0", "--out", str(out), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "3 steps, 48 episodes" in told
    assert "judged      never" in told
    assert "optimizer" in told
    assert "sampler" not in told
    assert not out.exists()


def test_a_warm_start_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main("sft", ["--out", str(tmp_path / "run")]) == 2
    assert "leave torchrun out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


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


def test_a_run_that_is_asked_to_stop_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    puppet(HABITS).save_pretrained(tmp_path / "model")
    chosen = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), "--groups", "2", "--group-size", "2"]
    asked = Learner._advance

    def stopping(self: Learner) -> dict[str, float]:
        self.stop()
        return asked(self)

    monkeypatch.setattr(Learner, "_advance", stopping)
    assert main("grpo", [*SMALL, *chosen, "--steps", "3", "--evaluate-every", "0"]) == 130


@dataclass(frozen=True)
class Half(ListwiseGRPO):
    """Pays half."""

    def worth(self, batch: Batch) -> Tensor:
        return batch.rewards / 2


def test_an_algorithm_by_module_and_attribute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    puppet(HABITS).save_pretrained(tmp_path / "model")
    chosen = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main("tests.algos.test_command:Half", [*SMALL, *chosen]) == 0
    assert capsys.readouterr().out.startswith("Half on ")


def test_a_folder_that_holds_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    for name in ("grpo", "sft"):
        assert main(name, ["--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
        assert f"agentrec train {name}: {tmp_path / 'run'} holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpo", "--env.task-split", "tests"], "Did you mean 'test'?"),
        (["grpo", "--group-size", "1"], "group_size is at least 2"),
        (["grpo", "--gruop-size", "4"], "--group-size"),
        (["grop"], "agentrec train grop: unknown algorithm 'grop'. Did you mean 'grpo'?"),
        (["tests.algos.test_command:SMALL"], "is no algorithm: it must be a dataclass"),
        (["agentrec_env.types:Turn"], "it lacks groups, group_size"),
    ],
)
def test_settings_that_cannot_be_used(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments[0], arguments[1:])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
