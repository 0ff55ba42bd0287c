"""What a device could do at best: memory bandwidth and matrix products measured there, and the least work of a step.

The least work is counted from the architecture: every different token read once, every weight and every key and value
that a step of decoding needs fetched once a step. Time at the ceiling over time taken says how far a rollout or an
update is from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from agents.llm.packing import packs
from agents.llm.transcript import Transcript
from benchmarks.speed.workload import Shape, Workload


@dataclass(frozen=True)
class Ceilings:
    """Of one device and dtype."""

    bytes_per_s: float
    """Read and written by copying a large tensor."""
    flops_per_s: float
    """Of a large square matrix product."""


@dataclass(frozen=True)
class Work:
    """The least that a rollout must do."""

    prefill_tokens: int
    """Different prompt and observation tokens: a common head counts once."""
    prefill_flops: float
    decode_tokens: int
    decode_steps: int
    decode_bytes: float
    """Weights once a step, and each different key and value once a step."""
    decode_bytes_unshared: float
    """The same where each row fetches its own copy of its prompt's keys and values."""


@dataclass(frozen=True)
class UpdateWork:
    """The least that a gradient of some transcripts must do."""

    tokens: int
    """Different tokens that are read: a common head counts once."""
    tokens_unshared: int
    """Tokens that are read where each transcript is read by itself."""
    rule_flops: float
    """6 x different tokens x all weights: the rule of thumb, which counts the output layer at every token and attention
    at none."""
    flops: float
    """Three times the products of a forward pass: the layers' matrices for each different token, attention for each
    pair of a token and one that it sees, and the output layer for each sampled token. The last layer needs no more than
    keys and values of tokens that do not predict a sampled one."""


def measure(device: str, dtype: torch.dtype, seconds: float = 1.0) -> Ceilings:
    """Ceilings of a device, best of several tries within about `seconds` each."""
    cuda = device != "cpu"
    size = 2**30 if cuda else 2**27
    source = torch.empty(size // dtype.itemsize, dtype=dtype, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = _best(partial(target.copy_, source), cuda, seconds)
    width = 8192 if cuda else 1024
    left, right = (torch.full((width, width), 0.5, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(left)
    multiplied = _best(partial(torch.mm, left, right, out=product), cuda, seconds)
    return Ceilings(2 * size / copied, 2 * width**3 / multiplied)


def least(shape: Shape, workload: Workload, itemsize: int) -> Work:
    """The least work of a workload's rollout, with weights, keys and values of `itemsize` bytes."""
    plan = workload.plan
    heads = shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    matrices, output = shape.layers * shape.layer_matrices, shape.vocabulary * shape.hidden
    entry = 2 * shape.layers * keys * itemsize  # bytes of one token's keys and values
    shared = workload.prompts()[0].shared
    turn = len(workload.script)
    segments = [(shared, 0)] + [(plan.prompt - shared, shared)] * plan.groups
    sampled = fetched = unshared = 0
    for answers in workload.observations:
        length = plan.prompt
        for place in range(plan.turns + 1):
            if place:
                # The last sampled token is read with the observation that follows it.
                read = len(workload.chat.observe(answers[place - 1], workload.script))
                segments.append((read + 1, length - 1))
                length += read
            for _ in range(turn - 1):
                fetched += length - plan.prompt
                unshared += length
                length += 1
            length += 1
            sampled += turn
    steps = (plan.turns + 1) * (turn - 1)  # a turn's first token comes from what was read before it
    prompts = shared + plan.groups * (plan.prompt - shared)
    pairs = sum(tokens * past + tokens * (tokens + 1) // 2 for tokens, past in segments)
    read_tokens = sum(tokens for tokens, _ in segments)
    outputs = plan.groups + plan.rows * plan.turns
    flops = 2.0 * matrices * read_tokens + 4.0 * heads * shape.layers * pairs + 2.0 * output * outputs
    weights = steps * (matrices + output) * itemsize
    return Work(
        read_tokens,
        flops,
        sampled,
        steps,
        float(weights + (fetched + steps * prompts) * entry),
        float(weights + unshared * entry),
    )


def least_update(shape: Shape, transcripts: Sequence[Transcript]) -> UpdateWork:
    """The least work of the gradient of `transcripts`."""
    pack = packs(transcripts, sum(map(len, transcripts)))[0]
    predicting = pack.positions[torch.unique(pack.source)]
    keys, heads = 2 * shape.hidden * shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim

    def layer(positions: torch.Tensor) -> float:
        seen = int((positions + 1).sum())
        return 2.0 * keys * pack.tokens + 2.0 * (shape.layer_matrices - keys) * len(positions) + 4.0 * heads * seen

    forward = (shape.layers - 1) * layer(pack.positions) + layer(predicting)
    forward += 2.0 * shape.vocabulary * shape.hidden * len(pack.target)
    return UpdateWork(pack.tokens, sum(pack.lengths), 6.0 * shape.parameters * pack.tokens, 3 * forward)


def _best(action: Callable[[], object], cuda: bool, seconds: float) -> float:
    times: list[float] = []
    action()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 3:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def shares(work: Work, ceilings: Ceilings, prefill: float, decode: float) -> dict[str, float]:
    """How near a rollout with these seconds of prefill and decoding came to the ceilings."""
    return {
        "prefill_tokens_per_s": work.prefill_tokens / prefill,
        "prefill_flops_per_s": work.prefill_flops / prefill,
        "prefill_share_of_ceiling": work.prefill_flops / ceilings.flops_per_s / prefill,
        "decode_tokens_per_s": work.decode_tokens / decode,
        "decode_bytes_per_s": work.decode_bytes / decode,
        "decode_share_of_ceiling": work.decode_bytes / ceilings.bytes_per_s / decode,
        "decode_share_of_ceiling_unshared": work.decode_bytes_unshared / ceilings.bytes_per_s / decode,
    }
