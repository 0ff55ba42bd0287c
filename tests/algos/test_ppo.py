"""PPO: credit and loss equal hand computations; the divergence's coefficient adapts; no cutting changes the update."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from algos import advantages
from algos.algorithm import alone
from algos.batch import Batch
from algos.ppo import PPO
from tests.algos.batches import group_sizes, permuted, random_batch, scores, tokens_of

EVERY_WAY = [
    PPO(gae=gae, gamma=gamma, whiten=whiten, value_clip=clip, entropy_coef=entropy, kl_coef=kl)
    for gae, gamma, whiten, clip, (entropy, kl) in product(
        ("token", "turn"), (1.0, 0.9), (True, False), (0.2, None), ((0.0, 0.0), (0.01, 0.05))
    )
]
ways = st.sampled_from(EVERY_WAY)


def update(algorithm: PPO, batch: Batch, pieces: list[torch.Tensor], seed: int = 0) -> torch.Tensor:
    """[3, N]: gradients of the loss of a step by log-probabilities, values and entropies, piece by piece."""
    credit = algorithm.credit(batch, algorithm.start())
    leaves = scores(batch, seed)
    total = torch.zeros(3, batch.num_tokens, dtype=torch.float64)
    for rows in pieces:
        tokens = tokens_of(batch, rows)
        logprobs, values, entropy = (leaf[tokens] for leaf in leaves)
        loss = algorithm.loss(batch.part(tokens, credit), logprobs, values, entropy).total
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        total += torch.stack([torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)])
    return total / credit.divisor.sum()


def test_credit_of_tokens_by_hand() -> None:
    batch = random_batch(0, (1, 1), [1.0, -0.5])
    assert batch.values is not None
    algorithm = PPO(whiten=False, lam=0.5, gamma=0.9)
    credit = algorithm.credit(batch, {})
    values, row, rewards = batch.values.tolist(), batch.row.tolist(), batch.rewards.tolist()
    expected = [0.0] * len(row)
    for n in reversed(range(len(row))):
        last = n + 1 == len(row) or row[n + 1] != row[n]
        delta = (rewards[row[n]] if last else 0.9 * values[n + 1]) - values[n]
        expected[n] = delta + (0.0 if last else 0.45 * expected[n + 1])
    assert credit.advantages.tolist() == pytest.approx(expected)
    assert credit.returns is not None
    assert credit.returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values, strict=True)])
    assert torch.equal(credit.divisor, batch.lengths.double())


def test_credit_of_turns_is_shared_by_the_tokens_of_a_turn() -> None:
    batch = random_batch(1, (2, 2))
    assert batch.values is not None
    credit = PPO(gae="turn", whiten=False).credit(batch, {})
    assert credit.returns is not None
    step, first = advantages.turn_steps(batch)
    assert torch.equal(credit.advantages, credit.advantages[first][step])
    assert torch.equal(credit.returns, credit.returns[first][step])
    assert torch.allclose(credit.returns[first], credit.advantages[first] + batch.values[first])


def test_the_divergence_is_paid_where_it_arises() -> None:
    batch = random_batch(2, (1,), [1.0])
    assert batch.reference is not None
    assert batch.values is not None
    batch = replace(batch, values=torch.zeros_like(batch.values))
    credit = PPO(whiten=False, lam=1.0, kl_coef=0.1).credit(batch, {"kl_coef": 0.1})
    cost = 0.1 * (batch.old_logprobs - batch.reference).double()
    assert torch.allclose(credit.advantages, 1.0 - cost.flip(0).cumsum(0).flip(0), atol=1e-6)


def test_whitened_advantages() -> None:
    credit = PPO().credit(random_batch(3, (4, 4)), {})
    assert float(credit.advantages.mean()) == pytest.approx(0, abs=1e-12)
    assert float(credit.advantages.std(correction=0)) == pytest.approx(1)


def test_loss_by_hand() -> None:
    batch = random_batch(4, (3,))
    algorithm = PPO(value_coef=0.5, entropy_coef=0.01, value_clip=None)
    credit = algorithm.credit(batch, {})
    logprobs, values, entropy = (leaf.detach() for leaf in scores(batch, 0))
    assert credit.returns is not None
    loss = algorithm.loss(batch.part(torch.arange(batch.num_tokens), credit), logprobs, values, entropy)
    expected = 0.0
    for n in range(batch.num_tokens):
        ratio = float((logprobs[n] - batch.old_logprobs[n].double()).exp())
        advantage = float(credit.advantages[n])
        expected -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        expected += 0.5 * (float(values[n]) - float(credit.returns[n])) ** 2 / 2 - 0.01 * float(entropy[n])
    assert loss.total.item() == pytest.approx(expected)


def test_the_coefficient_of_the_divergence_adapts() -> None:
    batch = random_batch(5, (4, 4))
    for offset, factor in ((-10.0, 1.2), (10.0, 0.8)):  # far above the target, far below
        moved = replace(batch, reference=batch.old_logprobs + offset)
        algorithm = PPO(kl_coef=0.1, kl_target=1.0, kl_horizon=8)
        credit = algorithm.credit(moved, algorithm.start())
        assert credit.memory == {"kl_coef": pytest.approx(0.1 * factor)}
    lengths = float(batch.lengths.double().mean())
    on_target = replace(batch, reference=batch.old_logprobs.double() - 2.0 / lengths)
    algorithm = PPO(kl_coef=0.1, kl_target=2.0, kl_horizon=8)
    assert algorithm.credit(on_target, {"kl_coef": 0.3}).memory == {"kl_coef": pytest.approx(0.3)}
    fixed = PPO(kl_coef=0.1)
    assert fixed.credit(batch, fixed.start()).memory == {"kl_coef": 0.1}


def test_the_coefficient_adapts_more_slowly_over_a_longer_horizon() -> None:
    batch = random_batch(6, (4, 4))
    batch = replace(batch, reference=batch.old_logprobs - 10.0)
    algorithm = PPO(kl_coef=0.1, kl_target=1.0, kl_horizon=80)
    assert algorithm.credit(batch, algorithm.start()).memory["kl_coef"] == pytest.approx(0.1 * (1 + 0.2 * 8 / 80))


def test_explained_variance() -> None:
    batch = random_batch(7, (4, 4))
    assert batch.values is not None
    perfect = replace(batch, values=batch.rewards[batch.row])
    metric = PPO(lam=1.0).credit(perfect, {}).metrics["explained_variance"]
    assert float(metric[0] / metric[1]) == pytest.approx(1.0)
    useless = replace(batch, values=torch.full_like(batch.values, float(batch.rewards[batch.row].mean())))
    metric = PPO(lam=1.0).credit(useless, {}).metrics["explained_variance"]
    assert float(metric[0] / metric[1]) == pytest.approx(0.0, abs=1e-9)


def test_each_process_whitens_with_the_numbers_of_all() -> None:
    """Two processes, played by remembering what each asks to be added up."""
    whole = random_batch(8, (4, 4))
    halves = []
    for rows in (range(4), range(4, 8)):
        tokens = tokens_of(whole, torch.tensor(list(rows)))
        assert whole.reference is not None
        assert whole.values is not None
        halves.append(
            Batch(
                rewards=whole.rewards[list(rows)],
                group=whole.group[list(rows)] - rows[0] // 4,
                row=whole.row[tokens] - rows[0],
                position=whole.position[tokens],
                turn=whole.turn[tokens],
                old_logprobs=whole.old_logprobs[tokens],
                reference=whole.reference[tokens],
                values=whole.values[tokens],
            )
        )
    algorithm = PPO(kl_coef=0.1, kl_target=1.0)
    # The k-th sum needs the k-1 before it, so it is filled in round by round until all are known.
    known: list[torch.Tensor] = []
    while True:
        asked: list[list[torch.Tensor]] = []
        for half in halves:
            mine: list[torch.Tensor] = []

            def total(x: torch.Tensor, mine: list[torch.Tensor] = mine) -> torch.Tensor:
                mine.append(x)
                return known[len(mine) - 1] if len(mine) <= len(known) else x

            credit = algorithm.credit(half, algorithm.start(), total)
            asked.append(mine)
            half.__dict__["credit"] = credit
        assert len(asked[0]) == len(asked[1])
        if len(known) == len(asked[0]):
            break
        known.append(asked[0][len(known)] + asked[1][len(known)])
    together = algorithm.credit(whole, algorithm.start(), alone)
    apart = torch.cat([half.__dict__["credit"].advantages for half in halves])
    assert torch.allclose(apart, together.advantages)
    assert halves[0].__dict__["credit"].memory == pytest.approx(dict(together.memory))


@given(ways, group_sizes, st.integers(0, 2**31), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_cutting_into_parts_changes_nothing(way: PPO, sizes: list[int], seed: int, pieces: int) -> None:
    batch = random_batch(seed, sizes)
    order = torch.randperm(batch.num_trajectories, generator=torch.Generator().manual_seed(seed))
    whole = update(way, batch, [torch.arange(batch.num_trajectories)])
    cut = update(way, batch, list(order.chunk(pieces)))
    assert torch.isfinite(whole).all()
    assert torch.allclose(whole, cut, atol=1e-12)


@given(ways, group_sizes, st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_the_order_of_trajectories_changes_nothing(way: PPO, sizes: list[int], seed: int) -> None:
    batch = random_batch(seed, sizes)
    order = np.random.default_rng(seed).permutation(batch.num_trajectories).tolist()
    other, tokens = permuted(batch, order)
    credit, other_credit = way.credit(batch, way.start()), way.credit(other, way.start())
    assert torch.allclose(other_credit.advantages, credit.advantages[tokens], atol=1e-9)
    assert credit.returns is not None
    assert other_credit.returns is not None
    assert torch.allclose(other_credit.returns, credit.returns[tokens], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": 1.1}, "lam is between 0 and 1"),
        ({"gamma": -0.1}, "gamma is between 0 and 1"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"groups": 2, "minibatches": 3}, "at most 2"),
        ({"value_coef": -1.0}, "value_coef is not negative"),
        ({"value_clip": 0.0}, "None for no clipping"),
        ({"kl_target": 1.0}, "a positive kl_coef to begin with"),
        ({"gae": "episode"}, "gae is one of 'token', 'turn'; got 'episode'"),
        ({"clip_high": 0.0}, "clip_high is a positive distance"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPO(**change)


def test_a_batch_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="need `values` for every token"):
        PPO().credit(replace(random_batch(0), values=None), {})
