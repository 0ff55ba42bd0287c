"""Baselines and advantage estimates equal what is computed by hand or by the plainest loop."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from agents.llm.chat import Prompt
from agents.llm.transcript import TranscriptWriter
from algos import advantages
from algos.algorithm import alone
from algos.batch import Batch
from tests.algos.batches import PAID, group_sizes, random_batch


def rewarded(rewards: list[float], group: list[int]) -> Batch:
    size = len(rewards)
    return Batch(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.tensor(group),
        row=torch.arange(size),
        position=torch.zeros(size, dtype=torch.int64),
        turn=torch.zeros(size, dtype=torch.int64),
        old_logprobs=torch.zeros(size),
    )


def test_group_advantages_by_hand() -> None:
    batch = rewarded([1.0, 0.0, 0.5, -1.0, -0.5], [0, 0, 0, 1, 1])
    spread = math.sqrt((0.5**2 + 0.5**2) / 2)
    expected = torch.tensor([0.5, -0.5, 0.0, -0.25, 0.25], dtype=torch.float64)
    assert torch.allclose(advantages.group_advantages(batch.rewards, batch), expected)
    alone = expected * torch.tensor([1.5, 1.5, 1.5, 2.0, 2.0])
    assert torch.allclose(advantages.group_advantages(batch.rewards, batch, leave_one_out=True), alone)
    divided = advantages.group_advantages(batch.rewards, batch, std=True)
    assert torch.allclose(divided[:3], expected[:3] / (spread + 1e-4))


@given(group_sizes, st.integers(0, 2**31), st.booleans())
@settings(max_examples=40, deadline=None)
def test_leave_one_out_is_the_mean_of_the_others(sizes: list[int], seed: int, std: bool) -> None:
    batch = random_batch(seed, sizes)
    found = advantages.group_advantages(batch.rewards, batch, leave_one_out=True)
    for row in range(batch.num_trajectories):
        others = [
            float(batch.rewards[other])
            for other in range(batch.num_trajectories)
            if other != row and batch.group[other] == batch.group[row]
        ]
        expected = float(batch.rewards[row]) - float(np.mean(others)) if others else 0.0
        assert float(found[row]) == pytest.approx(expected, abs=1e-12)


@given(st.sampled_from(PAID), st.integers(1, 9), st.booleans(), st.booleans())
def test_equal_rewards_teach_exactly_nothing(reward: float, size: int, leave_one_out: bool, std: bool) -> None:
    batch = rewarded([reward] * size + [1.0], [0] * size + [1])
    assert (advantages.group_advantages(batch.rewards, batch, leave_one_out, std) == 0).all()


def test_groups_in_which_every_trajectory_is_punished() -> None:
    batch = rewarded([-1.0, -0.5, -1.0, 0.0, -0.5, 0.289], [0, 0, 1, 1, 3, 3])
    assert advantages.all_negative(batch).tolist() == [True, False, True, False]  # group 2 lost all its trajectories


def plain_gae(rewards: list[float], values: list[float], row: list[int], gamma: float, lam: float) -> list[float]:
    found = [0.0] * len(rewards)
    for n in reversed(range(len(rewards))):
        goes_on = n + 1 < len(rewards) and row[n + 1] == row[n]
        value, rest = (values[n + 1], found[n + 1]) if goes_on else (0.0, 0.0)
        found[n] = rewards[n] + gamma * value - values[n] + gamma * lam * rest
    return found


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_gae_equals_the_plain_loop(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(len(lengths)), lengths)
    rewards, values = rng.normal(size=(2, len(row)))
    found = advantages.gae(torch.from_numpy(rewards), torch.from_numpy(values), torch.from_numpy(row), gamma, lam)
    expected = plain_gae(rewards.tolist(), values.tolist(), row.tolist(), gamma, lam)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-10)


def three_turns() -> Batch:
    """Turns of 2, 1 and 2 sampled tokens with observations of 3 and 1 tokens between; then another trajectory."""
    writer = TranscriptWriter(Prompt((1, 2), 0))
    writer.sampled([3, 4], [-1.0, -1.0], "stop")
    writer.observed([5, 6, 7])
    writer.sampled([8], [-1.0], "stop")
    writer.observed([9])
    writer.sampled([10, 11], [-1.0, -1.0], "end")
    other = TranscriptWriter(Prompt((1,), 0))
    other.sampled([3], [-1.0], "end")
    return Batch.of([writer.freeze(), other.freeze()], [1.0, -0.5], [0, 1])


def test_gae_over_three_turns_by_hand() -> None:
    """gamma .9, lambda .5; values .1 .2 .3 .4 .5 of the sampled tokens, the reward 1 at the last of them.

    Between the second token (turn 1) and the third (turn 2) lie three observation tokens, which are no steps.
    """
    batch = three_turns()
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.7])
    paid = torch.where(batch.last, batch.rewards[batch.row], 0.0)
    deltas = [0.9 * 0.2 - 0.1, 0.9 * 0.3 - 0.2, 0.9 * 0.4 - 0.3, 0.9 * 0.5 - 0.4, 1.0 - 0.5]
    a4 = deltas[4]
    a3 = deltas[3] + 0.45 * a4
    a2 = deltas[2] + 0.45 * a3
    a1 = deltas[1] + 0.45 * a2
    a0 = deltas[0] + 0.45 * a1
    found = advantages.gae(paid, values, batch.row, 0.9, 0.5)
    assert found.tolist() == pytest.approx([a0, a1, a2, a3, a4, -0.5 - 0.7])


def test_turn_gae_over_three_turns_by_hand() -> None:
    batch = three_turns()
    values = torch.tensor([0.1, 9.0, 0.3, 0.4, 9.0, 0.7])  # values inside a turn have no part in it
    paid = torch.where(batch.last, batch.rewards[batch.row], 0.0)
    a2 = 1.0 - 0.4
    a1 = 0.9 * 0.4 - 0.3 + 0.45 * a2
    a0 = 0.9 * 0.3 - 0.1 + 0.45 * a1
    found = advantages.turn_gae(paid, values, batch, 0.9, 0.5)
    assert found.tolist() == pytest.approx([a0, a0, a1, a2, a2, -0.5 - 0.7])


@given(group_sizes, st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_with_lambda_and_gamma_one_the_return_is_the_reward(sizes: list[int], seed: int) -> None:
    batch = random_batch(seed, sizes)
    assert batch.values is not None
    paid = torch.where(batch.last, batch.rewards[batch.row], 0.0)
    found = advantages.gae(paid, batch.values, batch.row, 1.0, 1.0) + batch.values
    assert torch.allclose(found, batch.rewards[batch.row])


def test_whitening_is_over_all_ranks() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    whole = advantages.whiten(x, alone)
    assert float(whole.mean()) == pytest.approx(0, abs=1e-12)
    assert float(whole.std(correction=0)) == pytest.approx(1)
    # Two ranks: what the other would add is known here, so that no process group is needed.
    parts = [x[:1], x[1:]]
    for mine, other, expected in ((0, 1, whole[:1]), (1, 0, whole[1:])):
        theirs = iter(
            (
                torch.tensor([float(len(parts[other])), float(parts[other].sum())], dtype=torch.float64),
                (parts[other] - x.mean()).square().sum(),
            )
        )
        found = advantages.whiten(parts[mine], lambda local, theirs=theirs: local + next(theirs))
        assert torch.allclose(found, expected)


def test_whitening_constants_gives_zeros() -> None:
    assert (advantages.whiten(torch.full((5,), 0.1, dtype=torch.float64), alone) == 0).all()
    assert len(advantages.whiten(torch.zeros(0, dtype=torch.float64), alone)) == 0


def test_metrics_of_a_rollout_by_hand() -> None:
    batch = rewarded([1.0, 0.0, -0.5, -0.5], [0, 0, 1, 1])
    metrics = advantages.rollout_metrics(batch, advantages.all_negative(batch))
    shares = {name: float(metric[0] / metric[1]) for name, metric in metrics.items()}
    assert shares == {
        "reward": pytest.approx(0.0),
        "reward_spread": pytest.approx(0.25),
        "sampled_entropy": pytest.approx(0.0),
        "best_of_group": pytest.approx(0.25),
        "flat_groups": pytest.approx(0.5),
        "dropped_groups": pytest.approx(0.5),
    }


def test_groups_of_one_have_no_spread_to_speak_of() -> None:
    metrics = advantages.rollout_metrics(rewarded([1.0, 0.0, 0.5, 0.5], [0, 1, 2, 2]))
    assert metrics["flat_groups"].tolist() == [1.0, 1.0]
    assert metrics["reward_spread"].tolist() == [0.0, 1.0]
    alone_each = advantages.rollout_metrics(rewarded([1.0, 0.0], [0, 1]))
    assert alone_each["flat_groups"][1] == alone_each["reward_spread"][1] == 0
