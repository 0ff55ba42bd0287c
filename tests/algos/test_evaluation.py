"""Evaluations of a run leave their episodes behind, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrec_env.episodes import read
from algos.evaluation import judged_tasks
from algos.listwise_grpo import ListwiseGRPO
from tests.algos.small import learner, settings


def test_each_evaluation_keeps_its_episodes(tmp_path: Path) -> None:
    run = learner(settings(ListwiseGRPO(groups=2, group_size=2), tmp_path / "run", steps=1, evaluate_every=1))
    run.train()
    paths = sorted((tmp_path / "run" / "episodes").iterdir())
    assert [path.name for path in paths] == ["step-00000000.jsonl.gz", "step-00000001.jsonl.gz"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    judged = [line for line in lines if "valid/reward" in line]
    for path, figures in zip(paths, judged, strict=True):
        found = read(path)
        assert found.header.about["step"] == figures["step"]
        assert found.header.about["run"] == "run"
        assert len(found.episodes) == 8
        rewards = [episode.reward for episode in found.episodes]
        assert sum(rewards) / len(rewards) == pytest.approx(figures["valid/reward"])
        assert sum(episode.info["tokens"] for episode in found.episodes) / 8 == pytest.approx(figures["valid/tokens"])
        assert {episode.task_split for episode in found.episodes} == {"valid"}
        assert all(str(episode.stop) == "overflow" or episode.turns for episode in found.episodes)


def test_seeds_are_judged_on_the_same_tasks(tmp_path: Path) -> None:
    def played(seed: int) -> list[int]:
        run = learner(settings(ListwiseGRPO(groups=2, group_size=2), tmp_path / f"{seed}", seed=seed, steps=1))
        assert run.evaluation is not None
        return [episode.task_index for episode in run.evaluation.play()]

    assert played(0) == played(1)
    assert judged_tasks(50, 10) == judged_tasks(50, 20)[:10]
    assert sorted(judged_tasks(50, 50)) == list(range(50))
