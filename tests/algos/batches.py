"""Random batches for the tests of the algorithms: several groups, several turns, observations between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from agents.llm.chat import Prompt
from agents.llm.transcript import Transcript, TranscriptWriter
from algos.batch import Batch

PAID = (-1.0, -0.5, 0.289, 0.301, 0.431, 0.5, 0.631, 1.0, 1.1)
"""Rewards that the paper's scheme can give."""


def random_transcript(rng: np.random.Generator, turns: int = 3, vocab: int = 400, longest: int = 5) -> Transcript:
    """A prompt, then turns of 1 to `longest` sampled tokens, each but the last followed by an observation."""
    head = rng.integers(0, vocab, rng.integers(2, 7))
    writer = TranscriptWriter(Prompt(tuple(head.tolist()), 0))
    for turn in range(turns):
        length = int(rng.integers(1, longest + 1))
        writer.sampled(rng.integers(0, vocab, length).tolist(), (-rng.random(length) * 3).tolist(), "stop")
        if turn < turns - 1:
            writer.observed(rng.integers(0, vocab, rng.integers(1, 6)).tolist())
    return writer.freeze()


def random_batch(seed: int, sizes: Sequence[int] = (4, 4), rewards: Sequence[float] | None = None) -> Batch:
    """Groups of the given sizes, with reference and values."""
    rng = np.random.default_rng(seed)
    transcripts = [random_transcript(rng, turns=int(rng.integers(1, 4))) for _ in range(sum(sizes))]
    paid = rng.choice(PAID, sum(sizes)).tolist() if rewards is None else rewards
    batch = Batch.of(transcripts, paid, np.repeat(np.arange(len(sizes)), sizes).tolist())
    noise = torch.from_numpy(rng.normal(size=(2, batch.num_tokens)))
    return replace(batch, reference=batch.old_logprobs + 0.5 * noise[0], values=noise[1])


def scores(batch: Batch, seed: int, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a policy that has moved since would give: log-probabilities, values and entropies, float64 [N] leaves."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((3, batch.num_tokens), generator=generator, dtype=torch.float64)
    return (
        (batch.old_logprobs.double() + spread * noise[0]).requires_grad_(),
        noise[1].requires_grad_(),
        noise[2].abs().requires_grad_(),
    )


def tokens_of(batch: Batch, rows: torch.Tensor) -> torch.Tensor:
    """int64 [n]: numbers of the tokens of trajectories `rows`, given as bool [B] or as numbers."""
    chosen = torch.zeros(batch.num_trajectories, dtype=torch.bool)
    chosen[rows] = True
    return torch.nonzero(chosen[batch.row]).flatten()


def on(batch: Batch, device: str) -> Batch:
    """The batch on another device."""
    parts: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    moved: dict[str, Any] = {name: x.to(device) for name, x in parts.items() if isinstance(x, torch.Tensor)}
    return replace(batch, **moved)


def permuted(batch: Batch, order: Sequence[int]) -> tuple[Batch, torch.Tensor]:
    """The same trajectories in another order, and for each of its tokens the number it had before."""
    tokens = torch.cat([tokens_of(batch, torch.tensor([row])) for row in order])
    place = torch.empty(len(order), dtype=torch.int64)
    place[torch.tensor(order)] = torch.arange(len(order))
    other = Batch(
        rewards=batch.rewards[list(order)],
        group=batch.group[list(order)],
        row=place[batch.row[tokens]],
        position=batch.position[tokens],
        turn=batch.turn[tokens],
        old_logprobs=batch.old_logprobs[tokens],
        reference=None if batch.reference is None else batch.reference[tokens],
        values=None if batch.values is None else batch.values[tokens],
    )
    return other, tokens


group_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)
"""Group sizes after failures: unequal, down to one."""
