"""PPO (Schulman et al., arXiv:1707.06347) with a value head on the policy's backbone: the opponent of list-wise GRPO.

A state is all that stands before a sampled token; the step after the last token of a turn is the first of the next, so
observations, however long, are no steps. With `gae="turn"` a turn is one step: its tokens share one advantage and one
return, and its value is that of its first token. The reward is paid with the last sampled token; a divergence from the
reference is paid token by token (k1), with a coefficient that may adapt (Ziegler et al., arXiv:1909.08593).

The defaults follow "The N+ Implementation Details of RLHF with PPO" (arXiv:2403.17031): whitened advantages, clipped
values with a coefficient of 0.1, no discount, lambda 0.95, four passes over a batch; but no divergence from a
reference, as list-wise GRPO has none either, and one loss mean over all tokens of the step. By default each trajectory
is of another task: the value head is the baseline, and with as many trajectories a step as list-wise GRPO has, PPO sees
eight times as many tasks. With `group_size` several episodes of each task are played, as GRPO does, and the baseline is
the value head all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from algos import advantages, losses
from algos.algorithm import Total, alone, check_choices
from algos.batch import Batch, Credit, Loss, Part, mean_metric, ratio_metric
from algos.requests import draw
from algos.rollout import Rollout
from algos.stage import Stage


@dataclass(frozen=True)
class PPO:
    """PPO: a value head, and credit by token or by turn. An `algos.algorithm.Algorithm`.

    Raises:
        ValueError: A setting outside its range.
    """

    groups: int = 512
    """Tasks a step; by default as many trajectories a step as list-wise GRPO has."""
    group_size: int = 1
    """Trajectories a task. The value head makes groups needless, so by default each trajectory is of another task."""
    gae: Literal["token", "turn"] = "token"
    """What a step of the advantage estimate is: a sampled token, or a turn (whose tokens then share one advantage)."""
    gamma: float = 1.0
    """Discount of a step; 1, as a reward that is paid once at the end is worth the same however long the way."""
    lam: float = 0.95
    """How far ahead an advantage looks: 0 one step, with the value's bias; 1 to the end, with the reward's variance."""
    whiten: bool = True
    """Bring advantages to mean 0 and standard deviation 1 over the tokens of the step."""
    clip_low: float | None = 0.2
    """How far below 1 the importance ratio still has a gradient where the advantage is negative; None: anywhere."""
    clip_high: float | None = 0.2
    """How far above 1 the importance ratio still has a gradient where the advantage is positive; None: anywhere."""
    value_coef: float = 0.1
    """Weight of the value's squared error."""
    value_clip: float | None = 0.2
    """How far a value may move from the one before the update before its error stops pulling it; None: any distance."""
    entropy_coef: float = 0.0
    """What one nat of entropy a token is worth."""
    kl_coef: float = 0.0
    """What one nat of divergence from the frozen reference costs (k1 at each token); at first, with `kl_target`."""
    kl_target: float | None = None
    """Divergence, in nats a trajectory, towards which the coefficient adapts; None: the coefficient stays."""
    kl_horizon: int = 10_000
    """Trajectories over which the coefficient adapts."""
    epochs: int = 4
    """Passes over each batch."""
    minibatches: int = 1
    """Optimizer steps a pass."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("groups", "group_size", "epochs", "minibatches", "kl_horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is between 0 and 1; got {getattr(self, name)}")
        for name in ("value_coef", "entropy_coef", "kl_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is not negative; got {getattr(self, name)}")
        if self.minibatches > self.groups:
            raise ValueError(f"a group is not split: at most {self.groups} minibatches; got {self.minibatches}")
        if self.value_clip is not None and not self.value_clip > 0:
            raise ValueError(f"value_clip is a positive distance, or None for no clipping; got {self.value_clip}")
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_coef > 0):
            raise ValueError(
                "an adaptive divergence needs a positive kl_target, and a positive kl_coef to begin with, which is "
                f"multiplied up and down; got kl_target={self.kl_target}, kl_coef={self.kl_coef}"
            )
        losses.check_clip(self.clip_low, self.clip_high, "token")

    @property
    def uses_reference(self) -> bool:
        """Whether a batch must hold the reference's log-probabilities."""
        return self.kl_coef > 0

    @property
    def uses_values(self) -> bool:
        """PPO has a value head."""
        return True

    @property
    def uses_entropy(self) -> bool:
        """Whether the entropy given to the loss must carry a gradient."""
        return self.entropy_coef > 0

    def rollout(self, step: int, stage: Stage) -> Rollout:
        """Episodes of training tasks; see `algos.requests.draw`."""
        return stage.play(draw(step, self.groups, self.group_size, stage.num_tasks, stage.seed), step)

    def start(self) -> Mapping[str, float]:
        """The coefficient of the divergence, which may adapt."""
        return {"kl_coef": self.kl_coef} if self.uses_reference else {}

    def credit(self, batch: Batch, memory: Mapping[str, float], total: Total = alone) -> Credit:
        """Generalised advantages of tokens or turns; the reward is paid with the last sampled token."""
        values = losses.given(batch.values, "values").double()
        paid = torch.where(batch.last, batch.rewards[batch.row], 0.0)
        metrics = advantages.rollout_metrics(batch)
        if self.uses_reference:
            divergence = losses.k1(batch.old_logprobs, losses.given(batch.reference, "reference")).double()
            paid = paid - memory["kl_coef"] * divergence
            metrics["kl_coef"] = torch.tensor([memory["kl_coef"], 1.0], dtype=torch.float64, device=values.device)
            memory = self._adapt(memory, *total(ratio_metric(divergence.sum(), float(batch.num_trajectories))).tolist())
        if self.gae == "token":
            advantage = advantages.gae(paid, values, batch.row, self.gamma, self.lam)
            returns = advantage + values
        else:
            advantage = advantages.turn_gae(paid, values, batch, self.gamma, self.lam)
            step, first = advantages.turn_steps(batch)
            returns = advantage + values[first][step]
        metrics["explained_variance"] = _explained_variance(returns, values, total)
        weights, divisor = losses.mean_weights(batch, "token", 1.0)
        return Credit(
            advantages=advantages.whiten(advantage, total) if self.whiten else advantage,
            weights=weights,
            divisor=divisor,
            train=batch.lengths > 0,
            returns=returns,
            memory=memory,
            metrics=metrics,
        )

    def _adapt(self, memory: Mapping[str, float], divergence: float, trajectories: float) -> Mapping[str, float]:
        """The coefficient for the next batch (Ziegler et al., arXiv:1909.08593, sec. 2.2)."""
        if self.kl_target is None or not trajectories:
            return memory
        error = max(-0.2, min(0.2, divergence / trajectories / self.kl_target - 1))
        return {"kl_coef": memory["kl_coef"] * (1 + error * min(1.0, trajectories / self.kl_horizon))}

    def loss(self, part: Part, logprobs: Tensor, values: Tensor | None, entropy: Tensor) -> Loss:
        """The clipped policy gradient, the value's error and the entropy, of each token alike."""
        ratio = losses.importance_ratio(logprobs, part, "token")
        policy = losses.clipped_policy_loss(ratio, part.advantages, self.clip_low, self.clip_high)
        error = losses.value_loss(
            losses.given(values, "values"),
            losses.given(part.values, "values"),
            losses.given(part.returns, "returns"),
            self.value_clip,
        )
        loss = policy + self.value_coef * error
        if self.uses_entropy:
            loss = loss - self.entropy_coef * entropy
        metrics = losses.policy_metrics(ratio, logprobs, entropy, part, self.clip_low, self.clip_high)
        metrics["value_loss"] = mean_metric(error)
        return Loss((loss * part.weights).sum(), metrics)


def _explained_variance(returns: Tensor, values: Tensor, total: Total) -> Tensor:
    """float64 [2]: 1 - (squared error of the values) / (variance of the returns), as a metric."""
    count, first = total(torch.stack([torch.full_like(returns.sum(), float(len(returns))), returns.sum()]))
    variance = (returns - first / count.clamp(min=1)).square().sum()
    return ratio_metric(variance - (returns - values).square().sum(), variance)


if __name__ == "__main__":
    from algos.command import main

    raise SystemExit(main("ppo", prog="python -m algos.ppo"))
