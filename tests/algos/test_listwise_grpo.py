"""List-wise GRPO: the paper by default, options that say what they need, and an update that no cutting changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from algos.batch import Batch, Credit
from algos.listwise_grpo import ListwiseGRPO
from tests.algos.batches import group_sizes, permuted, random_batch, scores, tokens_of

EVERY_WAY = [
    ListwiseGRPO(
        baseline=baseline, std=std, drop=drop, loss_mean=mean, ratio=ratio, clip_low=low, clip_high=high, kl=kl
    )
    for (baseline, std, drop), mean, (ratio, low, high), kl in product(
        (("mean", False, "negative"), ("leave_one_out", False, "none"), ("mean", True, "flat")),
        ("token", "sequence", "constant"),
        (("token", 0.2, 0.28), ("sequence", 3e-2, 4e-2)),
        ("none", "reward", "loss"),
    )
]
ways = st.sampled_from(EVERY_WAY)


def update(algorithm: ListwiseGRPO, batch: Batch, pieces: list[torch.Tensor], seed: int = 0) -> torch.Tensor:
    """[N]: gradient of the loss of a step by the log-probabilities, computed piece by piece (trajectories each)."""
    credit = algorithm.credit(batch, algorithm.start())
    logprobs, _, entropy = scores(batch, seed)
    return slope(algorithm, batch, credit, logprobs, entropy, pieces)


def slope(
    algorithm: ListwiseGRPO,
    batch: Batch,
    credit: Credit,
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    pieces: list[torch.Tensor],
) -> torch.Tensor:
    total = torch.zeros_like(logprobs)
    for rows in pieces:
        tokens = tokens_of(batch, rows)
        tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
        loss = algorithm.loss(batch.part(tokens, credit), logprobs[tokens], None, entropy[tokens]).total
        if loss.requires_grad:
            total += torch.autograd.grad(loss, logprobs)[0]
    divisor = float(credit.divisor.sum())
    return total / divisor if divisor else total


def test_the_defaults_are_the_papers() -> None:
    algorithm = ListwiseGRPO()
    assert (algorithm.group_size, algorithm.groups) == (8, 64)
    assert algorithm.baseline == "mean"
    assert not algorithm.std
    assert algorithm.drop == "negative"
    assert algorithm.kl == "none"
    assert algorithm.epochs == algorithm.minibatches == 1
    assert [algorithm.uses_reference, algorithm.uses_values, algorithm.uses_entropy] == [False] * 3


def test_credit_by_hand() -> None:
    rewards = [1.1, 0.5, -0.5, -0.5, -1.0, -0.5, 0.631, 0.631]
    batch = random_batch(0, (3, 3, 2), rewards)
    credit = ListwiseGRPO().credit(batch, {})
    mean = (1.1 + 0.5 - 0.5) / 3
    expected = [1.1 - mean, 0.5 - mean, -0.5 - mean, 0, 0, 0, 0, 0]
    assert credit.advantages.tolist() == pytest.approx([expected[row] for row in batch.row])
    lengths = batch.lengths.tolist()
    # The second group was punished throughout, so it is out of the mean; the third, flat but not negative, is not.
    assert credit.divisor.tolist() == [*lengths[:3], 0, 0, 0, *lengths[6:]]
    assert credit.train.tolist() == [True] * 3 + [False] * 5
    assert float(credit.metrics["dropped_groups"][0] / credit.metrics["dropped_groups"][1]) == pytest.approx(1 / 3)


def test_what_is_dropped() -> None:
    batch = random_batch(0, (2, 2, 2), [-1.0, -0.5, 0.5, 0.5, -0.5, 0.5])
    for drop, kept in (
        ("negative", [False, False, True, True, True, True]),
        ("flat", [True, True, False, False, True, True]),
        ("none", [True] * 6),
    ):
        credit = ListwiseGRPO(drop=drop).credit(batch, {})
        assert (credit.divisor > 0).tolist() == kept
        constant = ListwiseGRPO(drop=drop, loss_mean="constant", constant=50.0).credit(batch, {})
        assert constant.divisor.tolist() == [50.0] * 6
        assert torch.equal(constant.advantages, credit.advantages)
        if drop != "none":
            assert (credit.advantages[~torch.tensor(kept)[batch.row]] == 0).all()


def test_on_policy_the_loss_is_minus_the_advantage_weighted_mean_by_hand() -> None:
    batch = random_batch(1, (4,), [1.0, 0.5, 0.0, -0.5])
    algorithm = ListwiseGRPO()
    credit = algorithm.credit(batch, {})
    logprobs = batch.old_logprobs.double().requires_grad_()
    loss = algorithm.loss(batch.part(torch.arange(batch.num_tokens), credit), logprobs, None, logprobs.detach())
    lengths = batch.lengths.double()
    advantage = torch.tensor([0.75, 0.25, -0.25, -0.75], dtype=torch.float64)
    assert loss.total.item() == pytest.approx(-float((advantage * lengths).sum()))
    (gradient,) = torch.autograd.grad(loss.total / credit.divisor.sum(), logprobs)
    assert torch.allclose(gradient, -advantage[batch.row] / lengths.sum())
    shares = {name: float(metric[0] / metric[1]) for name, metric in loss.metrics.items()}
    assert shares["clipped_low"] == shares["clipped_high"] == 0
    assert shares["sampler_kl"] == pytest.approx(0, abs=1e-12)


def test_divergence_in_the_reward_is_that_of_the_whole_trajectory() -> None:
    batch = random_batch(2, (3,), [1.0, 0.5, 0.0])
    assert batch.reference is not None
    log_ratio = (batch.old_logprobs.double() - batch.reference).tolist()
    paid = batch.rewards.clone()
    for row, x in zip(batch.row.tolist(), log_ratio, strict=True):
        paid[row] -= 0.1 * x
    credit = ListwiseGRPO(kl="reward", kl_coef=0.1).credit(batch, {})
    assert torch.allclose(credit.advantages, (paid - paid.mean())[batch.row], atol=1e-6)


def test_penalised_groups_are_judged_by_the_reward_without_the_divergence() -> None:
    batch = random_batch(3, (2,), [0.289, -0.5])
    batch = replace(batch, reference=batch.old_logprobs - 1e3)
    assert (ListwiseGRPO(kl="reward", kl_coef=1.0).credit(batch, {}).divisor > 0).all()


def test_with_the_divergence_in_the_loss_flat_groups_are_read_too() -> None:
    batch = random_batch(4, (2, 2), [0.5, 0.5, -1.0, -1.0])
    assert ListwiseGRPO(kl="loss").credit(batch, {}).train.tolist() == [True, True, False, False]
    assert not ListwiseGRPO().credit(batch, {}).train.any()


@given(ways, group_sizes, st.integers(0, 2**31), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_cutting_into_parts_changes_nothing(way: ListwiseGRPO, sizes: list[int], seed: int, pieces: int) -> None:
    batch = random_batch(seed, sizes)
    order = torch.randperm(batch.num_trajectories, generator=torch.Generator().manual_seed(seed))
    whole = update(way, batch, [torch.arange(batch.num_trajectories)])
    cut = update(way, batch, list(order.chunk(pieces)))
    assert torch.allclose(whole, cut, atol=1e-12)


@given(ways, group_sizes, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_order_of_trajectories_changes_nothing(way: ListwiseGRPO, sizes: list[int], seed: int) -> None:
    batch = random_batch(seed, sizes)
    order = np.random.default_rng(seed).permutation(batch.num_trajectories).tolist()
    other, tokens = permuted(batch, order)
    credit, other_credit = way.credit(batch, {}), way.credit(other, {})
    assert torch.allclose(other_credit.advantages, credit.advantages[tokens], atol=1e-12)
    assert torch.allclose(other_credit.divisor, credit.divisor[order])
    logprobs, _, entropy = scores(batch, seed)
    everything = [torch.arange(batch.num_trajectories)]
    before = slope(way, batch, credit, logprobs, entropy, everything)
    moved = logprobs.detach()[tokens].requires_grad_()
    after = slope(way, other, other_credit, moved, entropy[tokens], everything)
    assert torch.allclose(after, before[tokens], atol=1e-12)


@given(ways, group_sizes, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_trajectories_out_of_training_have_no_gradient(way: ListwiseGRPO, sizes: list[int], seed: int) -> None:
    batch = random_batch(seed, sizes)
    credit = way.credit(batch, {})
    gradient = update(way, batch, [torch.arange(batch.num_trajectories)])
    assert torch.isfinite(gradient).all()
    assert (gradient[~credit.train[batch.row]] == 0).all()


@given(ways, st.sampled_from((-1.0, -0.5, 0.301, 1.1)), group_sizes, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_equal_rewards_give_no_policy_gradient(way: ListwiseGRPO, reward: float, sizes: list[int], seed: int) -> None:
    batch = random_batch(seed, sizes, [reward] * sum(sizes))
    way = replace(way, kl="none")
    credit = way.credit(batch, {})
    assert (credit.advantages == 0).all()
    assert not credit.train.any()
    assert (update(way, batch, [torch.arange(batch.num_trajectories)]) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 1}, "group_size is at least 2"),
        ({"groups": 0}, "groups is at least 1"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"groups": 4, "minibatches": 5}, "a group is not split: at most 4"),
        ({"constant": 0.0}, "positive number of tokens"),
        ({"kl_coef": -1.0}, "not negative"),
        ({"baseline": "median"}, "baseline is one of 'mean', 'leave_one_out'; got 'median'"),
        ({"ratio": "sequence"}, "3e-4"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ListwiseGRPO(**change)


def test_a_divergence_without_a_reference_is_refused() -> None:
    batch = replace(random_batch(0), reference=None)
    with pytest.raises(ValueError, match="need `reference` for every token"):
        ListwiseGRPO(kl="reward").credit(batch, {})
    algorithm = ListwiseGRPO(kl="loss")
    part = batch.part(torch.arange(batch.num_tokens), algorithm.credit(batch, {}))
    with pytest.raises(ValueError, match="need `reference`"):
        algorithm.loss(part, batch.old_logprobs, None, batch.old_logprobs)
