"""The records between rollouts, an algorithm and its learner: what was sampled, what it was worth, what a loss returns.

All that is token-wise is flat over the N sampled tokens of B trajectories: entry n speaks of sampled token n given all
that came before it. There is no padding, no shift and no entry for a prompt or observation token, so none can carry a
gradient or a reward by mistake; a micro-batch is a list of token numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from agents.llm.transcript import Transcript


@dataclass(frozen=True, eq=False)
class Batch:
    """N sampled tokens of B trajectories, trajectory by trajectory and in the order in which they were sampled.

    Raises:
        ValueError: Tensors that do not fit together, or a reward that is not finite.
    """

    rewards: Tensor
    """float64 [B]"""
    group: Tensor
    """int64 [B]: number of the group, 0 to K - 1: trajectories of one task and one pool, whatever their text."""
    row: Tensor
    """int64 [N], ascending: number of the token's trajectory."""
    position: Tensor
    """int64 [N], ascending within a trajectory: place of the token in its transcript."""
    turn: Tensor
    """int64 [N]: number of the token's turn in its trajectory."""
    old_logprobs: Tensor
    """float [N]: log-probability with which the token was sampled, at the sampling temperature."""
    reference: Tensor | None = None
    """float [N]: log-probability under the frozen reference, at the sampling temperature."""
    values: Tensor | None = None
    """float [N]: value, before the update, of what came before the token."""
    pair: Tensor | None = None
    """bool [B]: whether a pair was asked about and not a list; None: nobody said."""
    transcripts: tuple[Transcript, ...] = ()
    """B transcripts, or none."""

    def __post_init__(self) -> None:
        trajectories, tokens = len(self.rewards), len(self.row)
        for name, size in (("rewards", "B"), ("group", "B"), ("row", "N"), ("position", "N"), ("turn", "N")):
            _check_shape(name, getattr(self, name), size, trajectories if size == "B" else tokens)
        for name in ("old_logprobs", "reference", "values"):
            if getattr(self, name) is not None:
                _check_shape(name, getattr(self, name), "N", tokens)
        if self.pair is not None:
            _check_shape("pair", self.pair, "B", trajectories)
        if self.transcripts and len(self.transcripts) != trajectories:
            raise ValueError(f"one transcript a trajectory; got {len(self.transcripts)} for {trajectories} rewards")
        if not bool(torch.isfinite(self.rewards).all()):
            bad = torch.nonzero(~torch.isfinite(self.rewards)).flatten().tolist()
            raise ValueError(f"rewards of trajectories {bad} are not finite; leave failed episodes out of the batch")
        if trajectories and int(self.group.min()) < 0:
            raise ValueError("group numbers start at 0")
        if tokens:
            if int(self.row.min()) < 0 or int(self.row.max()) >= trajectories:
                raise ValueError(f"row numbers trajectories, 0 to {trajectories - 1}")
            step = torch.diff(self.row)
            if bool((step < 0).any()) or bool(((step == 0) & (torch.diff(self.position) <= 0)).any()):
                raise ValueError("tokens stand trajectory by trajectory, each in the order in which it was sampled")

    @classmethod
    def of(
        cls,
        transcripts: Sequence[Transcript],
        rewards: Sequence[float],
        group: Sequence[int],
        device: torch.device | str | None = None,
        pair: Sequence[bool] | None = None,
    ) -> Batch:
        """The batch of finished episodes.

        Args:
            transcripts: B transcripts.
            rewards: B rewards.
            group: B group numbers.
            device: Where the tensors are to be.
            pair: B times whether a pair was asked about.
        """
        places = [np.flatnonzero(transcript.mask) for transcript in transcripts]
        turns = [
            np.repeat(np.arange(len(transcript.turns)), [turn.end - turn.start for turn in transcript.turns])
            for transcript in transcripts
        ]
        logprobs = [transcript.logprobs[place] for transcript, place in zip(transcripts, places, strict=True)]
        none = [np.zeros(0, np.int64)]
        return cls(
            rewards=torch.tensor(list(rewards), dtype=torch.float64, device=device),
            group=torch.tensor(list(group), dtype=torch.int64, device=device),
            row=torch.from_numpy(np.repeat(np.arange(len(places)), [len(place) for place in places])).to(device),
            position=torch.from_numpy(np.concatenate([*places, *none])).to(device),
            turn=torch.from_numpy(np.concatenate([*turns, *none]).astype(np.int64)).to(device),
            old_logprobs=torch.from_numpy(np.concatenate([*logprobs, np.zeros(0, np.float32)])).to(device),
            pair=None if pair is None else torch.tensor(list(pair), dtype=torch.bool, device=device),
            transcripts=tuple(transcripts),
        )

    @property
    def num_trajectories(self) -> int:
        """B."""
        return len(self.rewards)

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.row)

    @cached_property
    def num_groups(self) -> int:
        """K, groups that lost all their trajectories included."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @cached_property
    def lengths(self) -> Tensor:
        """int64 [B]: sampled tokens of each trajectory."""
        return torch.bincount(self.row, minlength=self.num_trajectories)

    @cached_property
    def last(self) -> Tensor:
        """bool [N]: whether the token is the last that was sampled in its trajectory."""
        return torch.cat([torch.diff(self.row) > 0, self.row.new_ones(min(1, len(self.row)), dtype=torch.bool)])

    def trajectory_sum(self, x: Tensor) -> Tensor:
        """float64 [B]: sum of `x` [N] over the tokens of each trajectory."""
        zeros = torch.zeros(self.num_trajectories, dtype=torch.float64, device=x.device)
        return zeros.index_add(0, self.row, x.double())

    def locate(self, index: Tensor) -> Tensor:
        """int64 [n]: numbers of the tokens at `index`, int64 [n, 2]: trajectory and place in its transcript.

        This is how the scores of a `Pack` find their tokens, whatever order the pack has them in.

        Raises:
            ValueError: A place where no token was sampled.
        """
        if not len(index):
            return index.new_zeros(0)
        if not self.num_tokens:
            raise ValueError(f"the batch has no sampled token; got {len(index)} places")
        stride = 1 + max(int(self.position.max()), int(index[:, 1].max()))
        keys, wanted = self.row * stride + self.position, index[:, 0] * stride + index[:, 1]
        found = torch.searchsorted(keys, wanted).clamp(max=self.num_tokens - 1)
        wrong = keys[found] != wanted
        if bool(wrong.any()):
            raise ValueError(f"no token was sampled at (trajectory, place) {index[wrong][:5].tolist()}")
        return found

    def part(self, tokens: Tensor, credit: Credit) -> Part:
        """What a loss needs to know of `tokens`, int64 [n], which are all tokens of some trajectories, in any order."""
        row = self.row[tokens]
        return Part(
            row=row,
            lengths=self.lengths[row],
            trajectories=self.num_trajectories,
            old_logprobs=self.old_logprobs[tokens],
            advantages=credit.advantages[tokens],
            weights=credit.weights[tokens],
            returns=None if credit.returns is None else credit.returns[tokens],
            reference=None if self.reference is None else self.reference[tokens],
            values=None if self.values is None else self.values[tokens],
        )


@dataclass(frozen=True, eq=False)
class Credit:
    """What an algorithm makes of a batch, before any update."""

    advantages: Tensor
    """float64 [N]"""
    weights: Tensor
    """float64 [N]: what the loss of each token is multiplied by before all are added up."""
    divisor: Tensor
    """float64 [B]: each trajectory's share of what that sum is divided by. The divisor of an optimizer step is the sum
    over all its trajectories, those of other ranks and those not in `train` included."""
    train: Tensor
    """bool [B]: trajectories that have a part in the gradient. The others need not be read again."""
    returns: Tensor | None = None
    """float64 [N]: what the values should have been."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """What the algorithm wants to be told with the next batch; plain numbers, kept in checkpoints."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """float64 [2] each: a sum and what to divide it by; both add up over ranks."""


@dataclass(frozen=True, eq=False)
class Part:
    """n tokens of a batch: all tokens of some of its trajectories."""

    row: Tensor
    """int64 [n]: trajectory of each token, numbered as in the batch."""
    lengths: Tensor
    """int64 [n]: sampled tokens of that trajectory."""
    trajectories: int
    """B, of the batch."""
    old_logprobs: Tensor
    """float [n]"""
    advantages: Tensor
    """float64 [n]"""
    weights: Tensor
    """float64 [n]"""
    returns: Tensor | None = None
    """float64 [n]"""
    reference: Tensor | None = None
    """float [n]"""
    values: Tensor | None = None
    """float [n]: before the update."""


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a part: a sum, so that parts add up to the loss of the batch however it was cut."""

    total: Tensor
    """float []: to be divided by the sum of `Credit.divisor` over the optimizer step."""
    metrics: Mapping[str, Tensor]
    """float64 [2] each: a sum and what to divide it by; both add up over parts and ranks."""


def ratio_metric(numerator: Tensor, denominator: Tensor | float) -> Tensor:
    """float64 [2]: a metric of the records above, from a sum and what to divide it by."""
    numerator = numerator.detach().double()
    return torch.stack([numerator, torch.as_tensor(denominator, dtype=torch.float64, device=numerator.device)])


def mean_metric(x: Tensor) -> Tensor:
    """float64 [2]: the mean of `x` [n] as a metric of the records above."""
    return ratio_metric(x.detach().double().sum(), float(x.numel()))


def _check_shape(name: str, x: Tensor, size: str, length: int) -> None:
    if x.shape != (length,):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it is [{size}], {size} = {length}")
