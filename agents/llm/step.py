"""One token for each of many rows: attention to the prompts that rows share and to what each row has of its own.

The scores against a prompt are one matrix product for all rows that have it, those against the rows' own tokens one
batched product a pool; the two parts are joined by their sums of exponentials, so that nothing is copied or padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentrec_env.types import IntArray
from agents.llm.cache import Cache, Pool
from agents.llm.graphs import Graphs
from agents.llm.network import Network


@dataclass(frozen=True)
class Rounding:
    """Sizes of a step are rounded up to multiples, so that few different ones occur."""

    rows: int
    tokens: int


EXACT = Rounding(rows=1, tokens=1)


@dataclass(frozen=True)
class _Own:
    """The first `rows` slots of a pool are rows `start`, … of the batch, and have up to `longest` tokens."""

    pool: Pool
    version: int
    start: int
    rows: int
    longest: int
    ragged: bool


@dataclass(frozen=True)
class _Shared:
    """The first `slots` slots of a pool of prompts, with up to `members` rows and `longest` tokens each."""

    pool: Pool
    version: int
    slots: int
    members: int
    longest: int
    ragged: bool


@dataclass(frozen=True)
class _Shape:
    """All of a step that is not in a tensor."""

    own: tuple[_Own, ...]
    shared: tuple[_Shared, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """How N rows decode together; holds while the same rows decode and none moves in the caches.

    The batch has B >= N rows: pool by pool, slot by slot, with rows that only fill up.
    """

    rows: tuple[int, ...]
    """The N rows, as they were asked for."""
    batch: tuple[int | None, ...]
    """The row at each of the B places; None where a slot is spare."""
    pools: tuple[tuple[Pool, slice], ...]
    """Pools of own tokens, and where they lie in the batch."""
    shared: tuple[_Shared, ...]
    offset: Tensor
    """int64 [B]: tokens of each row's prompt."""
    order: Tensor
    """int64 [N, rounded up]: places of the rows in the batch."""
    back: Tensor
    """int64 [B]: place of each row among the members of all prompts."""
    members: tuple[Tensor, ...]
    """For each pool of prompts int64 [slots * members]: places of the members in the batch."""
    ends: tuple[Tensor, ...]
    """For each pool of prompts int64 [slots]: lengths of the prompts."""


class Stepper:
    """Decodes one token a row.

    Args:
        network: The model.
        own: What each row has after its prompt, by row.
        prompts: The prompts, by number.
        rounding: Of the sizes of a batch.
        graphs: Replays steps of a size that was seen before; None computes each anew.
    """

    def __init__(
        self, network: Network, own: Cache, prompts: Cache, rounding: Rounding, graphs: Graphs | None = None
    ) -> None:
        self._network = network
        self._own = own
        self._prompts = prompts
        self._rounding = rounding
        self._graphs = graphs

    def plan(self, rows: Sequence[int], prompts: Mapping[int, int], lengths: Mapping[int, int]) -> Plan:
        """How `rows` decode together, given each row's prompt and that prompt's length."""
        device = self._network.weights.embedding.device
        batch: list[int | None] = []
        pools = []
        for pool, keys in self._own.arrange(rows):
            count = min(_up(len(keys), self._rounding.rows), pool.data.shape[2])
            pools.append((pool, slice(len(batch), len(batch) + count)))
            holders = [_number(holder) for holder in pool.holders[:count]]
            batch += [*holders, *[None] * (count - len(holders))]
        places = {row: place for place, row in enumerate(batch) if row is not None}
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(prompts[row], []).append(row)
        shared, members, ends = [], [], []
        back = [0] * len(batch)
        seen = 0
        for pool, keys in self._prompts.arrange(groups):
            found = [groups[_number(key)] for key in keys]
            width = max(map(len, found))
            count = min(_up(len(found), self._rounding.rows), pool.data.shape[2])
            table = np.zeros((count, width), dtype=np.int64)
            length = np.ones(count, dtype=np.int64)
            for slot, group in enumerate(found):
                length[slot] = lengths[group[0]]
                for place, row in enumerate(group):
                    table[slot, place] = places[row]
                    back[places[row]] = seen + slot * width + place
            seen += table.size
            longest = self._longest(int(length.max()), pool)
            shared.append(_Shared(pool, pool.version, count, width, longest, bool((length < longest).any())))
            members.append(torch.from_numpy(table.ravel()).to(device))
            ends.append(torch.from_numpy(length).to(device))
        order = [places[row] for row in rows]
        order += [0] * (_up(len(order), self._rounding.rows) - len(order))
        asked = set(rows)
        offset = [lengths[row] if row is not None and row in asked else 0 for row in batch]
        return Plan(
            rows=tuple(rows),
            batch=tuple(batch),
            pools=tuple(pools),
            shared=tuple(shared),
            offset=torch.tensor(offset, device=device),
            order=torch.tensor(order, device=device),
            back=torch.tensor(back, device=device),
            members=tuple(members),
            ends=tuple(ends),
        )

    def run(self, plan: Plan, ids: Mapping[int, int], past: Mapping[int, int]) -> Tensor:
        """float32 [N, V]: the logits of the plan's rows after one more token each, which is kept.

        Args:
            plan: A plan that holds.
            ids: The token of each row.
            past: How many tokens each row has after its prompt, for these rows and all that pause; fewer than fit.
        """
        device = plan.order.device
        rows = set(plan.rows)
        # A row that only fills up writes behind its end, where its next token will be written over it.
        lengths: IntArray = np.array([0 if row is None else past[row] for row in plan.batch])
        own = []
        for pool, part in plan.pools:
            active = [int(lengths[place]) for place in range(part.start, part.stop) if plan.batch[place] in rows]
            longest = self._longest(max(active) + 1, pool)
            ragged = min(active) + 1 < longest
            own.append(_Own(pool, pool.version, part.start, part.stop - part.start, longest, ragged))
        tokens = [ids[row] if row is not None and row in rows else 0 for row in plan.batch]
        inputs = (
            torch.tensor(tokens, device=device),
            torch.from_numpy(lengths).to(device),
            plan.offset,
            plan.order,
            plan.back,
            *plan.members,
            *plan.ends,
        )
        shape = _Shape(tuple(own), plan.shared)
        logits = self._compute(shape, *inputs) if self._graphs is None else self._graphs(self._compute, shape, inputs)
        return logits[: len(plan.rows)]

    def _longest(self, length: int, pool: Pool) -> int:
        return min(_up(length, self._rounding.tokens), pool.capacity)

    def _compute(
        self, shape: _Shape, ids: Tensor, past: Tensor, offset: Tensor, order: Tensor, back: Tensor, *tables: Tensor
    ) -> Tensor:
        members, ends = tables[: len(shape.shared)], tables[len(shape.shared) :]
        weights = self._network.weights
        kv_heads, group, dim = weights.kv_heads, weights.heads // weights.kv_heads, weights.head_dim
        fronts = [
            (part, places, _bias(end, part.longest) if part.ragged else None)
            for part, places, end in zip(shape.shared, members, ends, strict=True)
        ]
        owns = []
        for own in shape.own:
            length = past[own.start : own.start + own.rows]
            bias = _bias(length + 1, own.longest) if own.ragged else None
            owns.append((own, torch.arange(own.rows, device=past.device), length, bias))

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            parts = [
                _to_prompts(part, number, query[places].view(-1, part.members, kv_heads, group, dim), bias)
                for part, places, bias in fronts
            ]
            taken, mass = (torch.cat(kind)[back] for kind in zip(*parts, strict=True))
            out = torch.empty_like(taken)
            for own, slots, length, bias in owns:
                rows = slice(own.start, own.start + own.rows)
                keys, values = own.pool.layer(number)
                keys[slots, :, length] = key[rows]
                values[slots, :, length] = value[rows]
                out[rows] = _to_own(own, keys, values, query[rows].view_as(out[rows]), bias, taken[rows], mass[rows])
            return out.view(query.shape).to(query.dtype)

        hidden = self._network.hidden(ids, past + offset, attend)
        return self._network.logits(hidden[order])


def _to_prompts(part: _Shared, number: int, query: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of the members of S prompts, query [S, M, K, G, D], to their prompts.

    Args:
        part: The prompts.
        number: Of the layer.
        query: Of the members.
        bias: [S, 1, T]: −inf beyond each prompt's end.

    Returns:
        float32 [S * M, K, G, D], and float32 [S * M, K, G, 1]: the logarithm of the sum of the scores' exponentials.
    """
    slots, members, kv_heads, group, dim = query.shape
    keys, values = (data[:slots, :, : part.longest].flatten(0, 1) for data in part.pool.layer(number))
    query = query.transpose(1, 2).reshape(slots * kv_heads, members * group, dim)
    scores = _product(query, keys.transpose(1, 2))
    if bias is not None:
        scores.view(slots, -1, part.longest).add_(bias)
    top = scores.amax(dim=-1, keepdim=True)
    total = scores.sub_(top).exp_().sum(dim=-1, keepdim=True)
    out = _product(scores.to(values.dtype), values).div_(total)
    mass = top.add_(total.log_())
    return tuple(  # type: ignore[return-value]
        kind.view(slots, kv_heads, members, group, -1).transpose(1, 2).flatten(0, 1) for kind in (out, mass)
    )


def _to_own(
    own: _Own, keys: Tensor, values: Tensor, query: Tensor, bias: Tensor | None, taken: Tensor, mass: Tensor
) -> Tensor:
    """float32 [R, K, G, D]: attention of R rows to their own tokens, joined with what they took from their prompts.

    Args:
        own: The rows.
        keys, values: [slots, K, capacity, D] of their pool.
        query: [R, K, G, D].
        bias: [R, 1, T]: −inf beyond each row's end.
        taken, mass: float32 [R, K, G, D] and [R, K, G, 1], of the prompts.
    """
    rows, kv_heads, group, dim = query.shape
    keys, values = (data[:rows, :, : own.longest].flatten(0, 1) for data in (keys, values))
    scores = _product(query.reshape(rows * kv_heads, group, dim), keys.transpose(1, 2))
    if bias is not None:
        scores.view(rows, -1, own.longest).add_(bias)
    mass = mass.reshape(rows * kv_heads, group, 1)
    top = torch.maximum(scores.amax(dim=-1, keepdim=True), mass)
    rest = (mass - top).exp_()
    total = scores.sub_(top).exp_().sum(dim=-1, keepdim=True).add_(rest)
    out = _product(scores.to(values.dtype), values)
    out = out.addcmul_(taken.reshape(rows * kv_heads, group, dim), rest).div_(total)
    return out.view(rows, kv_heads, group, dim)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """float32 [N, A, C]: the products of N matrices [A, B] and [B, C], of which nothing is rounded to less."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def _bias(lengths: Tensor, longest: int) -> Tensor:
    """float32 [N, 1, longest]: 0 below each of `lengths` int64 [N], −inf from there on."""
    beyond = torch.arange(longest, device=lengths.device) >= lengths[:, None, None]
    return torch.zeros(beyond.shape, device=lengths.device).masked_fill_(beyond, -torch.inf)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _number(key: object) -> int:
    assert isinstance(key, int)
    return key
