"""Credit: how much better than expected a trajectory, a turn or a token was.

Group baselines for list-wise GRPO, generalised advantage estimation for PPO. All in float64 and without a loop over
tokens; B trajectories, N sampled tokens, K groups as in `algos.batch`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from algos.algorithm import Total
from algos.batch import Batch, ratio_metric

STD_EPSILON = 1e-4
"""Added to the standard deviation of a group, as TRL does."""


def group_sum(x: Tensor, batch: Batch) -> Tensor:
    """float64 [K]: sum of `x` [B] over each group."""
    zeros = torch.zeros(batch.num_groups, dtype=torch.float64, device=x.device)
    return zeros.index_add(0, batch.group, x.double())


def group_size(batch: Batch) -> Tensor:
    """float64 [K]: trajectories of each group; 0 where all of them failed."""
    return group_sum(torch.ones_like(batch.rewards), batch)


def group_range(rewards: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """float64 [K] each: least and greatest reward of each group; inf and -inf where it is empty."""
    empty = torch.full((batch.num_groups,), torch.inf, dtype=torch.float64, device=rewards.device)
    return (
        empty.scatter_reduce(0, batch.group, rewards, "amin"),
        (-empty).scatter_reduce(0, batch.group, rewards, "amax"),
    )


def flat_groups(rewards: Tensor, batch: Batch) -> Tensor:
    """bool [K]: groups whose rewards are all the same, from which nothing can be learnt."""
    least, greatest = group_range(rewards, batch)
    return least >= greatest


def all_negative(batch: Batch) -> Tensor:
    """bool [K]: groups in which every trajectory was punished."""
    return group_range(batch.rewards, batch)[1] < 0


def group_advantages(rewards: Tensor, batch: Batch, leave_one_out: bool = False, std: bool = False) -> Tensor:
    """float64 [B]: reward over what the group got on average.

    Exactly 0 in groups whose rewards are all the same, those of one trajectory included.

    Args:
        rewards: float64 [B].
        batch: Whose groups they are.
        leave_one_out: Compare with the mean of the others: G/(G-1) times the difference to the mean of all.
        std: Divide by the group's standard deviation (with G - 1) plus `STD_EPSILON`.
    """
    size = group_size(batch)
    advantages = rewards - (group_sum(rewards, batch) / size)[batch.group]
    advantages = torch.where(flat_groups(rewards, batch)[batch.group], 0.0, advantages)
    others = (size - 1).clamp(min=1)
    if std:
        spread = (group_sum(advantages**2, batch) / others).sqrt()
        advantages = advantages / (spread + STD_EPSILON)[batch.group]
    if leave_one_out:
        advantages = advantages * (size / others)[batch.group]
    return advantages


def discounted_sums(x: Tensor, row: Tensor, factor: float) -> Tensor:
    """float64 [N]: x[n] + factor * x[n + 1] + factor^2 * x[n + 2] + ... to the end of the row of n.

    Each pass doubles the number of terms, so that T steps of a row take log2(T) passes over all rows at once.

    Args:
        x: float64 [N].
        row: int64 [N], ascending.
        factor: 0 to 1.
    """
    sums, reach = x.double(), 1
    while reach < len(x):
        same = row[reach:] == row[:-reach]
        if not bool(same.any()):
            break
        ahead = torch.where(same, sums[reach:], 0.0) * factor**reach
        sums = torch.cat([sums[:-reach] + ahead, sums[-reach:]])
        reach *= 2
    return sums


def gae(rewards: Tensor, values: Tensor, row: Tensor, gamma: float, lam: float) -> Tensor:
    """float64 [N]: generalised advantage estimates (Schulman et al., arXiv:1506.02438, eq. 16).

    Step n + 1 follows step n where both are of one row: between the last token of a turn and the first of the next lie
    no steps, however long the observation. After the last step of a row the value is 0.

    Args:
        rewards: float64 [N], paid for each step.
        values: float [N], of what came before each step.
        row: int64 [N], ascending.
        gamma: Discount of a step.
        lam: 0: one step ahead; 1: all that followed.
    """
    values = values.double()
    following = torch.zeros_like(values)
    following[:-1] = torch.where(row[1:] == row[:-1], values[1:], 0.0)
    return discounted_sums(rewards + gamma * following - values, row, gamma * lam)


def turn_steps(batch: Batch) -> tuple[Tensor, Tensor]:
    """The turns as steps: int64 [N], number of each token's step, and int64 [S], number of each step's first token."""
    starts = torch.ones(batch.num_tokens, dtype=torch.bool, device=batch.row.device)
    starts[1:] = (torch.diff(batch.row) != 0) | (torch.diff(batch.turn) != 0)
    return starts.cumsum(0) - 1, torch.nonzero(starts).flatten()


def turn_gae(rewards: Tensor, values: Tensor, batch: Batch, gamma: float, lam: float) -> Tensor:
    """float64 [N]: the same with a whole turn as one step; all its tokens share its advantage.

    A turn's value is that of its first token: what was known before the turn.
    """
    step, first = turn_steps(batch)
    paid = torch.zeros(len(first), dtype=torch.float64, device=rewards.device).index_add(0, step, rewards.double())
    return gae(paid, values[first], batch.row[first], gamma, lam)[step]


def whiten(x: Tensor, total: Total) -> Tensor:
    """float64 [N]: `x` with mean 0 and standard deviation 1 over the tokens of all ranks; 0 where it is constant."""
    count, first = total(torch.stack([torch.full_like(x.sum(), float(len(x))), x.sum()]))
    centred = x - first / count.clamp(min=1)
    spread = (total(centred.square().sum()) / count.clamp(min=1)).sqrt()
    return torch.where(spread > 1e-8, centred / spread.clamp(min=1e-8), 0.0)


def rollout_metrics(batch: Batch, dropped: Tensor | None = None) -> dict[str, Tensor]:
    """What a batch was like: rewards, their spread in the groups, and the entropy that its sampled tokens tell of.

    Args:
        batch: The batch.
        dropped: bool [K]: groups that are not learnt from.
    """
    size = group_size(batch)
    present, several = size > 0, size > 1
    mean = (group_sum(batch.rewards, batch) / size)[batch.group]
    spread = (group_sum((batch.rewards - mean) ** 2, batch) / size.clamp(min=1)).sqrt()
    groups = present.sum()
    metrics = {
        "reward": ratio_metric(batch.rewards.sum(), float(batch.num_trajectories)),
        "reward_spread": ratio_metric(spread[several].sum(), several.sum()),
        "sampled_entropy": ratio_metric(-batch.old_logprobs.double().sum(), float(batch.num_tokens)),
        "best_of_group": ratio_metric(group_range(batch.rewards, batch)[1][present].sum(), groups),
        "flat_groups": ratio_metric((flat_groups(batch.rewards, batch) & several).sum(), several.sum()),
    }
    if dropped is not None:
        metrics["dropped_groups"] = ratio_metric((dropped & present).sum(), groups)
    return metrics
