"""Log-probabilities of sampled tokens from hidden states, without the logits of a whole batch in memory.

Logits of all positions are the largest tensor of language-model training by far (positions times vocabulary). Here they
exist for one chunk of sampled positions at a time, and the chunk is computed again on the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def chunk_elements(device: torch.device) -> int:
    """Logits that exist at a time: 64 MB in float32 on a CPU, 512 MB on a GPU, whose products want many rows."""
    return 2**24 if device.type == "cpu" else 2**27


def token_scores(
    hidden: Tensor,
    target: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    vocabulary: int,
    temperature: float,
    entropy_gradient: bool,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution.

    Args:
        hidden: [N, E], the hidden states that predict.
        target: int64 [N].
        logits_of: Maps [n, E] to float32 [n, V].
        vocabulary: V.
        temperature: That logits are divided by.
        entropy_gradient: Whether the entropy is differentiated; it is a mere figure otherwise.
        most: Logits at a time; None: what suits the device.

    Returns:
        Two float32 [N]; the entropy in nats.
    """

    def chunk(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(states)
        logprobs, entropy = _Scores.apply(logits, targets, temperature, entropy_gradient)  # type: ignore[no-untyped-call]
        return logprobs, entropy

    size = max(1, (chunk_elements(hidden.device) if most is None else most) // vocabulary)
    if len(target) <= size:
        return chunk(hidden, target)
    parts = []
    for states, targets in zip(torch.split(hidden, size), torch.split(target, size), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(chunk, states, targets, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(chunk(states, targets))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _Scores(torch.autograd.Function):
    """[n, V] logits, [n] targets -> [n] log-probabilities, [n] entropies; keeps the probabilities alone."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        scaled = logits if temperature == 1 else logits / temperature
        lse = scaled.logsumexp(-1)
        logprobs = scaled.gather(-1, target[:, None])[:, 0] - lse
        probabilities = (scaled - lse[:, None]).exp_()
        entropy = lse - torch.linalg.vecdot(probabilities, scaled)
        if entropy_gradient:
            ctx.save_for_backward(probabilities, target, entropy)
        else:
            ctx.save_for_backward(probabilities, target, None)
            ctx.mark_non_differentiable(entropy)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logprob_grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, target, entropy = ctx.saved_tensors
        grad = probabilities * -logprob_grad[:, None]
        grad.scatter_add_(1, target[:, None], logprob_grad[:, None])
        if entropy is not None:
            surprise = torch.special.entr(probabilities).addcmul_(probabilities, entropy[:, None], value=-1)
            grad += surprise * entropy_grad[:, None]
        return grad if ctx.temperature == 1 else grad / ctx.temperature, None, None, None
