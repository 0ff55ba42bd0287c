"""Updates: the same for any micro-batch, robust to memory that runs out and to numbers that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.llm.chat import Prompt
from agents.llm.packing import Pack
from agents.llm.policy import Policy, Scores
from agents.llm.transcript import Transcript, TranscriptWriter
from algos.algorithm import Algorithm
from algos.batch import Batch
from algos.config import Optimization
from algos.distributed import Ranks
from algos.listwise_grpo import ListwiseGRPO
from algos.ppo import PPO
from algos.tally import Tally
from algos.update import MAX_BAD_UPDATES, Updater
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.algos.batches import random_transcript
from tests.algos.small import settings

GRPO = ListwiseGRPO(groups=3, group_size=3, kl="reward", epochs=2, minibatches=3)
REWARDS = (1.0, 0.5, -1.0, 0.3, 0.3, 0.1, 0.1, 0.631, -0.5)


def small_batch(rewards: tuple[float, ...] = REWARDS) -> Batch:
    generator = np.random.default_rng(0)
    return Batch.of([random_transcript(generator) for _ in rewards], rewards, np.repeat([0, 1, 2], 3).tolist())


def prompt_alone() -> Transcript:
    """Of an episode whose prompt was too long."""
    return TranscriptWriter(Prompt((1, 2, 3), 0)).freeze()


def updater(algorithm: Algorithm, **changes: Any) -> Updater:
    policy = Policy(tiny_model(), tiny_tokenizer(), value_head=algorithm.uses_values)
    return Updater(policy, algorithm, settings(algorithm, Path("unused"), **changes), Ranks())


def change(of: Updater, batch: Batch | None = None) -> tuple[torch.Tensor, Tally]:
    start = torch.cat([weight.detach().flatten().clone() for weight in of.weights.values()])
    tally = of.update(batch or small_batch(), 3, 0)
    return torch.cat([weight.detach().flatten() for weight in of.weights.values()]) - start, tally


@pytest.mark.parametrize("algorithm", [GRPO, PPO(groups=3, group_size=3, epochs=2)], ids=["grpo", "ppo"])
def test_micro_batches_do_not_matter(algorithm: Algorithm) -> None:
    whole, told = change(updater(algorithm))
    cut, also = change(updater(algorithm, micro_tokens=20))
    assert float(whole.abs().max()) > 1e-3
    assert float((whole - cut).norm() / whole.norm()) < 1e-3
    assert also.means() == pytest.approx(told.means(), rel=1e-3, abs=1e-5)


def test_memory_that_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = change(updater(GRPO))
    forward = Policy.forward

    def small(self: Policy, pack: Pack, *arguments: Any) -> Scores:
        if pack.tokens > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pack, *arguments)

    monkeypatch.setattr(Policy, "forward", small)
    tight = updater(GRPO)
    cut, _ = change(tight)
    assert 1 <= tight.room.tokens <= 40
    assert float((whole - cut).norm() / whole.norm()) < 1e-3


def test_memory_that_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Scores:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Policy, "forward", full)
    with pytest.raises(torch.OutOfMemoryError, match="gradient_checkpointing"):
        change(updater(GRPO))
    transcripts = [*small_batch().transcripts[1:], prompt_alone()]
    batch = Batch.of(transcripts, REWARDS, np.repeat([0, 1, 2], 3).tolist())
    with pytest.raises(torch.OutOfMemoryError, match="gradient_checkpointing"):
        change(updater(PPO(groups=3, group_size=3)), batch)


@pytest.mark.parametrize(("dtype", "least", "most"), [("mixed", 0.99, 1.0), ("bfloat16", 0.0, 0.1)])
def test_small_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: Any, least: float, most: float) -> None:
    Policy(tiny_model(), tiny_tokenizer()).save_pretrained(tmp_path)
    policy = Policy.from_pretrained(tmp_path, dtype=dtype, device="cpu")
    slow = Optimization(lr=1e-6, warmup=0, final_lr=1.0, weight_decay=0.0)
    algorithm = ListwiseGRPO(groups=3, group_size=3)
    this = Updater(policy, algorithm, settings(algorithm, tmp_path, optimization=slow), Ranks())
    matrices = {name: weight for name, weight in this.weights.items() if ".layers." in name and weight.dim() == 2}
    start = {name: weight.detach().clone() for name, weight in matrices.items()}
    this.update(small_batch(), 3, 0)
    moved = torch.cat([(weight.detach() != start[name]).flatten() for name, weight in matrices.items()])
    assert least <= float(moved.float().mean()) <= most
    assert ("Take dtype 'mixed'" in caplog.text) == (dtype == "bfloat16")


def test_numbers_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    sick = updater(ListwiseGRPO(groups=3, group_size=3))
    forward = Policy.forward

    def broken(self: Policy, *arguments: Any) -> Scores:
        scores = forward(self, *arguments)
        return Scores(scores.logprobs * torch.nan, scores.entropy, scores.values)

    with monkeypatch.context() as context:
        context.setattr(Policy, "forward", broken)
        moved, tally = change(sick)
        assert not moved.any()
        assert tally.means()["skipped"] == 1
        for _ in range(MAX_BAD_UPDATES - 2):
            change(sick)
        healthy_at = sick.bad
        with pytest.raises(RuntimeError, match=f"{MAX_BAD_UPDATES} updates in a row were not finite"):
            change(sick)
    moved, _ = change(sick)
    assert healthy_at == MAX_BAD_UPDATES - 1
    assert moved.any()
    assert sick.bad == 0


def test_what_teaches_nothing_changes_nothing() -> None:
    moved, tally = change(updater(ListwiseGRPO(groups=3, group_size=3)), small_batch((0.3,) * 3 + (-1.0,) * 6))
    assert not moved.any()
    assert tally.means()["flat_groups"] == 1


def test_an_empty_batch_changes_nothing() -> None:
    moved, _ = change(updater(ListwiseGRPO(groups=3, group_size=3)), Batch.of([], [], []))
    assert not moved.any()


def test_the_value_head_has_its_own_rate() -> None:
    still = updater(PPO(groups=3, group_size=3), value_lr=1e-12)
    start = still.weights["value_head.weight"].detach().clone()
    change(still)
    assert float((still.weights["value_head.weight"].detach() - start).abs().max()) < 1e-9
