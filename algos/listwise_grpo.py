"""List-wise GRPO, stage 1 of AgenticRec (arXiv:2603.21613; "RTA" in its second version).

TODO
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from algos import advantages, losses
from algos.algorithm import Total, alone, check_choices
from algos.batch import Batch, Credit, Loss, Part
from algos.requests import Requests, draw


@dataclass(frozen=True)
class ListwiseGRPO:
    """Settings of list-wise GRPO; the defaults are the paper's.

    Raises:
        ValueError: A setting outside its range, or two that do not fit together.
    """

    groups: int = 64
    """Groups a step: tasks that are drawn without replacement (the paper's batch of 64)."""
    group_size: int = 8
    """Trajectories a group, G."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What a reward is compared with: the mean of its group, itself included (paper), or the mean of the others."""
    std: bool = False
    """Divide advantages by the standard deviation of the group's rewards (GRPO as first published; not the paper)."""
    drop: Literal["negative", "flat", "none"] = "negative"
    """Groups that are left out of loss and divisor: those whose rewards are all negative (paper), those whose rewards
    are all the same (DAPO), or none."""
    loss_mean: Literal["token", "sequence", "constant"] = "token"
    """What losses are averaged over: all tokens of the step (DAPO), each trajectory and then all trajectories (GRPO as
    first published), or a constant number of tokens a trajectory (Dr. GRPO)."""
    constant: float = 6144.0
    """Tokens a trajectory by which sums are divided where `loss_mean` is "constant"; say, the most that it may have."""
    clip_low: float | None = 0.2
    """How far below 1 the importance ratio still has a gradient where the advantage is negative; None: anywhere."""
    clip_high: float | None = 0.28
    """How far above 1 the importance ratio still has a gradient where the advantage is positive; None: anywhere."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio: of each token, or the geometric mean over the trajectory (GSPO; clip it at 3e-4 and 4e-4)."""
    kl: Literal["none", "reward", "loss"] = "none"
    """Where the divergence from the frozen reference enters: nowhere, in the reward (k1, summed over the trajectory),
    or in the loss (k3 of each token, importance-corrected)."""
    kl_coef: float = 1e-3
    """What one nat of divergence costs, in units of reward, where `kl` is not "none"."""
    epochs: int = 1
    """Passes over each batch; from the second on, the importance ratio corrects for the policy having moved."""
    minibatches: int = 1
    """Optimizer steps a pass."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in (("groups", 1), ("group_size", 2), ("epochs", 1), ("minibatches", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}; got {getattr(self, name)}")
        if self.minibatches > self.groups:
            raise ValueError(f"a group is not split: at most {self.groups} minibatches; got {self.minibatches}")
        if not self.constant > 0:
            raise ValueError(f"constant is a positive number of tokens; got {self.constant}")
        if not self.kl_coef >= 0:
            raise ValueError(f'kl_coef is not negative; got {self.kl_coef}. For no divergence, set kl="none"')
        losses.check_clip(self.clip_low, self.clip_high, self.ratio)

    @property
    def uses_reference(self) -> bool:
        """Whether a batch must hold the reference's log-probabilities."""
        return self.kl != "none"

    @property
    def uses_values(self) -> bool:
        """GRPO has no value head."""
        return False

    @property
    def uses_entropy(self) -> bool:
        """Entropy is reported and has no gradient."""
        return False

    def requests(self, step: int, num_tasks: int, seed: int) -> Requests:
        """The episodes of a step; see `algos.requests.draw`."""
        return draw(step, self.groups, self.group_size, num_tasks, seed)

    def start(self) -> Mapping[str, float]:
        """Nothing lives from one batch to the next."""
        return {}

    def credit(self, batch: Batch, memory: Mapping[str, float], total: Total = alone) -> Credit:
        """The same advantage for all tokens of a trajectory: what it got over the baseline of its group."""
        rewards = batch.rewards
        if self.kl == "reward":
            divergence = losses.k1(batch.old_logprobs, losses.given(batch.reference, "reference"))
            rewards = rewards - self.kl_coef * batch.trajectory_sum(divergence)
        dropped = self._dropped(batch)
        keep = ~dropped[batch.group]
        advantage = advantages.group_advantages(rewards, batch, self.baseline == "leave_one_out", self.std) * keep
        weights, divisor = losses.mean_weights(batch, self.loss_mean, self.constant)
        return Credit(
            advantages=advantage[batch.row],
            weights=weights * keep[batch.row],
            # A constant divisor stays one: groups that are dropped count in it.
            divisor=divisor if self.loss_mean == "constant" else divisor * keep,
            train=keep if self.kl == "loss" else advantage != 0,
            metrics=advantages.rollout_metrics(batch, dropped),
        )

    def _dropped(self, batch: Batch) -> Tensor:
        """bool [K]"""
        if self.drop == "negative":
            return advantages.all_negative(batch)
        if self.drop == "flat":
            return advantages.flat_groups(batch.rewards, batch)
        return torch.zeros(batch.num_groups, dtype=torch.bool, device=batch.rewards.device)

    def loss(self, part: Part, logprobs: Tensor, values: Tensor | None, entropy: Tensor) -> Loss:
        """The clipped policy gradient, and the divergence where it is in the loss."""
        ratio = losses.importance_ratio(logprobs, part, self.ratio)
        loss = losses.clipped_policy_loss(ratio, part.advantages, self.clip_low, self.clip_high)
        metrics = losses.policy_metrics(ratio, logprobs, entropy, part, self.clip_low, self.clip_high)
        if self.kl == "loss":
            reference = losses.given(part.reference, "reference")
            loss = loss + self.kl_coef * losses.corrected_k3(logprobs, part.old_logprobs, reference)
        return Loss((loss * part.weights).sum(), metrics)
