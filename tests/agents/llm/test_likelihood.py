"""Scores in chunks against scores from all logits at once: values, gradients, and what is kept in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agents.llm.likelihood import token_scores

N, WIDTH, VOCABULARY = 50, 16, 300


def parts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64))
    target = torch.randint(0, VOCABULARY, (N,), generator=generator)
    factors = torch.randn(2, N, generator=generator, dtype=torch.float64)
    return hidden, weight, target, factors


def plain(hidden, weight, target, temperature):
    logprobs = torch.log_softmax(hidden @ weight.T / temperature, -1)
    return logprobs.gather(1, target[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 7 * VOCABULARY, 10**6])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_equals_all_logits_at_once(temperature, chunk, entropy_gradient):
    hidden, weight, target, (one, two) = parts()
    logprobs, entropy = plain(hidden, weight, target, temperature)
    loss = (logprobs * one).sum() + ((entropy * two).sum() if entropy_gradient else 0)
    wanted = torch.autograd.grad(loss, (hidden, weight))
    got = token_scores(hidden, target, lambda h: h @ weight.T, VOCABULARY, temperature, entropy_gradient, chunk)
    torch.testing.assert_close(got[0], logprobs)
    torch.testing.assert_close(got[1], entropy)
    assert got[1].requires_grad is entropy_gradient
    loss = (got[0] * one).sum() + ((got[1] * two).sum() if entropy_gradient else 0)
    for a, b in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_certain_distributions_have_finite_gradients():
    hidden, weight, target, _ = parts()
    logprobs, entropy = token_scores(hidden * 1e4, target, lambda h: h @ weight.T, VOCABULARY, 1.0, True)
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.isfinite().all()
    assert (entropy >= 0).all()


def test_no_tensor_holds_the_logits_of_all_positions():
    """Neither between the passes nor within one does anything larger than a chunk exist."""
    hidden, weight, target, _ = parts()
    chunk = 10 * VOCABULARY
    kept, made = [], []

    def logits_of(states):
        logits = states @ weight.T
        made.append(logits.numel())
        return logits

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprobs, _ = token_scores(hidden, target, logits_of, VOCABULARY, 1.0, False, chunk)
    assert max(kept) <= WIDTH * VOCABULARY  # nothing of a chunk is kept, the weights at most
    logprobs.sum().backward()
    assert max(made) <= chunk
    assert len(made) == 2 * N // 10


def test_nothing_is_computed_twice_without_gradients():
    hidden, weight, target, _ = parts()
    made = []

    def logits_of(states):
        made.append(len(states))
        return states @ weight.T

    with torch.no_grad():
        token_scores(hidden, target, logits_of, VOCABULARY, 1.0, False, 10 * VOCABULARY)
    assert sum(made) == N
