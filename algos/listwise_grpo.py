"""List-wise GRPO, stage 1 of AgenticRec (arXiv:2603.21613; "RTA" in its second version), and its documented relatives.

A task is played G times from the same seed. Each trajectory is paid for the list it ends with
(`agentrec_env.rewards.agenticrec`), and all its sampled tokens share one advantage: its reward minus its group's mean.

**The paper's, and the defaults:** the mean includes the own reward; no division by the standard deviation; tokens of
prompts and observations carry nothing; groups whose rewards are all negative are dropped; G = 8.

**Where the paper is silent:** losses are averaged over all tokens of the step that were not dropped, and the importance
ratio of each token is clipped at 0.2 / 0.28 (both DAPO, arXiv:2503.14476; the clip does nothing in the first pass over
a batch). No divergence from a reference, one pass over a batch, one optimizer step. "Batch 64" is read as 64 tasks.
Dropped groups are not replaced. Trajectories lost to a fault leave a smaller group; one that is left alone has
advantage 0. The ratio's denominator is what the engine that sampled said, so that a difference between engine and
policy is corrected like any other.

**Where a run departs from the paper by default,** though the algorithm does not: its settings are for a policy of a
million weights.

    default of a run                                       the paper
    retries 1: one mistake is told and forgiven            0: it ends the trajectory
    all registered tools                                   seven (`agentrec_env.tools.PAPER`)
    temperature 1.0                                        0.6
    lr 1e-4, warm-up of 5 steps, decay to a tenth          1e-6
    4,096 tokens an episode with its prompt, 256 a turn    6,144 generated
    100 steps of 64 groups, however many tasks there are   3 epochs in batches of 64
    the embedded model                                     Qwen3-4B-Instruct-2507

`agentrec run --full --preset paper` has the right-hand column.

**What is exact.** With one optimizer step a batch, `loss_mean="constant"` and `drop="none"`, the expected step is
(G - 1)/G times the gradient of the expected reward J; with `baseline="leave_one_out"` it is that gradient
(tests/algos/test_unbiased.py: every trajectory of a toy with tools and every group listed, equal to 1e-6). All else
bends the direction. There, with G = 8 (`python -m tests.algos.toy`; cosine and ratio of norms to the gradient of J,
for a policy in whose groups 41 % are all negative, for one half way, and for one that nearly solves both tasks):

                                                       weak            half way        strong
    constant divisor, nothing dropped                  1.0000  0.875   1.0000  0.875   1.0000  0.875
    the same, leave-one-out                            1.0000  1.000   1.0000  1.000   1.0000  1.000
    the same, std                                      0.9664  1.598   0.9965  1.296   0.9760  1.546
    the same, all-negative groups dropped              0.9865  0.808   1.0000  0.874   1.0000  0.875
    token mean, 1 group a step                         0.9997  0.878   0.9998  0.883   0.9997  0.885
    token mean, 64 groups a step                       1.0000  0.875   1.0000  0.875   1.0000  0.875
    sequence mean                                      0.9911  0.863   0.9925  0.902   0.9653  0.934
    the defaults, 64 groups a step                     0.9866  1.361   1.0000  0.881   1.0000  0.875
    GRPO as first published (sequence mean, std)       0.9507  1.627   0.9851  1.339   0.8967  1.716

Dropping leans towards tasks that are solved now and then, and, as the mean is over what is left, makes steps longer
while much is dropped. In later passes the ratio of tokens leaves out that the policy now visits other states, and the
clip stops what has moved: at G = 4 the cosine is 0.9888 where token ratios lie between 0.72 and 1.24, and 0.9299 with
the clip; `ratio="sequence"` has 0.9913, and with GSPO's narrow clip next to nothing is left to follow (norm 0.09).

**Divergence.** `kl="reward"` has the gradient of KL(policy || reference) of whole trajectories. `kl="loss"` has that of
the divergence at each visited state, which ignores that choices lead to other states; k3 without its importance
correction would follow KL(reference || policy) instead (tests/algos/test_losses.py).
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
from algos.requests import draw
from algos.rollout import Rollout
from algos.stage import Stage


@dataclass(frozen=True)
class ListwiseGRPO:
    """List-wise GRPO, stage 1 of AgenticRec. The defaults are the paper's. An `algos.algorithm.Algorithm`.

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

    def rollout(self, step: int, stage: Stage) -> Rollout:
        """Episodes of training tasks; see `algos.requests.draw`."""
        return stage.play(draw(step, self.groups, self.group_size, stage.num_tasks, stage.seed), step)

    def start(self) -> Mapping[str, float]:
        """Nothing lives from one batch to the next."""
        return {}

    def credit(self, batch: Batch, memory: Mapping[str, float], total: Total = alone) -> Credit:
        """The same advantage for all tokens of a trajectory: what it got over the baseline of its group."""
        rewards = self.worth(batch)
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

    def worth(self, batch: Batch) -> Tensor:
        """float64 [B]: what each trajectory is worth beside the others of its group: its reward."""
        return batch.rewards

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


if __name__ == "__main__":
    from algos.command import main

    raise SystemExit(main("grpo", prog="python -m algos.listwise_grpo"))
