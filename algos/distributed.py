"""Several processes as one learner: what they add up, agree on and tell each other, and nothing else.

Each process plays and learns from its own groups; gradients are added up once an optimizer step. That is what
`DistributedDataParallel` does, but its sums ride on backward passes, of which ranks here have different numbers: a rank
whose groups teach nothing has none. Every rank makes the same calls in the same order, whatever its groups were like.
Here each rank has all weights; `algos.sharding` cuts them up.

    torchrun --nproc-per-node 2 -m algos.listwise_grpo --out runs/two
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from agents.llm.card import Card
    from agents.llm.policy import Policy

T = TypeVar("T")

BUCKET = 2**24
"""Numbers of a gradient that are added up in one message."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; a run of one process talks to nobody."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """Where messages lie: a GPU under nccl."""

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to people."""
        return self.rank == 0

    def total(self, x: Tensor) -> Tensor:
        """`x` added up over ranks; an `algos.algorithm.Total`."""
        if self.size == 1:
            return x
        sums = x.detach().to(self.device or x.device, copy=True)
        dist.all_reduce(sums)
        return sums.to(x.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on some rank."""
        return bool(self.total(torch.tensor(float(flag), dtype=torch.float64)) > 0)

    def most(self, count: int) -> int:
        """The largest `count` of all ranks."""
        if self.size == 1:
            return count
        largest = torch.tensor(count, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, thing: T) -> list[T]:
        """What each rank has, in the order of ranks."""
        if self.size == 1:
            return [thing]
        things: list[T | None] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things  # type: ignore[return-value]

    def add_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of `weights` over ranks; a missing one is 0."""
        if self.size == 1:
            return
        gradients = []
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, sums in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(sums.view_as(gradient))

    def align(self, weights: Iterable[nn.Parameter]) -> None:
        """Give all ranks the weights of the first."""
        if self.size > 1:
            with torch.no_grad():
                for weight in weights:
                    dist.broadcast(weight.data, 0)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.any(False)


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (sum(g.numel() for g in bucket) > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


class Spread(Protocol):
    """How the weights of a policy lie on ranks. Each rank makes the same calls in the same order."""

    recovers: bool
    """Whether a rank that runs out of memory may begin its passes again while the others are at theirs."""

    def passes(self, count: int) -> AbstractContextManager[int]:
        """Within it the policy may be called.

        Args:
            count: How often this rank wants to.

        Returns:
            How often it must do so besides, for the sake of the others.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's `loss` to that of the sum over ranks."""

    def conclude(self, longest: float) -> float:
        """Have the gradient of the sum over ranks, cut to the norm `longest`; its norm before."""

    def whole(self) -> AbstractContextManager[None]:
        """Within it the policy's weights are plain tensors that each rank may read without the others."""

    def save(self, folder: Path, card: Card) -> None:
        """Write the policy, from the first rank; see `Policy.save_pretrained`."""


class Replicas:
    """All weights on each rank, which remain equal: gradients are added up once an optimizer step. A `Spread`.

    Args:
        policy: Gets the weights that it has on the first rank.
        ranks: Who has the others.
    """

    recovers = True

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self._policy = policy
        self._ranks = ranks
        self._weights = list(policy.trainable().values())
        ranks.align(self._weights)

    def passes(self, count: int) -> AbstractContextManager[int]:
        """Ranks do not meet in passes."""
        return nullcontext(0)

    def backward(self, loss: Tensor) -> None:
        """Gradients stay with the rank for now."""
        loss.backward()  # type: ignore[no-untyped-call]

    def conclude(self, longest: float) -> float:
        """All ranks add up their gradients."""
        self._ranks.add_gradients(self._weights)
        return float(nn.utils.clip_grad_norm_(self._weights, longest))

    def whole(self) -> AbstractContextManager[None]:
        """They always are."""
        return nullcontext()

    def save(self, folder: Path, card: Card) -> None:
        """The first has all it needs."""
        if self._ranks.first:
            self._policy.save_pretrained(folder, card=card)


def processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone.

    Args:
        device: "cpu" keeps off the GPUs.
    """
    if processes() == 1:
        yield Ranks()
        return
    place = None
    if device != "cpu" and torch.cuda.is_available():
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
