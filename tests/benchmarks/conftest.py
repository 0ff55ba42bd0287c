"""A small shop, and a stand-in for the loop of play, so that an interruption can be placed exactly."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrec_env.data.world import World
from agentrec_env.types import Episode, StopReason, ToolCall, Turn
from benchmarks import run_all, runner
from benchmarks.runner import Unit


@pytest.fixture
def source(tmp_path: Path) -> str:
    """300 users with 6 dated interactions each, as a CSV of one's own."""
    rng = np.random.default_rng(0)
    lines = ["user,item,rating,timestamp"]
    for user in range(300):
        items = rng.permutation(80)[:6]
        days = np.sort(rng.integers(0, 300, size=6))
        lines += [f"u{user},i{i},5,{1_600_000_000 + 86_400 * d}" for i, d in zip(items, days, strict=True)]
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


class StandIn:
    """Plays episodes from the real world with rankings made from the row's name."""

    def __init__(self) -> None:
        self.blocks = 0
        self.stop_after: int | None = None
        self.broken_rows: set[str] = set()

    def open(self, unit: Unit) -> tuple[Any, Callable[..., list[Episode]]]:
        if unit.row.name in self.broken_rows:
            raise ModuleNotFoundError("No module named 'torch'")
        world = runner.open_world(unit.source, unit.split, unit.pool_seed, unit.track)
        if unit.order:
            world = runner.Reordered(world, unit.order)

        def play(envs: Any, agent: Any, tasks: Sequence[int], seed: int) -> list[Episode]:
            if self.stop_after is not None and self.blocks >= self.stop_after:
                raise KeyboardInterrupt
            self.blocks += 1
            return [self.episode(unit, world, index, seed) for index in tasks]

        return None, play

    def episode(self, unit: Unit, world: World, index: int, seed: int) -> Episode:
        task = world.task("test", index)
        rng = np.random.default_rng([zlib.crc32(unit.row.name.encode()), seed, index])
        scores = rng.random(len(task.candidates)) + (task.candidates == task.target) * (unit.row.name == "oracle")
        failed = unit.row.name == "mine:Agent" and index % 5 == 0
        ranking = () if failed else tuple(task.candidates[np.argsort(-scores)][:10].tolist())
        return Episode(
            task_split="test",
            task_index=index,
            user_id=world.dataset.user_ids[task.user],
            seed=seed,
            prompt="",
            turns=(Turn("", (ToolCall("get_user_profile", {}),), "", 0.001),),
            candidates=tuple(task.candidates.tolist()),
            ranking=ranking,
            target=task.target,
            reward=1.0,
            terms={"ndcg@10": 1.0},
            metrics={},
            stop=StopReason.AGENT_ERROR if failed else StopReason.ANSWERED,
            error="ValueError: no idea" if failed else None,
        )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(runner, "open_envs", made.open)
    monkeypatch.setattr(runner.Agents, "get", lambda self, unit, envs: None)
    monkeypatch.setattr(run_all, "_check_agents", lambda rows: None)
    monkeypatch.setattr(runner, "BLOCK", 16)
    return made
