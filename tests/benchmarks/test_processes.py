"""The real program in real processes: any number of them gives the same tables, and a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrec_env.registry import UnknownNameError
from benchmarks import run_all
from tests.benchmarks.test_run_all import TIMINGS

ROOT = Path(__file__).resolve().parents[2]

FAILING = """
import os

def sometimes(observation):
    if int(observation["candidates"][0]) % 3 == 0:
        raise ValueError("no idea")
    return "<answer>[1, 2, 3]</answer>"

class Fatal:
    def reset(self, num_envs, seed):
        pass

    def act(self, observations, rows):
        os._exit(7)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a CSV of 200 users and a module of agents."""
    rng = np.random.default_rng(1)
    lines = ["user,item,rating,timestamp"]
    for user in range(200):
        days = np.sort(rng.integers(0, 300, size=6))
        items = rng.permutation(60)[:6]
        lines += [f"u{user},i{i},5,{1_600_000_000 + 86_400 * d}" for i, d in zip(items, days, strict=True)]
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text(FAILING, encoding="utf-8")
    return tmp_path


def start(folder: Path, out: str, *more: str) -> subprocess.Popen[str]:
    script = str(ROOT / "benchmarks" / "run_all.py")
    base = [sys.executable, script, "--dataset", "shop.csv", "--out", out, "--tasks", "100"]
    rows = ["--only", "random", "popularity", "pool-20"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*base, *rows, *more],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tables(out: Path) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in TIMINGS}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads((out / "results.json").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_any_number_of_processes_and_a_kill_give_the_same_tables(folder: Path) -> None:
    one, two, killed = (start(folder, "one", "--jobs", "1"), start(folder, "two", "--jobs", "2"), None)
    for process in (one, two):
        _, told = process.communicate(timeout=200)
        assert process.returncode == 0, told
    assert tables(folder / "one") == tables(folder / "two")
    killed = start(folder, "killed", "--jobs", "1")
    deadline = time.monotonic() + 100
    while not list((folder / "killed").rglob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    again = start(folder, "killed", "--jobs", "2")
    shown, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    assert "Going on" in shown
    assert tables(folder / "killed") == tables(folder / "one")


def test_failing_agents_are_marked_and_dead_processes_replaced(folder: Path) -> None:
    process = start(folder, "out", "--jobs", "1", "--agent", "mine:sometimes", "--agent", "mine:Fatal")
    shown, told = process.communicate(timeout=200)
    assert process.returncode == 1, told
    assert "exit code 7" in shown
    (track,) = tables(folder / "out")["results"]
    rows = {row["name"]: row for row in track["rows"]}
    assert set(rows) == {"random", "popularity", "mine:sometimes"}
    assert 0 < rows["mine:sometimes"]["failed"] < 1
    assert any("mine:Fatal" in name for name in track["missing"])


def test_an_unknown_agent_is_refused_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all.main(["--agent", "popularty", "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean 'popularity'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnknownNameError):
        run_all._check_agents([run_all.Row("x", "nosuchmodule:Agent")])
