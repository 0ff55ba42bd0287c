"""What list-wise GRPO expects is the gradient of the expected reward: exactly, with every trajectory and group listed.

The other half of the claim is tested too: each of std, means over trajectories, clipping and dropping of groups bends
the direction, and by how much is what the docstring of `algos.listwise_grpo` tells.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from algos.listwise_grpo import ListwiseGRPO
from tests.algos.toy import (
    AT,
    CONTEXTS,
    IMPOSSIBLE,
    LENGTHS,
    PATHS,
    ROUTES,
    TASKS,
    TOKENS,
    ToyPolicy,
    bias,
    clip_bias,
    compare,
    expected_gradient,
    path_batch,
    policies,
    tokens_of,
)

PLAIN = {"loss_mean": "constant", "constant": 1.0, "drop": "none"}


@pytest.fixture(scope="module")
def stages() -> dict[str, ToyPolicy]:
    return policies()


def test_the_toy_lists_every_trajectory(stages: dict[str, ToyPolicy]) -> None:
    for policy in stages.values():
        assert torch.allclose(policy.path_logprobs().exp().view(TASKS, -1).sum(1), torch.ones(2, dtype=torch.float64))
    assert {len(path.turns) for path in PATHS} == {1, 2, 3}
    assert set(LENGTHS) == {2, 3, 4}


def test_observations_steer_the_toy() -> None:
    assert any(3 in context for context in CONTEXTS)
    assert any(4 in context and 5 in context for context in CONTEXTS)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_expectation_is_the_gradient(size: int, seed: int) -> None:
    policy = ToyPolicy(seed)
    truth = policy.gradient(policy.expected_reward())
    own = expected_gradient(ListwiseGRPO(**PLAIN), policy, size)
    others = expected_gradient(ListwiseGRPO(**PLAIN, baseline="leave_one_out"), policy, size)
    assert truth.norm() > 1e-2
    assert torch.allclose(own, (size - 1) / size * truth, rtol=0, atol=1e-6 * float(truth.norm()))
    assert torch.allclose(others, truth, rtol=0, atol=1e-6 * float(truth.norm()))


def test_exact_expectation_by_the_plainest_loop() -> None:
    """Every ordered pair as a batch of its own, with autograd through the policy: no shortcut of the toy's."""
    policy, algorithm = ToyPolicy(2), ListwiseGRPO(**PLAIN)
    chance = policy.path_logprobs().detach().exp()
    logprobs = policy.logprobs()
    expected = torch.zeros((), dtype=torch.float64)
    for task, one, two in product(range(TASKS), range(len(ROUTES)), range(len(ROUTES))):
        pair = np.array([one, two]) + task * len(ROUTES)
        batch = path_batch(pair, np.zeros(2, np.int64), policy)
        credit = algorithm.credit(batch, {})
        now = logprobs[tokens_of(pair)[0]]
        loss = algorithm.loss(batch.part(torch.arange(batch.num_tokens), credit), now, None, now.detach())
        expected = expected + chance[pair].prod() / TASKS * loss.total / credit.divisor.sum()
    truth = policy.gradient(policy.expected_reward())
    assert torch.allclose(-policy.gradient(expected), 0.5 * truth, rtol=0, atol=1e-9)


def test_groups_of_any_size_are_unbiased_with_leave_one_out() -> None:
    """After failures groups have different sizes; the own-sample mean then weighs tasks by (G - 1) / G."""
    policy = ToyPolicy(0)
    sizes = [expected_gradient(ListwiseGRPO(**PLAIN, baseline="leave_one_out"), policy, size) for size in (2, 4)]
    assert torch.allclose(sizes[0], sizes[1], atol=1e-12)


def test_divergence_in_the_reward_has_the_gradient_of_the_divergence_of_whole_trajectories() -> None:
    policy, reference = ToyPolicy(0), ToyPolicy(1)
    algorithm = ListwiseGRPO(**PLAIN, baseline="leave_one_out", kl="reward", kl_coef=0.3)
    ratio = policy.path_logprobs() - reference.path_logprobs().detach()
    truth = policy.gradient(policy.expected_reward() - 0.3 * (policy.path_logprobs().exp() * ratio).sum() / TASKS)
    assert torch.allclose(expected_gradient(algorithm, policy, 3, reference=reference), truth, atol=1e-9)


def test_divergence_in_the_loss_has_the_gradient_of_the_divergence_at_each_visited_state() -> None:
    """k3 with importance correction: what the policy's choices do to where it goes is left out, and nothing else."""
    policy, reference = ToyPolicy(0), ToyPolicy(1)
    algorithm = ListwiseGRPO(**PLAIN, baseline="leave_one_out", kl="loss", kl_coef=0.3)
    log_ratio = (policy.table() - reference.table().detach()).masked_fill(IMPOSSIBLE != 0, 0.0)
    divergence = (policy.table().exp() * log_ratio).sum(1)[AT]
    visits = policy.path_logprobs().detach().exp()[[path for path, _ in TOKENS]] / TASKS
    truth = policy.gradient(policy.expected_reward() - 0.3 * (visits * divergence).sum())
    assert torch.allclose(expected_gradient(algorithm, policy, 3, reference=reference), truth, atol=1e-9)


def test_the_clip_does_nothing_while_the_policy_is_the_one_that_sampled() -> None:
    policy = ToyPolicy(0)
    clipped = expected_gradient(ListwiseGRPO(**PLAIN), policy, 2)
    free = expected_gradient(ListwiseGRPO(**PLAIN, clip_low=None, clip_high=None), policy, 2)
    sequence = expected_gradient(ListwiseGRPO(**PLAIN, ratio="sequence", clip_low=3e-4, clip_high=4e-4), policy, 2)
    assert torch.allclose(clipped, free, atol=1e-12)
    assert torch.allclose(clipped, sequence, atol=1e-12)


# What bends the direction. Groups of 4 here, so that it takes a second; the docstring has groups of 8.


def test_std_bends(stages: dict[str, ToyPolicy]) -> None:
    for policy in stages.values():
        cosine, _ = bias({**PLAIN, "std": True}, policy, 4)
        assert 0.8 < cosine < 0.9999


def test_means_over_trajectories_bend(stages: dict[str, ToyPolicy]) -> None:
    for policy in stages.values():
        cosine, _ = bias({"loss_mean": "sequence", "drop": "none"}, policy, 4)
        assert 0.9 < cosine < 0.9999


def test_a_token_mean_bends_less_with_more_groups_a_step(stages: dict[str, ToyPolicy]) -> None:
    for policy in stages.values():
        alone, _ = bias({"drop": "none"}, policy, 4, groups=1)
        many, ratio = bias({"drop": "none"}, policy, 4, groups=64)
        assert alone < 0.9999
        assert 1 - many < (1 - alone) / 1000
        assert ratio == pytest.approx(0.75, abs=2e-3)


def test_dropping_punished_groups_bends_a_weak_policy(stages: dict[str, ToyPolicy]) -> None:
    cosine, ratio = bias({"loss_mean": "constant"}, stages["weak"], 4)
    assert cosine < 0.99
    assert ratio < 0.75
    # A policy that is hardly ever punished throughout has nothing to drop.
    assert bias({"loss_mean": "constant"}, stages["strong"], 4)[0] > 0.9999


def test_dropping_punished_groups_makes_steps_longer_where_the_mean_is_over_what_is_left(
    stages: dict[str, ToyPolicy],
) -> None:
    _, left = bias({}, stages["weak"], 4, groups=64)
    _, constant = bias({"loss_mean": "constant"}, stages["weak"], 4)
    assert left > 1.3 * constant


def test_clipping_bends_once_the_policy_has_moved(stages: dict[str, ToyPolicy]) -> None:
    free = {"clip_low": None, "clip_high": None}
    near, far = (clip_bias(free, stages["middling"], step, 3)[0] for step in (0.02, 0.3))
    assert far < near < 1
    clipped = clip_bias({}, stages["middling"], 0.3, 3)
    assert clipped[0] < far - 0.01
    assert clip_bias({}, stages["middling"], 0.02, 3)[0] == pytest.approx(near)  # no ratio has left the clip yet


def test_without_clipping_the_ratio_of_tokens_is_only_nearly_the_gradient() -> None:
    """The product over the trajectory would be exact; its variance is why nobody uses it."""
    behaviour = ToyPolicy(0)
    policy = behaviour.moved(behaviour.gradient(behaviour.expected_reward()), 0.3)
    truth = policy.gradient(policy.expected_reward())
    free = ListwiseGRPO(**PLAIN, baseline="leave_one_out", clip_low=None, clip_high=None)
    cosine, _ = compare(expected_gradient(free, policy, 3, behaviour=behaviour), truth)
    assert 0.9 < cosine < 0.9999
