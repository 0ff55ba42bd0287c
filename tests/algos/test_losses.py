"""Losses equal hand computations, divergences have the gradients that they are used for, nothing overflows."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from algos import losses
from algos.batch import Part
from tests.algos.batches import random_batch


def part_of(old: list[float], lengths: list[int]) -> Part:
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Part(
        row=row,
        lengths=torch.tensor(lengths)[row],
        trajectories=len(lengths),
        old_logprobs=torch.tensor(old, dtype=torch.float64),
        advantages=torch.zeros(len(old), dtype=torch.float64),
        weights=torch.ones(len(old), dtype=torch.float64),
    )


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # inside
        (1.5, 2.0, -2.56, 0.0),  # too high already
        (0.5, 2.0, -1.0, -2.0),  # too low, but better than expected: pulled back
        (0.5, -2.0, 1.6, 0.0),  # too low already
        (1.5, -2.0, 3.0, 2.0),  # too high, but worse than expected: pulled back
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
    ],
)
def test_the_clipped_policy_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    x = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    found = losses.clipped_policy_loss(x, vector(advantage), 0.2, 0.28)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert found.item() == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)
    low, high = losses.clipped(x.detach(), vector(advantage), 0.2, 0.28)
    assert bool(low | high) == (slope == 0.0)


def test_without_clips_the_loss_is_the_ratio_times_the_advantage() -> None:
    found = losses.clipped_policy_loss(vector(0.01, 50.0, 50.0), vector(-1.0, 1.0, -1.0), None, None)
    assert found.tolist() == pytest.approx([0.01, -50.0, 50.0])


def test_importance_ratios_by_hand() -> None:
    part = part_of([-1.0, -2.0, -3.0, -1.0], [3, 1])
    now = vector(-1.5, -1.0, -3.1, -0.8)
    token = losses.importance_ratio(now, part, "token")
    assert token.tolist() == pytest.approx([math.exp(x) for x in (-0.5, 1.0, -0.1, 0.2)])
    sequence = losses.importance_ratio(now, part, "sequence")
    mean = math.exp((-0.5 + 1.0 - 0.1) / 3)
    assert sequence.tolist() == pytest.approx([mean, mean, mean, math.exp(0.2)])


def test_weights_and_divisors_of_the_three_means() -> None:
    batch = random_batch(0, (2,))
    a, b = batch.lengths.tolist()
    for mean, weights, divisor in (
        ("token", [1.0] * (a + b), [a, b]),
        ("sequence", [1 / a] * a + [1 / b] * b, [1, 1]),
        ("constant", [1.0] * (a + b), [100, 100]),
    ):
        found = losses.mean_weights(batch, mean, 100.0)
        assert found[0].tolist() == pytest.approx(weights)
        assert found[1].tolist() == divisor


def test_value_loss_by_hand() -> None:
    values = torch.tensor([0.5, 0.5, 0.9, 0.9], dtype=torch.float64, requires_grad=True)
    old, returns = vector(0.4, 0.4, 0.4, 0.4), vector(1.0, 1.0, 1.0, 0.0)
    plain = losses.value_loss(values, old, returns, None)
    assert plain.tolist() == pytest.approx([0.125, 0.125, 0.005, 0.405])
    clipped = losses.value_loss(values, old, returns, 0.2)
    assert clipped.tolist() == pytest.approx([0.125, 0.125, 0.08, 0.405])
    (gradient,) = torch.autograd.grad(clipped.sum(), values)
    # The third has come far enough towards its return; the fourth went the wrong way.
    assert gradient.tolist() == pytest.approx([-0.5, -0.5, 0.0, 0.9])


def categorical(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of p that can be differentiated, log-probabilities of q and of an older p; 5 outcomes."""
    generator = torch.Generator().manual_seed(seed)
    logits, q, old = torch.randn((3, 5), generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.log_softmax(q, -1), torch.log_softmax(old, -1)


def gradient_of(scalar: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, logits)[0]


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_the_divergences_are_the_analytic_ones(seed: int) -> None:
    """Exact expectations over a categorical distribution; dKL(p || q)/dlogit_k = p_k (log p_k/q_k - KL(p || q))."""
    logits, q, old = categorical(seed)
    logp = torch.log_softmax(logits, -1)
    p = logp.exp().detach()
    divergence = (p * (logp.detach() - q)).sum()
    reverse = p * (logp.detach() - q - divergence)
    forward = p - q.exp()

    on_policy = (p * losses.corrected_k3(logp, logp.detach(), q)).sum()
    assert on_policy.item() == pytest.approx(divergence.item())
    assert torch.allclose(gradient_of(on_policy, logits), reverse)

    off_policy = (old.exp() * losses.corrected_k3(torch.log_softmax(logits, -1), old, q)).sum()
    assert off_policy.item() == pytest.approx(divergence.item())
    assert torch.allclose(gradient_of(off_policy, logits), reverse)

    # Without the correction k3 follows the other divergence, KL(q || p), although its value is that of KL(p || q).
    uncorrected = (p * losses.k3(torch.log_softmax(logits, -1), q)).sum()
    assert uncorrected.item() == pytest.approx(divergence.item())
    assert torch.allclose(gradient_of(uncorrected, logits), forward)
    assert not torch.allclose(forward, reverse, atol=1e-2)

    # k1 as a negative reward of what was sampled: the score function times it.
    logp = torch.log_softmax(logits, -1)
    in_reward = (p * losses.k1(logp, q).detach() * logp).sum()
    assert torch.allclose(gradient_of(in_reward, logits), reverse)


@given(st.lists(st.floats(-1e4, 0), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_extreme_ratios_do_not_overflow(now: list[float], data: st.DataObject) -> None:
    size = len(now)
    old, reference = (data.draw(st.lists(st.floats(-1e4, 0), min_size=size, max_size=size)) for _ in range(2))
    advantages = data.draw(st.lists(st.floats(-10, 10), min_size=size, max_size=size))
    part = part_of(old, [size])
    logprobs = torch.tensor(now, dtype=torch.float32, requires_grad=True)
    for level in ("token", "sequence"):
        ratio = losses.importance_ratio(logprobs, part, level)
        for low, high in ((0.2, 0.28), (None, None)):
            loss = losses.clipped_policy_loss(ratio, torch.tensor(advantages), low, high)
            loss = loss + losses.corrected_k3(logprobs, part.old_logprobs, torch.tensor(reference))
            (gradient,) = torch.autograd.grad(loss.sum(), logprobs, retain_graph=True)
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("low", "high", "level", "message"),
    [
        (0.0, 0.2, "token", "clip_low is a positive distance"),
        (1.5, 0.2, "token", "at most 1"),
        (0.2, -0.1, "token", "clip_high is a positive distance"),
        (float("nan"), 0.2, "token", "clip_low is a positive distance"),
        (0.2, 0.28, "sequence", "never clips a ratio of whole trajectories"),
    ],
)
def test_clips_that_cannot_be_meant_are_refused(low: float, high: float, level: losses.Level, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.check_clip(low, high, level)


def test_metrics_of_a_part_by_hand() -> None:
    old, moved = vector(-1.0, -1.0, -1.0, -1.0), vector(0.5, -0.5, 0.1, 0.0)
    part = part_of(old.tolist(), [4])
    part = replace(part, advantages=vector(1.0, -1.0, -1.0, 1.0), reference=old)
    ratio = losses.importance_ratio(old + moved, part, "token")
    metrics = losses.policy_metrics(ratio, old + moved, vector(1.0, 2.0, 3.0, 4.0), part, 0.2, 0.28)
    found = {name: float(metric[0] / metric[1]) for name, metric in metrics.items()}
    assert found == {
        "entropy": pytest.approx(2.5),
        "clipped_low": pytest.approx(0.25),
        "clipped_high": pytest.approx(0.25),
        "sampler_kl": pytest.approx(sum(math.exp(x) - 1 - x for x in moved.tolist()) / 4),
        "reference_kl": pytest.approx(sum(math.exp(-x) - 1 + x for x in moved.tolist()) / 4),
    }
    one_sided = losses.policy_metrics(ratio[:1], (old + moved)[:1], vector(1.0), first_of(part), 0.2, 0.28)
    assert float(one_sided["clipped_high"][0]) == 1
    assert float(one_sided["clipped_low"][0]) == 0


def first_of(part: Part) -> Part:
    cut = {field.name: getattr(part, field.name) for field in fields(part)}
    return Part(**{name: x[:1] if isinstance(x, Tensor) else x for name, x in cut.items()})
