"""Two processes that talk by gloo learn what one process learns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agentrec_env.episodes import read
from agents.llm.lora import LoRA, attach
from agents.llm.packing import Pack
from agents.llm.policy import Policy, Scores
from algos.batch import Batch
from algos.distributed import Ranks, joined
from algos.listwise_grpo import ListwiseGRPO
from algos.ppo import PPO
from algos.tally import Tally
from algos.update import Updater
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.algos.batches import random_transcript
from tests.algos.small import learner, settings

ALGORITHMS = {
    "grpo": ListwiseGRPO(groups=4, group_size=3, epochs=2, minibatches=2),
    "ppo": PPO(groups=4, group_size=3, epochs=2, minibatches=2),
    "adapter": ListwiseGRPO(groups=4, group_size=3, epochs=2, drop="none", kl="loss", kl_coef=0.1),
}
REWARDS = [1.0, 0.5, -1.0, 0.3, 0.3, 0.3, 0.1, 0.631, -0.5, -1.0, -1.0, -1.0]
"""Of four groups of three. With two ranks, the second has those that teach nothing."""


def ranks(module: str, *arguments: str, size: int = 2) -> None:
    """Run a module as torchrun does."""
    started = start(module, *arguments, size=size)
    try:
        told = [process.communicate(timeout=200)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(told)


def start(module: str, *arguments: str, size: int = 2) -> list[subprocess.Popen[bytes]]:
    """Start a module as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", module, *arguments]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return started


def made(algorithm: str, processes: Ranks) -> tuple[Updater, Batch]:
    """A small policy's updater, and made-up transcripts."""
    chosen = ALGORITHMS[algorithm]
    model = attach(tiny_model(), LoRA(2, 4.0), "tiny") if algorithm == "adapter" else tiny_model()
    policy = Policy(model, tiny_tokenizer(), value_head=chosen.uses_values)
    generator = np.random.default_rng(0)
    transcripts = [random_transcript(generator) for _ in REWARDS]
    groups = np.repeat(np.arange(4), 3)
    mine = np.flatnonzero(groups % processes.size == processes.rank).tolist()
    batch = Batch.of([transcripts[i] for i in mine], [REWARDS[i] for i in mine], groups[mine].tolist())
    return Updater(policy, chosen, settings(chosen, Path("unused")), processes), batch


def update(algorithm: str, folder: Path, processes: Ranks) -> None:
    """Two updates; leaves weights and figures in `folder`."""
    updater, batch = made(algorithm, processes)
    start = {name: weight.detach().clone() for name, weight in updater.weights.items()}
    tally = Tally()
    for step in range(2):
        tally.join(updater.update(batch, 4, step))
    figures = tally.over(processes).means()
    if processes.first:
        (folder / f"{algorithm}-{processes.size}.json").write_text(json.dumps(figures))
        save_file(
            {name: weight.detach() - start[name] for name, weight in updater.weights.items()},
            folder / f"{algorithm}-{processes.size}.safetensors",
        )


def sicken(folder: Path, processes: Ranks) -> None:
    """An update in which the losses of the second rank are not finite, and one in which they are; leaves what came."""
    updater, batch = made("adapter", processes)
    start = torch.cat([weight.detach().flatten().clone() for weight in updater.weights.values()])
    score = updater._score

    def broken(pack: Pack) -> Scores:
        scores = score(pack)
        sick = processes.rank == 1 and torch.is_grad_enabled()
        return Scores(scores.logprobs * (torch.nan if sick else 1.0), scores.entropy, scores.values)

    told: dict[str, Any] = {}
    for name, scorer in {"sick": broken, "sound": score}.items():
        updater._score = scorer  # type: ignore[method-assign]
        updater.update(batch, 4, 0)
        weights = torch.cat([weight.detach().flatten() for weight in updater.weights.values()])
        told |= {name: float((weights - start).norm()), f"{name} skipped": updater.skipped, f"{name} bad": updater.bad}
    (folder / f"sick-{processes.rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left, started once, and one."""
    folder = tmp_path_factory.mktemp("updates")
    ranks("tests.algos.test_distributed", str(folder))
    for algorithm in ALGORITHMS:
        update(algorithm, folder, Ranks())
    return folder


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_two_processes_make_the_update_of_one(updates: Path, algorithm: str) -> None:
    one, two = (load_file(updates / f"{algorithm}-{size}.safetensors") for size in (1, 2))
    assert one.keys() == two.keys()
    moved = torch.cat([one[name].flatten() for name in one])
    apart = torch.cat([(two[name] - one[name]).flatten() for name in one])
    assert float(moved.abs().max()) > 1e-3
    assert float(apart.norm() / moved.norm()) < 1e-3
    figures = [json.loads((updates / f"{algorithm}-{size}.json").read_text()) for size in (1, 2)]
    assert figures[0].keys() == figures[1].keys()
    for name in figures[0]:
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-3, abs=1e-5), name


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(updates: Path) -> None:
    one, two = (json.loads((updates / f"sick-{rank}.json").read_text()) for rank in (0, 1))
    assert one == two
    assert one["sick"] == 0 < one["sound"]
    assert one["sick skipped"] == one["sick bad"] == one["sound skipped"] == 2
    assert one["sound bad"] == 0


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"steps": 2, "evaluate_tasks": 5}
    ranks("tests.algos.small", json.dumps(chosen | {"out": str(tmp_path / "two")}))
    learner(settings(ListwiseGRPO(groups=4, group_size=4), tmp_path / "one", **chosen)).train()
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 4
    for here, there in zip(one, two, strict=True):
        assert here.keys() == there.keys()
        np.testing.assert_allclose(list(here.values()), list(there.values()), rtol=1e-3, atol=1e-4)
    for path in sorted((tmp_path / "one" / "episodes").iterdir()):
        alone, both = (read(tmp_path / name / "episodes" / path.name).episodes for name in ("one", "two"))
        assert [each.task_index for each in alone] == [each.task_index for each in both]
        assert [each.prompt for each in alone] == [each.prompt for each in both]


def test_one_process_talks_to_nobody() -> None:
    with joined("cpu") as alone:
        assert alone.first
        assert alone.any(True)
        assert not alone.any(False)
        assert alone.gather("x") == ["x"]
        x = torch.ones(2)
        assert alone.total(x) is x


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as these:
        for chosen_algorithm in ALGORITHMS:
            update(chosen_algorithm, Path(sys.argv[1]), these)
        sicken(Path(sys.argv[1]), these)
