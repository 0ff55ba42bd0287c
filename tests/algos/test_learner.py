"""The learner as a user has it: runs of a second with a real engine, policy and environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrec_env.data.world import World
from agents.llm.policy import Policy
from algos.checkpoint import Checkpoints
from algos.config import Optimization
from algos.learner import Learner
from algos.listwise_grpo import ListwiseGRPO
from algos.ppo import PPO
from algos.training import Training
from tests.agents.llm.test_agent import puppet
from tests.algos.small import HABITS, learner, settings
from tests.conftest import random_dataset

GRPO = ListwiseGRPO(groups=4, group_size=4)


@dataclass(frozen=True)
class Other(ListwiseGRPO):
    """Another algorithm of the same settings."""


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if "reward" in line]


def small_run(**changes: Any) -> str:
    """What a process prints that computed nothing before, as it forks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.algos.small", json.dumps(changes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def same_runs(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert [line["step"] for line in lines(other, "timings.jsonl")] == [line["step"] for line in lines(other)]
    last = Checkpoints(one / "checkpoints").steps()[-1]
    for name in ("state.safetensors", "state.json"):
        place = Path("checkpoints") / f"step-{last:08d}" / name
        assert (one / place).read_bytes() == (other / place).read_bytes()
    for folder in ("best", "model"):
        assert (one / folder / "model.safetensors").read_bytes() == (other / folder / "model.safetensors").read_bytes()


def stop_in_the_first_update(training: Training[Any]) -> None:
    run = learner(training)
    update = run.updater.update

    def stopping(*args: Any) -> Any:
        run.stop()
        return update(*args)

    run.updater.update = stopping  # type: ignore[method-assign]
    run.train()
    assert run.step == 1


def test_it_learns(tmp_path: Path) -> None:
    algorithm = ListwiseGRPO(groups=8, group_size=4, drop="none")
    learner(settings(algorithm, tmp_path, steps=7, rows=32, evaluate_every=0, checkpoint_every=9)).train()
    steps = steps_of(tmp_path)
    assert steps[0]["invalid"] > 0.2 > 0.1 > steps[-1]["invalid"]
    assert np.mean([line["reward"] for line in steps[-3:]]) > steps[0]["reward"] + 0.2


@pytest.mark.slow
def test_ppo_learns(tmp_path: Path) -> None:
    learner(settings(PPO(groups=64, epochs=2), tmp_path, steps=7, rows=64, evaluate_every=0)).train()
    steps = steps_of(tmp_path)
    assert steps[0]["invalid"] > 0.2 > 0.1 > steps[-1]["invalid"]
    assert np.mean([line["reward"] for line in steps[-3:]]) > steps[0]["reward"] + 0.2


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    run = learner(settings(GRPO, tmp_path, steps=2, transcripts=2))
    figures = run.train()
    assert figures["valid/ndcg@10/low"] <= figures["valid/ndcg@10"] <= figures["valid/ndcg@10/high"]
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert (recorded["name"], recorded["algorithm"]["group_size"]) == ("grpo", 4)
    assert [line["step"] for line in lines(tmp_path)] == [0, 0, 1, 2]
    for line, name in zip(lines(tmp_path, "timings.jsonl"), ("evaluate", "update", "update", "evaluate"), strict=True):
        assert line[f"seconds/{name}"] > 0
        assert name == "evaluate" or line["memory_gib"] > 0
    for line in steps_of(tmp_path):
        told = {"reward", "reward_spread", "flat_groups", "dropped_groups", "sampled_entropy", "turns", "tokens"}
        assert told | {"calls/get_user_profile", "first/get_user_profile", "invalid", "rate", "skipped"} <= line.keys()
        assert line["mismatch_kl"] < 1e-6
        shares = [value for name, value in line.items() if name.startswith("stop/")]
        assert sum(shares) == pytest.approx(1)
        assert sum(v for name, v in line.items() if name.startswith("why/")) == pytest.approx(line["invalid"])
    text = (tmp_path / "transcripts" / "step-00000002.txt").read_text()
    assert text.count("Rank the candidate items") == 2
    assert text.count("end: ") == 2
    for folder in ("best", "model"):
        assert Policy.from_pretrained(tmp_path / folder).vocabulary == run.policy.vocabulary


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "ppr", "dpo"])
def test_killed_at_many_moments_it_is_the_same_run(tmp_path: Path, algorithm: str) -> None:
    told = small_run(out=str(tmp_path), steps=6, evaluate_every=3, evaluate_tasks=4, kills=20, algorithm=algorithm)
    ends = json.loads(told.splitlines()[-1])
    assert ends["killed"] >= 20, told
    assert ends["stopped"] > 0 < ends["writing"], told
    for number in range(ends["done"]):
        folder = tmp_path / f"cut-{number}"
        same_runs(tmp_path / "whole", folder)
        assert not [*folder.glob(".best*"), *folder.glob(".model*")]


def test_it_stops_when_asked_and_goes_on(tmp_path: Path) -> None:
    whole = settings(GRPO, tmp_path / "whole", steps=3)
    learner(whole).train()
    cut = replace(whole, out=tmp_path / "cut", checkpoint_every=100)
    stop_in_the_first_update(cut)
    assert not (tmp_path / "cut" / "model").exists()
    learner(replace(cut, resume=True, checkpoint_every=1)).train()
    same_runs(tmp_path / "whole", tmp_path / "cut")


def test_what_may_differ_does_not_matter(tmp_path: Path) -> None:
    learner(settings(GRPO, tmp_path / "one", steps=2)).train()
    learner(settings(GRPO, tmp_path / "other", steps=2, rows=3, micro_tokens=700)).train()
    for one, other in zip(lines(tmp_path / "one"), lines(tmp_path / "other"), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-3, atol=1e-4)


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    learner(settings(GRPO, tmp_path, steps=1, evaluate_every=0)).train()
    with pytest.raises(FileExistsError, match="--resume"):
        learner(settings(GRPO, tmp_path, steps=1, evaluate_every=0))
    with pytest.raises(ValueError, match="temperature"):
        learner(settings(GRPO, tmp_path, steps=1, evaluate_every=0, resume=True, temperature=0.5))
    with pytest.raises(ValueError, match=r"name: 'grpo', now 'tests\.algos\.test_learner:Other'"):
        learner(settings(Other(groups=4, group_size=4), tmp_path, steps=1, evaluate_every=0, resume=True))
    with pytest.raises(FileNotFoundError, match="without --resume"):
        learner(settings(GRPO, tmp_path / "nothing", resume=True))


def test_patience_ends_a_run(tmp_path: Path) -> None:
    optimization = Optimization(lr=1e-9, warmup=0)
    run = learner(settings(GRPO, tmp_path, steps=9, evaluate_every=1, patience=2, optimization=optimization))
    run.train()
    assert run.step == 2
    resumed = learner(replace(run.training, resume=True))
    resumed.train()
    assert resumed.step == 2


def test_values_need_a_head(tmp_path: Path) -> None:
    training = settings(PPO(groups=2), tmp_path)
    with pytest.raises(ValueError, match="value_head=True"):
        Learner(training, puppet(HABITS), World(random_dataset(), num_candidates=5, history_length=3))


def test_a_reference_is_the_start(tmp_path: Path) -> None:
    algorithm = ListwiseGRPO(groups=4, group_size=4, kl="loss", drop="none")
    whole = settings(algorithm, tmp_path / "whole", steps=3, evaluate_every=0)
    learner(whole).train()
    assert steps_of(tmp_path / "whole")[0]["reference_kl"] < 1e-6 < steps_of(tmp_path / "whole")[2]["reference_kl"]
    cut = replace(whole, out=tmp_path / "cut")
    stop_in_the_first_update(cut)
    learner(replace(cut, resume=True)).train()
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is at least 1"),
        ({"temperature": 0.0}, "explores nothing"),
        ({"patience": 1, "evaluate_every": 0}, "patience counts evaluations"),
        ({"dtype": "float16"}, "'bfloat16'"),
        ({"value_lr": -1.0}, "value_lr is positive"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(GRPO, tmp_path, **changes)


def test_all_episodes_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Sequence[str]:
        raise OSError("no such engine")

    monkeypatch.setattr("agents.llm.agent.LLMAgent.recv", broken)
    with pytest.raises(RuntimeError, match="were lost; the first to: OSError: no such engine"):
        learner(settings(GRPO, tmp_path, evaluate_every=0)).train()


def test_training_from_the_api_takes_five_lines(tmp_path: Path) -> None:
    puppet(HABITS).save_pretrained(tmp_path / "start")
    algorithm = ListwiseGRPO(groups=2, group_size=2)
    training = Training(algorithm, tmp_path / "run", model=str(tmp_path / "start"), steps=1, evaluate_every=0, rows=4)
    run = Learner(replace(training, max_turn_tokens=8, lora_rank=2, device="cpu"))
    run.train()
    assert run.policy.adapted
    assert all("lora" in name for name in run.updater.weights)
    assert torch.isfinite(next(iter(run.updater.weights.values()))).all()
