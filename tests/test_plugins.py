"""A package from outside plugs in an agent, a tool, a dataset, a reward and an algorithm, by the command line alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "my-shop"
version = "1.0"

[tool.setuptools]
packages = ["my_shop"]
"""
PARTS: Mapping[str, str] = {
    "agent": '''from agentrec_env.actions import render
from agentrec_env.types import Ranking


def latest_first(observation):
    """Rank newer items, whose numbers are higher here, before older ones."""
    order = (-observation["candidates"]).argsort()[:10] + 1
    return render(Ranking(tuple(order.tolist())))
''',
    "tool": '''from agentrec_env.data.view import View
from agentrec_env.tools import tool


@tool
def count_known(view: View) -> str:
    """Say how many items the user has taken."""
    return f"{len(view.known)} items"
''',
    "dataset": '''import numpy as np
from agentrec_env.data.dataset import Dataset, Items


def sales():
    """300 customers who bought 8 of 80 things each."""
    draw = np.random.default_rng(0)
    customers, things = [f"customer {n}" for n in range(300)], [f"thing {n}" for n in range(80)]
    bought = np.concatenate([draw.permutation(80)[:8] for _ in customers])
    day = draw.integers(18_000, 18_500, len(bought))
    return Dataset.build(
        "sales", Items.bare(things, things), customers, np.repeat(range(300), 8), bought, time=day * 86_400_000
    )
''',
    "reward": '''def top_three(outcome):
    """1 where the item is among the first three."""
    return {"top": float(outcome.valid and 1 <= outcome.rank <= 3)}
''',
    "algorithm": '''from dataclasses import dataclass

from algos.listwise_grpo import ListwiseGRPO


@dataclass(frozen=True)
class Sharper(ListwiseGRPO):
    """List-wise GRPO that pays for a power of the reward."""

    power: float = 2.0

    def worth(self, batch):
        return batch.rewards.sign() * batch.rewards.abs() ** self.power
''',
}
"""Module of the package -> its source; each under 15 lines."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, installed as any other where setuptools is at hand."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "my_shop").mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "my_shop" / "__init__.py").write_text("")
    for name, text in PARTS.items():
        (source / "my_shop" / f"{name}.py").write_text(text)
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        return source
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=120)
    return target


def agentrec(site: Path, cwd: Path, *arguments: str, typed: str = "") -> str:
    """What the command says; it must end well."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        input=typed,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return " ".join((run.stdout + run.stderr).split())


def test_each_part_is_under_15_lines() -> None:
    assert all(text.count("\n") < 15 for text in PARTS.values())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("agent", "latest_first"), ("tool", "count_known"), ("dataset", "sales")])
def test_each_part_is_checked(site: Path, tmp_path: Path, kind: str, name: str) -> None:
    told = agentrec(site, tmp_path, "check", kind, f"my_shop.{kind}:{name}")
    assert "points, all hold" in told
    assert "FAIL" not in told


@pytest.mark.slow
def test_an_agent_is_compared_on_a_dataset(site: Path, tmp_path: Path) -> None:
    chosen = ["--quick", "--tasks", "24", "--jobs", "1", "--only", "pool-20", "popularity", "random", "--out", "out"]
    agentrec(
        site, tmp_path, "run", *chosen, "--agent", "my_shop.agent:latest_first", "--dataset", "my_shop.dataset:sales"
    )
    (track,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert {row["name"] for row in track["rows"]} == {"popularity", "random", "my_shop.agent:latest_first"}
    assert not track["missing"]
    assert track["protocol"].startswith("sales")


@pytest.mark.slow
def test_a_person_plays_with_a_tool_and_a_reward(site: Path, tmp_path: Path) -> None:
    told = agentrec(
        *(site, tmp_path, "play", "--dataset", "my_shop.dataset:sales", "--tools", "my_shop.tool:count_known"),
        *("--env", '{"reward": "my_shop.reward:top_three"}', "--task", "0", "--against", "my_shop.agent:latest_first"),
        typed="count_known\n1 2 3\n",
    )
    assert "7 items" in told or " items │" in told
    assert "my_shop.agent:latest_first" in told
    assert "(top +1.000)" in told or "reward 0.000" in told


@pytest.mark.slow
def test_an_algorithm_trains_with_all_of_them(site: Path, tmp_path: Path) -> None:
    agentrec(
        *(site, tmp_path, "train", "my_shop.algorithm:Sharper", "--power", "3", "--steps", "1", "--out", "run"),
        *("--groups", "2", "--group-size", "2", "--evaluate-every", "0", "--device", "cpu", "--max-turn-tokens", "48"),
        *("--env.dataset", "my_shop.dataset:sales", "--env.tools", "my_shop.tool:count_known"),
        *("--env.reward", "my_shop.reward:top_three", "--env.max-calls", "2"),
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["algorithm"]["power"] == 3
    assert config["env"]["tools"] == ["my_shop.tool:count_known"]
    (step,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert step["sampled_tokens"] > 0
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "agentrec train my_shop.algorithm:Sharper --groups 2 --group-size 2 --power 3.0 " in card
