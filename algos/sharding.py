"""Weights cut into one piece a process: parameters, gradients and moments of the optimizer, by FSDP2 (`fully_shard`).

Each transformer block is gathered just before it computes, forwards and backwards, and its gradient is added up over
ranks while it is cut. So every pass through the policy is a conversation of all ranks, and all make equally many: a
rank that has fewer micro-batches than another, or none, adds passes over `NOTHING`, whose gradient is 0.

    torchrun --nproc-per-node 2 -m algos.listwise_grpo --shard --out runs/two
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from agents.llm.card import Card
from agents.llm.packing import packs
from agents.llm.policy import Policy
from agents.llm.transcript import Transcript, TurnSpan
from algos.distributed import Ranks
from algos.storage import check_storage

_TOKENS = np.zeros(2, np.int64), np.array([False, True]), np.zeros(2, np.float32)
NOTHING = packs([Transcript(*_TOKENS, prompt=1, shared=0, turns=(TurnSpan(1, 2, "stop"),))], 1)[0]
"""The smallest pack: one token and the next."""


class Shards:
    """One piece of each weight on each rank; an `algos.distributed.Spread`.

    Args:
        policy: Gets the weights that it has on the first rank, and its parameters become DTensors, cut along their
            first dimension.
        ranks: At least two.

    Raises:
        ValueError: An adapter, or a model whose blocks are not known.
        ImportError: A torch whose checkpoints of pieces are pickles.
    """

    recovers = False

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        if policy.adapted:
            raise ValueError("an adapter has few weights to cut up: leave shard out, or train all weights")
        names = set(policy.core._no_split_modules or ())
        blocks = [module for module in policy.core.modules() if type(module).__name__ in names]
        if not blocks:
            raise ValueError(f"{type(policy.core).__name__} does not say what its blocks are: leave shard out")
        check_storage()
        ranks.align(policy.trainable().values())
        mesh = init_device_mesh(policy.device.type, (ranks.size,))
        heads = [] if policy.value_head is None else [policy.value_head]  # in float32 where the model is not
        self._units: list[FSDPModule] = [fully_shard(module, mesh=mesh) for module in (*blocks, *heads, policy)]
        self._policy = policy
        self._ranks = ranks
        with torch.no_grad(), self.passes(1):
            policy(NOTHING)  # FSDP learns from its first pass which module holds all others

    @contextmanager
    def passes(self, count: int) -> Iterator[int]:
        """Weights are gathered as they are needed; afterwards only the pieces are left."""
        yield self._ranks.most(count) - count
        for unit in self._units:
            unit.reshard()

    def backward(self, loss: Tensor) -> None:
        """All ranks compute theirs at once. FSDP takes the mean, and a sum is wanted."""
        (loss * self._ranks.size).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def conclude(self, longest: float) -> float:
        """The gradient is added up already; each rank has its piece."""
        gradients = [_piece(weight.grad) for weight in self._policy.parameters() if weight.grad is not None]
        norm = self._ranks.total(get_total_norm(gradients).square()).sqrt()
        share = float((longest / (norm + 1e-6)).clamp(max=1))  # as clip_grad_norm_ has it
        for gradient in gradients:
            gradient.mul_(share)
        return float(norm)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Each rank has all weights, and no pass gathers or cuts any."""
        for unit in self._units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self._units:
                unit.set_reshard_after_forward(unit is not self._units[-1], recurse=False)
                unit.reshard()

    @torch.no_grad()
    def save(self, folder: Path, card: Card) -> None:
        """The first gathers weight after weight in the memory of its CPU."""
        gathered: dict[int, Tensor] = {}  # tied weights are one
        weights = {}
        for name, weight in self._policy.state_dict(keep_vars=True).items():
            if id(weight) not in gathered:
                full = weight.full_tensor() if isinstance(weight, DTensor) else weight
                gathered[id(weight)] = full.detach().cpu() if self._ranks.first else full.new_empty(0)
            weights[name] = gathered[id(weight)]
        if self._ranks.first:
            self._policy.save_pretrained(folder, weights=weights, card=card)


def _piece(tensor: Tensor) -> Tensor:
    """This rank's part, in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
