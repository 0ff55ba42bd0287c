"""Random transcripts for the tests of packing and policy: prompts in common, ragged turns, observations between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.llm.transcript import Transcript, TranscriptWriter


@dataclass(frozen=True)
class Head:
    """What a transcript begins with."""

    ids: Sequence[int]
    shared: int = 0


def transcript(
    generator: np.random.Generator, prompt: Sequence[int], turns: int = 3, vocabulary: int = 512
) -> Transcript:
    """One of `turns` turns of 1 to 40 tokens with observations of 0 to 60 behind them."""
    writer = TranscriptWriter(Head(prompt))
    for _ in range(turns):
        length = int(generator.integers(1, 41))
        writer.sampled(generator.integers(0, vocabulary, length), -generator.random(length), "stop")
        writer.observed(generator.integers(0, vocabulary, int(generator.integers(0, 61))))
    return writer.freeze()


def groups(seed: int, sizes: Sequence[int] = (4, 4, 3), system: int = 50, task: int = 70) -> list[Transcript]:
    """Groups of transcripts that have a prompt in common, and all groups the head of theirs; one is there twice."""
    generator = np.random.default_rng(seed)
    head = generator.integers(0, 512, system).tolist()
    made = []
    for size in sizes:
        prompt = head + generator.integers(0, 512, task).tolist()
        made += [transcript(generator, prompt, int(generator.integers(1, 4))) for _ in range(size)]
    return [*made, made[0]]
