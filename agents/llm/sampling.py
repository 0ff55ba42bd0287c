"""How the next token is drawn: temperature, top-p, and random numbers that depend on seed and position alone.

A counter-based generator (splitmix64 of the row's seed and the token's place in its transcript) feeds an inverse CDF,
so that a row's sample depends neither on its neighbours nor on the device, and no generator has a state to keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64: the increment of splitmix64
_FIRST = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_SECOND = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_BITS = 53


@dataclass(frozen=True)
class Sampling:
    """How an engine samples, and where it stops."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 samples among all."""
    max_turn_tokens: int = 256
    """Sampled tokens of one turn."""
    max_episode_tokens: int = 4096
    """Tokens of a whole transcript, prompt included."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (1 samples among all tokens), got {self.top_p!r}")
        for name in ("max_turn_tokens", "max_episode_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """float64 [N] in [0, 1): the random numbers of int64 seeds [N] at int64 positions [N].

    splitmix64 (Steele, Lea & Flood 2014), applied to the seed and again to its output plus the position, so that
    neighbouring seeds and positions give unrelated numbers. int64 arithmetic wraps around, the same on every device.
    """
    bits = _mix(_mix(seeds + _GOLDEN) + (positions + 1) * _GOLDEN)
    return _shift(bits, 64 - _BITS).to(torch.float64) * 2.0**-_BITS


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens and their log-probabilities.

    Args:
        logits: float32 [N, V].
        sampling: temperature and top-p.
        uniforms: float64 [N] in [0, 1).

    Returns:
        ids int64 [N], and float32 [N]: log_softmax(logits / temperature)[id] over all tokens, whatever top-p is; at
        temperature 0, where the likeliest token is taken, those at temperature 1. nan where a logit is nan or +inf.
    """
    if sampling.temperature == 0:
        best, ids = logits.max(dim=-1)
        return ids, best - torch.logsumexp(logits, dim=-1)
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    shifted = scaled - scaled.amax(dim=-1, keepdim=True)
    weights = shifted.exp()
    kept = weights if sampling.top_p == 1 else _nucleus(weights, sampling.top_p)
    cumulated = kept.cumsum(dim=-1)
    total = cumulated[:, -1:]
    # Strictly below the total, so that the first place above it exists and has a probability above 0.
    mark = torch.minimum(uniforms[:, None].to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulated, mark, right=True).clamp_(max=logits.shape[-1] - 1)  # beyond it for nan
    logprobs = shifted.gather(1, ids) - weights.sum(dim=-1, keepdim=True).log()
    return ids[:, 0], logprobs[:, 0]


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights [N, V] with 0 for all but the likeliest tokens that together reach `top_p` (at least one; ties by id)."""
    ranked, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(dim=-1) - ranked
    ranked = ranked.masked_fill(before >= top_p * weights.sum(dim=-1, keepdim=True), 0)
    return torch.zeros_like(weights).scatter_(1, order, ranked)


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shift(state, 30)) * _FIRST
    state = (state ^ _shift(state, 27)) * _SECOND
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: the sign does not spread."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
