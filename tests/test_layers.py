"""Imports point one way, and importing the environment is cheap: no torch, no plotting, no data frames."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "peft", "lightgbm", "matplotlib", "polars", "pandas", "numba"}


def imported(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import agentrec_env",
        "import agentrec_env.env, agentrec_env.vector, agentrec_env.check",
        "import gymnasium; gymnasium.make('agentrec_env:AgentRec-Amazon-v0').reset(seed=0)",
    ],
)
def test_the_environment_imports_nothing_heavy(statement: str) -> None:
    assert not imported(statement) & HEAVY


def test_imports_point_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is in the dev extra: pip install -e '.[dev]'")
    run = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
