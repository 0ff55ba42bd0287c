"""Several processes as one learner: what they add up, agree on and tell each other, and nothing else.

Each process plays and learns from its own groups; gradients are added up once an optimizer step. That is what
`DistributedDataParallel` does, but its sums ride on backward passes, of which ranks here have different numbers: a rank
whose groups teach nothing has none. Every rank makes the same calls in the same order, whatever its groups were like.

    torchrun --nproc-per-node 2 -m algos.listwise_grpo --out runs/two
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

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


@contextmanager
def joined(device: str | None = None) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone.

    Args:
        device: "cpu" keeps off the GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "MASTER_ADDR" not in os.environ:
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
