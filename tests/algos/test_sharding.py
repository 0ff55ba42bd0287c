"""Two processes with a piece of each weight learn what one with all of them learns, and read each other's checkpoints.

Starting processes takes longer than all they do here, so one start serves all tests: see `main`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from agents.llm.policy import Policy
from algos.batch import Batch
from algos.checkpoint import (
    CheckpointError,
    Checkpoints,
    State,
    optimizer_tensors,
    restore_optimizers,
    restore_weights,
)
from algos.config import Optimization
from algos.distributed import Ranks, Replicas, joined
from algos.listwise_grpo import ListwiseGRPO
from algos.ppo import PPO
from algos.sharding import Shards
from algos.tally import Tally
from algos.update import Updater
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.algos.batches import random_transcript
from tests.algos.small import learner, settings
from tests.algos.test_distributed import REWARDS, ranks, start

GRPO = ListwiseGRPO(groups=4, group_size=3, drop="flat", kl="loss", kl_coef=0.1, epochs=2)
"""With two ranks, the second has no pass of its own: its groups are flat."""
CASES: Mapping[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "grpo": (GRPO, {}, {"micro_tokens": 40}),
    "clipped": (GRPO, {"gradient_checkpointing": True}, {"optimization": Optimization(lr=2e-3, warmup=0, clip=0.01)}),
    "ppo": (PPO(groups=4, group_size=3, epochs=2, minibatches=2), {"value_head": True}, {"micro_tokens": 60}),
}
"""Algorithm, options of the policy, and changes of the settings."""


class Trained:
    """A small policy and two steps of made-up batches for it."""

    def __init__(self, case: str, processes: Ranks) -> None:
        algorithm, options, changes = CASES[case]
        self.policy = Policy(tiny_model(), tiny_tokenizer(), **options)
        self.start = {name: weight.detach().clone() for name, weight in self.policy.trainable().items()}
        self.updater = Updater(self.policy, algorithm, settings(algorithm, Path(), shard=True, **changes), processes)
        self.ranks = processes
        self.tally = Tally()

    def learn(self, step: int) -> None:
        generator = np.random.default_rng(step)
        transcripts = [random_transcript(generator) for _ in REWARDS]
        groups = np.repeat(np.arange(4), 3)
        mine = np.flatnonzero(groups % self.ranks.size == self.ranks.rank).tolist()
        batch = Batch.of([transcripts[i] for i in mine], [REWARDS[i] for i in mine], groups[mine].tolist())
        self.tally.join(self.updater.update(batch, 4, step))

    def moved(self) -> dict[str, Tensor]:
        """How far each weight has come, whole; each rank asks."""
        return {name: whole(weight.detach()) - self.start[name] for name, weight in self.updater.weights.items()}

    def state(self) -> State:
        weights = self.updater.weights
        tensors = {f"model/{name}": weight for name, weight in weights.items()}
        return State(1, tensors | optimizer_tensors(self.updater.optimizers, weights), {"case": "grpo"})

    def restore(self, folder: Path) -> None:
        weights = self.updater.weights
        state = Checkpoints(folder).load(like=weights)
        restore_weights(weights, state.tensors)
        restore_optimizers(self.updater.optimizers, weights, state.tensors)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def work(folder: Path, processes: Ranks) -> None:
    """Two steps of each case with a checkpoint between, the second step from the other's checkpoint, and a run."""
    size = processes.size
    for case in CASES:
        trained = Trained(case, processes)
        for step in range(2):
            trained.learn(step)
            if case == "grpo" and step == 0:
                state = trained.state()
                Checkpoints(folder / f"checkpoints-{size}", ranks=processes).save(state)
                exact = {name: whole(tensor.detach()) for name, tensor in state.tensors.items()}
                keep(folder / f"saved-{size}", exact, {}, processes)
        keep(folder / f"{case}-{size}", trained.moved(), trained.tally.over(processes).means(), processes)
    other = folder / f"checkpoints-{3 - size}"
    if other.exists():
        resumed = Trained("grpo", processes)
        resumed.restore(other)
        resumed.learn(1)
        keep(folder / f"resumed-{size}", resumed.moved(), {}, processes)
    run = settings(ListwiseGRPO(groups=4, group_size=4), folder / f"run-{size}", steps=2, evaluate_tasks=5, shard=True)
    learner(run, processes).train()


def keep(path: Path, moved: dict[str, Tensor], figures: Mapping[str, float], processes: Ranks) -> None:
    if processes.first:
        save_file(moved, path.with_suffix(".safetensors"))
        path.with_suffix(".json").write_text(json.dumps(figures))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process left, and then two: names end in their number."""
    folder = tmp_path_factory.mktemp("sharding")
    work(folder, Ranks())
    ranks("tests.algos.test_sharding", str(folder))
    resumed = Trained("grpo", Ranks())
    resumed.restore(folder / "checkpoints-2")
    resumed.learn(1)
    keep(folder / "resumed-1", resumed.moved(), {}, Ranks())
    return folder


def same_way(one: Path, other: Path) -> None:
    """Weights have moved alike, and as a whole by less than a thousandth of the way differently."""
    here, there = (load_file(path.with_suffix(".safetensors")) for path in (one, other))
    assert here.keys() == there.keys()
    way = torch.cat([here[name].flatten() for name in here])
    apart = torch.cat([(there[name] - here[name]).flatten() for name in here])
    assert float(way.abs().max()) > 1e-3
    assert float(apart.norm() / way.norm()) < 1e-3


@pytest.mark.parametrize("case", list(CASES))
def test_pieces_make_the_update_of_the_whole(results: Path, case: str) -> None:
    same_way(results / f"{case}-1", results / f"{case}-2")
    one, two = (json.loads((results / f"{case}-{size}.json").read_text()) for size in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    assert one["gradient_norm"] > 0.02  # what `clipped` cuts it to is less


@pytest.mark.parametrize("size", [1, 2])
def test_a_checkpoint_of_other_processes_is_gone_on_from(results: Path, size: int) -> None:
    same_way(results / f"grpo-{3 - size}", results / f"resumed-{size}")


def test_each_process_wrote_its_own_piece(results: Path) -> None:
    folder = results / "checkpoints-2" / "step-00000001"
    names = {path.name for path in folder.iterdir()}
    pieces = sorted(name for name in names if name.endswith(".safetensors"))
    assert len(pieces) == 2
    assert names == {*pieces, "state.json", "COMPLETE"}
    sizes = [(folder / name).stat().st_size for name in pieces]
    plain = (results / "checkpoints-1" / "step-00000001" / "state.safetensors").stat().st_size
    assert max(sizes) < 0.6 * plain


def test_pieces_come_back_to_the_bit(results: Path) -> None:
    pieces, plain = (Checkpoints(results / f"checkpoints-{size}").load() for size in (2, 1))
    assert pieces.values == plain.values
    assert pieces.tensors.keys() == plain.tensors.keys()
    exact = load_file(results / "saved-2.safetensors")
    for name, tensor in exact.items():
        assert torch.equal(pieces.tensors[name], tensor), name


def test_the_run_of_two_is_that_of_one(results: Path) -> None:
    one, two = (
        [json.loads(line) for line in (results / f"run-{size}" / "metrics.jsonl").read_text().splitlines()]
        for size in (1, 2)
    )
    assert len(one) == len(two) == 4
    for here, there in zip(one, two, strict=True):
        assert here.keys() == there.keys()
        np.testing.assert_allclose(list(here.values()), list(there.values()), rtol=1e-3, atol=1e-4)
    for name in ("best", "model"):
        here, there = (Policy.from_pretrained(results / f"run-{size}" / name).state_dict() for size in (1, 2))
        assert here.keys() == there.keys()
        assert all(torch.allclose(here[key], there[key], atol=1e-4) for key in here)
    files = [sorted(p.name for p in (results / f"run-{size}" / "model").iterdir()) for size in (1, 2)]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_killed_in_a_checkpoint_and_resumed_by_others(tmp_path: Path, before: int, after: int) -> None:
    algorithm, steps = ListwiseGRPO(groups=4, group_size=4), 4
    learner(settings(algorithm, tmp_path / "one", steps=steps, evaluate_every=0)).train()
    cut = tmp_path / "cut"
    told: dict[str, Any] = {"out": str(cut), "steps": steps, "evaluate_every": 0, "shard": True}
    started = start("tests.algos.small", json.dumps(told), size=before)
    try:
        first = cut / "checkpoints" / "step-00000001" / "COMPLETE"
        while not first.exists() or not list(first.parent.parent.glob(".step-*")):
            assert all(process.poll() is None for process in started), started[0].communicate()[0].decode()
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert not (cut / "model").exists()
    ranks("tests.algos.small", json.dumps(told | {"resume": True}), size=after)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "cut")
    )
    assert len(one) == len(two) == steps
    for here, there in zip(one, two, strict=True):
        assert here.keys() == there.keys()
        np.testing.assert_allclose(list(here.values()), list(there.values()), rtol=2e-3, atol=2e-4)
    assert not list((cut / "checkpoints").glob(".step-*"))


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("size", [1, 2])
def test_a_pickle_is_neither_read_nor_in_the_way(
    results: Path, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(results / f"checkpoints-{size}", tmp_path / "run")
    folder = tmp_path / "run" / "step-00000001"
    for name in (".metadata", "optimizer.pt", "pytorch_model.bin", "__0_0.distcp"):
        (folder / name).write_bytes(pickle.dumps(_Bomb()))
    assert Checkpoints(tmp_path / "run").load().step == 1
    piece = sorted(folder.glob("*.safetensors"))[-1]
    piece.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoints(tmp_path / "run").load()
    digests = json.loads((folder / "COMPLETE").read_text())
    digests[piece.name] = hashlib.sha256(piece.read_bytes()).hexdigest()
    (folder / "COMPLETE").write_text(json.dumps(digests))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpoints(tmp_path / "run").load()
    assert not (tmp_path / "exploded").exists()


def test_a_piece_that_is_missing_or_was_added_is_damage(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "step-00000001"
    shutil.copytree(results / "checkpoints-2", tmp_path / "run")
    piece = next(folder.glob("*.safetensors"))
    shutil.copy(piece, folder / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"more\.safetensors"):
        Checkpoints(tmp_path / "run").load()
    (folder / "more.safetensors").unlink()
    piece.unlink()
    with pytest.raises(CheckpointError, match="shard-"):
        Checkpoints(tmp_path / "run").load()


def test_what_cannot_be_cut_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapter"):
        settings(GRPO, tmp_path, shard=True, lora_rank=2)
    with pytest.raises(ValueError, match="adamw"):
        settings(GRPO, tmp_path, shard=True, optimization=Optimization(method="muon"))
    policy = Policy(tiny_model(), tiny_tokenizer())
    policy.core._no_split_modules = []
    with pytest.raises(ValueError, match="what its blocks are"):
        Shards(policy, Ranks(0, 2))


def test_out_of_memory_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replicas, "recovers", False)
    trained = Trained("grpo", Ranks())

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(trained.policy, "decode", full)
    with pytest.raises(torch.OutOfMemoryError, match="--resume and a smaller --micro-tokens"):
        trained.learn(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as these:
        work(Path(sys.argv[1]), these)
