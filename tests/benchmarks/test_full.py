"""Every row of the experiment, trained for a step or two and played, by the real program; and killed half way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run_all
from benchmarks.presets import TRAINED
from tests.benchmarks.test_processes import ROOT
from tests.benchmarks.test_run_all import numbers

LESSONS = {
    "teacher_args": '{"ranker": "item_knn"}',
    "repeats": 0.0,
    "lessons": {"early": 0},
    "episodes": 2,
    "questions": 1,
}
SMALL: dict[str, Any] = {
    "*": {
        "evaluate_tasks": 2,
        "rows": 8,
        "device": "cpu",
        "optimization": {"lr": 1e-6, "matrix_lr": 1e-6},
        "algorithm": {"groups": 2, "group_size": 2, "mining": {"mine_tasks": 8}},
    },
    "sft": LESSONS,
}
"""Settings of runs that learn nothing, as fast as they can."""


def command(source: str, out: Path, *more: str, settings: dict[str, Any] = SMALL) -> list[str]:
    base = ["--dataset", source, "--out", str(out), "--tasks", "4", "--num-envs", "8", "--train-seeds", "1"]
    return [*base, "--train-args", json.dumps(settings), "--model-args", '{"device": "cpu"}', *more]


@pytest.mark.slow
def test_every_row_is_trained_and_played(tmp_path: Path) -> None:
    out = tmp_path / "out"
    alike = {
        "grpo, std",
        "ppr, margin curriculum",
        "ppr, less likely only",
        "ppr, likelihood",
        "dpo, five negatives (S-DPO)",
    }  # to others, but for a word
    trained_rows = {name: each for name, each in TRAINED.items() if name not in alike}
    rows = [*trained_rows, "frozen", "no-tools", "popularity", "scripted"]
    parts = ["scripted without score_candidates", "grpo+ppr: score_candidates alone"]
    told = command("synthetic", out, "--train", "--jobs", "0", "--train-steps", "1")
    assert run_all.main([*told, "--only", "pool-20", *rows, *parts]) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    (track,) = results["results"]
    assert not track["missing"]
    main = {row["name"] for row in track["rows"]}
    assert main == {name for name in rows if not trained_rows.get(name, ("", ""))[1]}
    shown = {part["name"] for ablation in track["ablations"] for part in ablation["parts"]}
    assert shown == {*rows, *parts} - main
    (trained,) = results["training"]
    assert {curve["stage"] for curve in trained["curves"]} == {stage for stage, *_ in trained_rows.values()}
    costs = {cost["name"]: cost for cost in track["costs"]}
    assert costs["grpo+ppr"]["read"]["mean"] > costs["grpo+ppr"]["written"]["mean"] > 0
    assert costs["no-tools"]["calls"]["mean"] == 0
    assert "task" in (out / "transcripts.md").read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime for path in (out / "training").rglob("*") if path.is_file()}
    assert run_all.main([*told, "--only", "pool-20", *rows, *parts]) == 0
    assert {path: path.stat().st_mtime for path in (out / "training").rglob("*") if path.is_file()} == before
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))["results"] == results["results"]


def start(told: list[str], folder: Path) -> subprocess.Popen[bytes]:
    script = [sys.executable, str(ROOT / "benchmarks" / "run_all.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / "told.txt").open("ab") as log:
        return subprocess.Popen(
            [*script, *told], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_experiment_goes_on_to_the_same_results(source: str, tmp_path: Path) -> None:
    settings = {**SMALL, "*": {**SMALL["*"], "checkpoint_every": 1, "steps": 3}}
    rows = ["--only", "pool-20", "grpo", "popularity"]

    def told(out: str, jobs: int) -> list[str]:
        return command(source, tmp_path / out, "--jobs", str(jobs), *rows, settings=settings)

    first = start(told("killed", 1), tmp_path)
    deadline = time.monotonic() + 400  # seconds on an idle machine
    while not list(tmp_path.glob("killed/training/*/grpo/seed0/checkpoints/step-*")) and time.monotonic() < deadline:
        assert first.poll() is None, (tmp_path / "told.txt").read_text()
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(timeout=60)
    (run,) = tmp_path.glob("killed/training/*/grpo/seed0")
    assert (run / "claim.json").is_file()
    assert not (run / "done.json").is_file()
    for out in ("killed", "whole"):
        assert start(told(out, 0), tmp_path).wait(timeout=400) == 0, (tmp_path / "told.txt").read_text()
    assert not (run / "claim.json").exists()
    weights = [
        next(tmp_path.glob(f"{out}/training/*/grpo/seed0/model/model.safetensors")).read_bytes()
        for out in ("killed", "whole")
    ]
    assert weights[0] == weights[1]
    killed, whole = numbers(tmp_path / "killed"), numbers(tmp_path / "whole")
    assert killed["results"] == whole["results"]
