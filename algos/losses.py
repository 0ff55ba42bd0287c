"""Losses, token by token: clipped policy gradient, divergence from a reference, value regression.

Each returns one number a token; `mean_weights` says with what weight it enters the sum, and what the sum is divided by.
n tokens of some whole trajectories, in any order, as `algos.batch.Part` has them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from algos.batch import Batch, Part, mean_metric

LOG_RATIO_LIMIT = 20.0
"""Logarithms of probability ratios are held within this, and have no gradient outside: e^20 = 4.9e8 cannot overflow."""

SEQUENCE_CLIP_LIMIT = 0.1
"""Wider clips are refused for the geometric mean of a trajectory's ratios, which never goes that far."""

Level = Literal["token", "sequence"]
Mean = Literal["token", "sequence", "constant"]


def mean_weights(batch: Batch, mean: Mean, constant: float) -> tuple[Tensor, Tensor]:
    """Weight of each token in the sum of losses, float64 [N], and share of each trajectory in the divisor, float64 [B].

    Args:
        batch: The batch.
        mean: "token": over all tokens; "sequence": over the tokens of each trajectory, then over all trajectories that
            have any; "constant": a sum, divided by `constant` a trajectory.
        constant: In tokens.
    """
    weights = torch.ones_like(batch.row, dtype=torch.float64)
    if mean == "token":
        return weights, batch.lengths.double()
    if mean == "sequence":
        return weights / batch.lengths[batch.row], (batch.lengths > 0).double()
    return weights, torch.full_like(batch.rewards, constant)


def log_ratio(logprobs: Tensor, other: Tensor) -> Tensor:
    """float [n]: log of a probability over that of another distribution, held within `LOG_RATIO_LIMIT`."""
    return (logprobs - other.to(logprobs.dtype)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def importance_ratio(logprobs: Tensor, part: Part, level: Level) -> Tensor:
    """float [n]: probability of what was sampled now, over that when it was sampled.

    Args:
        logprobs: float [n].
        part: The tokens.
        level: "token": of the token; "sequence": geometric mean over the trajectory (GSPO, arXiv:2507.18071, eq. 7).
    """
    if level == "token":
        return log_ratio(logprobs, part.old_logprobs).exp()
    difference = logprobs - part.old_logprobs.to(logprobs.dtype)
    sums = torch.zeros(part.trajectories, dtype=difference.dtype, device=difference.device)
    mean = sums.index_add(0, part.row, difference)[part.row] / part.lengths
    return mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """float [n]: -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) (PPO, arXiv:1707.06347, eq. 7).

    Args:
        ratio: float [n].
        advantages: float [n].
        low: How far below 1 the ratio still has a gradient where A < 0; None: at any distance.
        high: How far above 1 where A > 0; None: at any distance.
    """
    advantages = advantages.to(ratio.dtype)
    lower, upper = clip_bounds(low, high)
    return -torch.minimum(ratio * advantages, ratio.clamp(lower, upper) * advantages)


def clip_bounds(low: float | None, high: float | None) -> tuple[float, float]:
    """Least and greatest ratio."""
    return (0.0 if low is None else 1 - low), (torch.inf if high is None else 1 + high)


def clipped(ratio: Tensor, advantages: Tensor, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    """bool [n] each: tokens without a gradient because their ratio is too low, or too high."""
    lower, upper = clip_bounds(low, high)
    return (ratio < lower) & (advantages < 0), (ratio > upper) & (advantages > 0)


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """float [n]: log(p / q) of what was sampled from p: unbiased for KL(p || q), with a large variance."""
    return log_ratio(logprobs, reference)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """float [n]: q / p - 1 - log(q / p) of what was sampled from p: unbiased for KL(p || q), and never negative.

    Its own gradient is not that of KL(p || q): with samples from p, it is that of KL(q || p) in expectation.
    """
    difference = log_ratio(reference.to(logprobs.dtype), logprobs)
    return difference.exp() - 1 - difference


def corrected_k3(logprobs: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    """float [n]: k3 times the importance ratio p / old of the token (DeepSeek-V3.2, arXiv:2512.02556, sec. 3.1).

    With samples from `old`, both value and gradient are those of KL(p || q) in expectation, at each visited state.
    """
    return log_ratio(logprobs, old).exp() * k3(logprobs, reference)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """float [n]: half the squared error, of the value or of the value held within `clip` of `old`, whichever is worse.

    Args:
        values: float [n].
        old: float [n], before the update.
        returns: float [n].
        clip: In units of reward; None: no clipping.
    """
    returns = returns.to(values.dtype)
    error = (values - returns).square()
    if clip is not None:
        old = old.to(values.dtype)
        error = torch.maximum(error, (old + (values - old).clamp(-clip, clip) - returns).square())
    return error / 2


@torch.no_grad()
def policy_metrics(
    ratio: Tensor, logprobs: Tensor, entropy: Tensor, part: Part, low: float | None, high: float | None
) -> dict[str, Tensor]:
    """What the tokens of a part were like: entropy, how many were clipped, how far the policy is from the sampler."""
    too_low, too_high = clipped(ratio, part.advantages, low, high)
    metrics = {
        "entropy": mean_metric(entropy),
        "clipped_low": mean_metric(too_low),
        "clipped_high": mean_metric(too_high),
        "sampler_kl": mean_metric(k3(part.old_logprobs.to(logprobs.dtype), logprobs)),
    }
    if part.reference is not None:
        metrics["reference_kl"] = mean_metric(k3(logprobs, part.reference))
    return metrics


def given(x: Tensor | None, name: str) -> Tensor:
    """`x`, which must be there.

    Raises:
        ValueError: It is not.
    """
    if x is None:
        raise ValueError(f"the settings of the algorithm need `{name}` for every token, and the batch has none")
    return x


def check_clip(low: float | None, high: float | None, level: Level) -> None:
    """Raise ValueError for clips that cannot be meant."""
    for name, clip in (("clip_low", low), ("clip_high", high)):
        if clip is None:
            continue
        if not clip > 0 or (name == "clip_low" and clip > 1):
            raise ValueError(f"{name} is a positive distance from 1{', at most 1' * (name == 'clip_low')}; got {clip}")
        if level == "sequence" and clip > SEQUENCE_CLIP_LIMIT:
            raise ValueError(
                f'{name}={clip} never clips a ratio of whole trajectories; with ratio="sequence" set about 3e-4 for '
                "clip_low and 4e-4 for clip_high (GSPO, arXiv:2507.18071), or None for no clipping"
            )
