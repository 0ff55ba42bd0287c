"""From a batch to changed weights: credit, epochs, minibatches, micro-batches, one optimizer step after another.

What is learnt does not depend on how the work is cut: losses are sums, divided by what the algorithm counts over the
whole optimizer step, so micro-batches of any size and any number of processes give the same update up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from agents.llm.packing import Pack
from agents.llm.policy import Policy
from agents.llm.transcript import Transcript
from algos import losses
from algos.algorithm import Algorithm
from algos.batch import Batch, Credit, mean_metric
from algos.distributed import Ranks, Replicas, Spread
from algos.room import Room
from algos.sharding import NOTHING, Shards
from algos.tally import Tally
from algos.training import Training

MAX_BAD_UPDATES = 10
"""Updates in a row with a loss or gradient that is not finite, after which a run gives up."""
T = TypeVar("T")


class Updater:
    """Trains a policy on batches.

    Args:
        policy: What is trained; its weights are those of the first rank from here on.
        algorithm: Whose credit and loss it is.
        training: The run's settings.
        ranks: Who has the other groups of each batch.

    Raises:
        ValueError: An algorithm with values, and a policy without a value head.
    """

    def __init__(self, policy: Policy, algorithm: Algorithm, training: Training[Any], ranks: Ranks) -> None:
        if algorithm.uses_values and policy.value_head is None:
            raise ValueError(
                "the algorithm learns values: give it a policy with a head, Policy.from_pretrained(…, value_head=True)"
            )
        self.policy = policy
        self.algorithm = algorithm
        self.training = training
        self.ranks = ranks
        cut = training.shard and ranks.size > 1
        self.spread: Spread = Shards(policy, ranks) if cut else Replicas(policy, ranks)
        self.weights = policy.trainable()
        if algorithm.uses_reference:
            policy.keep_reference()
        self._sets = [(training.optimization, _without_head(self.weights))]
        head = {name: weight for name, weight in self.weights.items() if name not in self._sets[0][1]}
        if head:
            lr = training.value_lr or training.optimization.lr
            self._sets.append((replace(training.optimization, method="adamw", lr=lr), head))
        self._optimizers = [settings.optimizers(weights) for settings, weights in self._sets]
        self.memory: Mapping[str, float] = algorithm.start()
        self.skipped = 0
        """Updates left out because they were not finite."""
        self.bad = 0
        """How many of them in a row, to the last update."""
        self.room = Room(policy, training.micro_tokens, self.spread.recovers)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """All that hold moments."""
        return [optimizer for optimizers in self._optimizers for optimizer in optimizers]

    def update(self, batch: Batch, groups: int, step: int) -> Tally:
        """Learn from a batch.

        Args:
            batch: Of this rank.
            groups: K, groups of all ranks.
            step: Number of the step.

        Returns:
            Figures of this rank, those that all ranks have in common counted once a rank.

        Raises:
            RuntimeError: Losses or gradients are not finite again and again.
            torch.OutOfMemoryError: Not even one transcript fits.
        """
        tally = Tally()
        batch = self._complete(batch)
        credit = self.algorithm.credit(batch, self.memory, self.ranks.total)
        self.memory = dict(credit.memory)
        tally.add_metrics(credit.metrics)
        tally.add("trained", float(credit.train.sum()), batch.num_trajectories)
        rate = 0.0
        for (settings, _), optimizers in zip(self._sets, self._optimizers, strict=True):
            rate = settings.set_rate(optimizers, step, self.training.steps)
        tally.add("rate", rate)
        for epoch in range(self.algorithm.epochs):
            order = np.random.default_rng([self.training.seed, 3, step, epoch]).permutation(groups)
            for part in range(self.algorithm.minibatches):
                chosen = torch.zeros(max(groups, 1), dtype=torch.bool, device=batch.group.device)
                chosen[torch.from_numpy(order[part :: self.algorithm.minibatches]).to(chosen.device)] = True
                self._optimizer_step(batch, credit, chosen[batch.group], epoch == part == 0, tally)
        tally.add("skipped", self.skipped)
        return tally

    def _complete(self, batch: Batch) -> Batch:
        """With what the algorithm wants to know of each token beforehand."""
        algorithm, policy = self.algorithm, self.policy
        if algorithm.uses_reference:
            with policy.reference():
                batch = replace(batch, reference=self._read(batch, lambda pack: self._score(pack).logprobs))
        if algorithm.uses_values:
            batch = replace(
                batch, values=self._read(batch, lambda pack: losses.given(self._score(pack).values, "values"))
            )
        return batch

    @torch.no_grad()
    def _read(self, batch: Batch, of: Callable[[Pack], Tensor]) -> Tensor:
        """float32 [N]: what `of` says of the tokens of a pack, for all tokens of a batch."""

        def work(cut: Sequence[Pack], besides: int) -> Tensor:
            result = torch.zeros(batch.num_tokens, device=batch.row.device)
            for pack in cut:
                result[batch.locate(pack.index.to(result.device))] = of(pack)
            for _ in range(besides):
                self._score(NOTHING)
            return result

        return self._fitting(batch.transcripts, work)

    def _optimizer_step(self, batch: Batch, credit: Credit, rows: Tensor, first: bool, tally: Tally) -> None:
        """One optimizer step from the trajectories `rows`, bool [B]."""
        train = credit.train & rows & (batch.lengths > 0)
        divisor, trained = self.ranks.total(torch.stack([credit.divisor[rows].sum(), train.sum().double()])).tolist()
        if not (divisor > 0 and trained):
            return  # on all ranks
        numbers = torch.nonzero(train).flatten()
        transcripts = [batch.transcripts[number] for number in numbers.tolist()]

        def work(cut: Sequence[Pack], besides: int) -> tuple[float, Tally]:
            self._clear()
            loss, figures = 0.0, Tally()
            for pack in cut:
                index = pack.index.to(numbers.device)
                tokens = batch.locate(torch.stack([numbers[index[:, 0]], index[:, 1]], dim=1))
                scores = self._score(pack)
                part = batch.part(tokens, credit)
                result = self.algorithm.loss(part, scores.logprobs, scores.values, scores.entropy)
                self.spread.backward(result.total / divisor)
                loss += float(result.total.detach()) / divisor
                metrics = dict(result.metrics)
                if first:
                    now = scores.logprobs.detach()
                    metrics["mismatch_kl"] = mean_metric(losses.k3(part.old_logprobs.to(now.dtype), now))
                figures.add_metrics(metrics)
            for _ in range(besides):
                scores = self._score(NOTHING)
                parts = [part for part in (scores.logprobs, scores.values) if part is not None]
                torch.autograd.backward(parts, [torch.zeros_like(part) for part in parts])
            return loss, figures

        loss, figures = self._fitting(transcripts, work)
        loss = float(self.ranks.total(torch.tensor(loss, dtype=torch.float64)))
        norm = self.spread.conclude(self.training.optimization.clip)
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self.bad = 0
            tally.join(figures)
            tally.add("loss", loss)
            tally.add("gradient_norm", norm)
        else:
            self._skip(loss, norm)
        self._clear()

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped += 1
        self.bad += 1
        if self.bad >= MAX_BAD_UPDATES:
            raise RuntimeError(
                f"{self.bad} updates in a row were not finite (loss {loss}, gradient norm {norm}); use a smaller lr, "
                "or dtype='float32', and go on from the last checkpoint with --resume"
            )

    def _score(self, pack: Pack) -> Any:
        return self.policy(pack, self.training.temperature, self.algorithm.uses_entropy)

    def _fitting(self, transcripts: Sequence[Transcript], work: Callable[[Sequence[Pack], int], T]) -> T:
        """What `work` makes of the transcripts in packs, and of so many passes besides that only others need."""

        def together(cut: Sequence[Pack]) -> T:
            with self.spread.passes(len(cut)) as besides:
                return work(cut, besides)

        return self.room.fit(transcripts, together)

    def _clear(self) -> None:
        for weight in self.weights.values():
            weight.grad = None


def _without_head(weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in weights.items() if not name.startswith("value_head.")}
