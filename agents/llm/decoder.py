"""Runs a language model over many conversations at once, keeping what it has read: the engine's view of a model.

`FusedDecoder` is our own forward pass for the families of `agents.llm.weights`: a prompt is read once for all rows that
share it, the head that all prompts share once for all prompts, and rows of any length decode together without padding.
`agents.llm.plain` has the slower decoder for every other model; `make_decoder` picks.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agents.llm.cache import Cache, Pool
from agents.llm.chat import Prompt
from agents.llm.plain import PlainDecoder, close, logits_after, probe
from agents.llm.weights import Layer, Weights, obstacle

_log = logging.getLogger(__name__)
_HEADS_KEPT = 4
"""Prompt heads kept for later prompts; an environment has one."""


class Decoder(Protocol):
    """A model with the conversations it has read. Rows are any numbers; what a call reads is kept until released."""

    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        """Open a conversation in each row; float32 [N, V]: the logits after its prompt."""

    def feed(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Append at least one id to each row; float32 [N, V]: the logits after the last."""

    def release(self, row: int) -> None:
        """Forget a row's conversation; one that has none is left alone."""

    def refresh(self) -> None:
        """Take over changed weights of the model. All conversations are forgotten."""


@dataclass(frozen=True)
class _Segment:
    """Tokens to append to one sequence of a cache."""

    cache: Cache
    key: Hashable
    ids: Sequence[int]
    past: int
    """Tokens that the sequence has."""
    prompt: int | None = None
    """Number of the prompt in front of it, in the cache of prompts."""
    offset: int = 0
    """Tokens of that prompt."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """How A rows decode together; holds while the same rows decode and none moves in the cache."""

    rows: list[int]
    """In the order of the batch: pool by pool, slot by slot."""
    own: list[tuple[Pool, slice]]
    """The pools and which part of the batch lies in their first slots."""
    prompts: list[tuple[Pool, Tensor, Tensor | None, int]]
    """The pools, int64 [S, G] of places in the batch of the rows of each slot (padded with 0), a bias [S, 1, T] of −inf
    beyond the prompts' ends, and T."""
    back: Tensor
    """int64 [A]: where each row of the batch is among the places of all pools."""
    order: Tensor
    """int64 [A]: place in the batch of the rows as they were asked for."""


class FusedDecoder:
    """Decodes models that have no `agents.llm.weights.obstacle`.

    Args:
        model: of transformers, adapted by peft or not.
        length: tokens of the longest conversation.
        dtype: to compute in.
        device: to compute on.
    """

    def __init__(self, model: Any, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._weights = Weights.read(model, length, dtype, device)
        self._device = device
        self._dtype = dtype
        self._shape = (len(self._weights.layers), self._weights.kv_heads, self._weights.head_dim)
        self._length = length
        self._batch = 16384
        self._forget()

    def _forget(self) -> None:
        self._prompts = Cache(self._shape, _ladder(256, self._length), self._dtype, self._device)
        self._own = Cache(self._shape, _ladder(128, self._length), self._dtype, self._device)
        self._numbers: dict[tuple[int, ...], int] = {}
        self._heads: dict[tuple[int, ...], int] = {}
        self._count = 0
        self._after: dict[int, Tensor] = {}
        self._members: dict[int, set[int]] = {}
        self._prompt: dict[int, int] = {}
        self._offset: dict[int, int] = {}
        self._past: dict[int, int] = {}
        self._plan: _Plan | None = None
        self._asked: list[int] = []

    def refresh(self) -> None:
        self._weights.refresh(self._model)
        self._forget()

    @torch.inference_mode()
    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        new = {prompt.ids: prompt for prompt in prompts if prompt.ids not in self._numbers}
        self._read(list(new.values()))
        self._plan = None
        for row, prompt in zip(rows, prompts, strict=True):
            number = self._numbers[prompt.ids]
            self._members[number].add(row)
            self._prompt[row] = number
            self._offset[row] = len(prompt.ids)
            self._past[row] = 0
        return torch.stack([self._after[self._prompt[row]] for row in rows])

    @torch.inference_mode()
    def release(self, row: int) -> None:
        number = self._prompt.pop(row, None)
        if number is None:
            return
        self._plan = None
        self._own.drop(row)
        self._members[number].discard(row)
        if not self._members[number]:
            self._drop_prompt(number)

    def _drop_prompt(self, number: int) -> None:
        self._prompts.drop(number)
        self._members.pop(number, None)
        self._after.pop(number, None)
        self._numbers = {ids: other for ids, other in self._numbers.items() if other != number}

    @torch.inference_mode()
    def feed(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        for row, more in zip(rows, ids, strict=True):
            if self._own.reserve(row, self._past[row] + len(more)):
                self._plan = None
        if all(len(more) == 1 for more in ids):
            logits = self._step(list(rows), [more[0] for more in ids])
        else:
            logits = self._extend(
                [
                    _Segment(self._own, row, more, self._past[row], self._prompt[row], self._offset[row])
                    for row, more in zip(rows, ids, strict=True)
                ]
            )
        for row, more in zip(rows, ids, strict=True):
            self._past[row] += len(more)
        return logits

    def _read(self, prompts: Sequence[Prompt]) -> None:
        """Read prompts that no row has, each after the head that it shares with others."""
        segments: list[_Segment] = []
        for prompt in prompts:
            head = prompt.ids[: min(prompt.shared, len(prompt.ids) - 1)]
            self._count += 1
            number = self._count
            self._prompts.reserve(number, len(prompt.ids))
            if head:
                source, place = self._prompts.place(self._head(head))
                target, slot = self._prompts.place(number)
                target.data[:, :, slot, :, : len(head)] = source.data[:, :, place, :, : len(head)]
            segments.append(_Segment(self._prompts, number, prompt.ids[len(head) :], len(head)))
        try:
            logits = list(self._extend(segments)) if segments else []
        except BaseException:
            for segment in segments:
                self._prompts.drop(segment.key)
            raise
        for prompt, segment, after in zip(prompts, segments, logits, strict=True):
            number = self._numbers[prompt.ids] = int(str(segment.key))
            self._members[number] = set()
            self._after[number] = after

    def _head(self, head: tuple[int, ...]) -> int:
        """Number of the sequence of a head, read now if it was not."""
        if head not in self._heads:
            while len(self._heads) >= _HEADS_KEPT:
                self._prompts.drop(self._heads.pop(next(iter(self._heads))))
            self._count += 1
            self._prompts.reserve(self._count, len(head))
            try:
                self._extend([_Segment(self._prompts, self._count, head, 0)])
            except BaseException:
                self._prompts.drop(self._count)
                raise
            self._heads[head] = self._count
        return self._heads[head]

    def _extend(self, segments: Sequence[_Segment]) -> Tensor:
        """Append many tokens a sequence; float32 [N, V] logits after the last of each."""
        batches: list[list[_Segment]] = []
        left = 0
        for segment in segments:
            if len(segment.ids) > left:
                batches.append([])
                left = self._batch
            batches[-1].append(segment)
            left -= len(segment.ids)
        return self._logits(torch.cat([self._extend_batch(batch) for batch in batches]))

    def _extend_batch(self, segments: Sequence[_Segment]) -> Tensor:
        """[N, E]: hidden states after the last token of each segment."""
        ids = torch.tensor([token for segment in segments for token in segment.ids], device=self._device)
        starts = [segment.offset + segment.past for segment in segments]
        positions = torch.cat(
            [
                torch.arange(start, start + len(segment.ids), device=self._device)
                for start, segment in zip(starts, segments, strict=True)
            ]
        )
        ends = np.cumsum([len(segment.ids) for segment in segments]).tolist()
        masks = [self._causal(len(segment.ids), start) for start, segment in zip(starts, segments, strict=True)]

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = torch.empty_like(query)
            for segment, end, mask in zip(segments, ends, masks, strict=True):
                part = slice(end - len(segment.ids), end)
                out[part] = self._attend_segment(number, segment, mask, query[part], key[part], value[part])
            return out

        hidden = self._layers(ids, positions, attend)
        return hidden[torch.tensor(ends, device=self._device) - 1]

    def _causal(self, new: int, past: int) -> Tensor | None:
        """[new, past + new]: −inf where a new token would look ahead, 0 elsewhere; None where nothing is past."""
        if past == 0:
            return None
        ahead = torch.ones(new, past + new, dtype=torch.bool, device=self._device).triu_(past + 1)
        return torch.zeros(ahead.shape, dtype=self._dtype, device=self._device).masked_fill_(ahead, -torch.inf)

    def _attend_segment(
        self, number: int, segment: _Segment, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """[n, H, D]: attention of n new tokens to their prompt, their past and each other, which become past here."""
        pool, slot = segment.cache.place(segment.key)
        keys, values = (part[slot] for part in pool.layer(number))
        total = segment.past + len(query)
        keys[:, segment.past : total] = key.transpose(0, 1)
        values[:, segment.past : total] = value.transpose(0, 1)
        keys, values = keys[:, :total], values[:, :total]
        if segment.prompt is not None:
            front, place = self._prompts.place(segment.prompt)
            shared_keys, shared_values = front.layer(number)
            keys = torch.cat([shared_keys[place, :, : segment.offset], keys], dim=1)
            values = torch.cat([shared_values[place, :, : segment.offset], values], dim=1)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=1.0,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    def _step(self, rows: list[int], ids: list[int]) -> Tensor:
        """Append one token a row; float32 [N, V] logits after it."""
        if self._plan is None or self._asked != rows:
            self._plan, self._asked = self._arrange(rows), rows
        plan = self._plan
        of_row = dict(zip(rows, ids, strict=True))
        past = np.array([self._past[row] for row in plan.rows])
        offset = np.array([self._offset[row] for row in plan.rows])
        lengths = torch.from_numpy(past).to(self._device)
        spans = [(pool, part, lengths[part], *self._beyond(past[part], lengths[part])) for pool, part in plan.own]
        positions = torch.from_numpy(past + offset).to(self._device)

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            shared, weight = self._attend_prompts(number, plan, query)
            out = torch.empty_like(shared)
            for pool, part, length, bias, longest in spans:
                keys, values = pool.layer(number)
                slots = torch.arange(part.stop - part.start, device=self._device)
                keys[slots, :, length] = key[part]
                values[slots, :, length] = value[part]
                out[part] = _join(
                    query[part].view(shared[part].shape), keys, values, bias, longest, shared[part], weight[part]
                )
            return out.view(query.shape)

        hidden = self._layers(torch.tensor([of_row[row] for row in plan.rows], device=self._device), positions, attend)
        return self._logits(hidden[plan.order])

    def _beyond(self, past: Any, lengths: Tensor) -> tuple[Tensor | None, int]:
        """A bias [a, 1, L] of −inf beyond the ends of a sequences, None where they are equally long, and L."""
        longest = int(past.max()) + 1
        if past.min() + 1 == longest:
            return None, longest
        places = torch.arange(longest, device=self._device)
        bias = torch.zeros(len(past), 1, longest, dtype=self._dtype, device=self._device)
        return bias.masked_fill_(places > lengths[:, None, None], -torch.inf), longest

    def _arrange(self, rows: Sequence[int]) -> _Plan:
        own: list[tuple[Pool, slice]] = []
        batch: list[int] = []
        for pool, keys in self._own.arrange(rows):
            own.append((pool, slice(len(batch), len(batch) + len(keys))))
            batch += [int(str(key)) for key in keys]
        places = {row: place for place, row in enumerate(batch)}
        prompts: list[tuple[Pool, Tensor, Tensor | None, int]] = []
        back = [0] * len(batch)
        seen = 0
        members: dict[int, list[int]] = {}
        for row in rows:
            members.setdefault(self._prompt[row], []).append(row)
        for pool, keys in self._prompts.arrange(members):
            groups = [members[int(str(key))] for key in keys]
            width = max(map(len, groups))
            table = [[places[row] for row in group] + [0] * (width - len(group)) for group in groups]
            for number, group in enumerate(groups):
                for place, row in enumerate(group):
                    back[places[row]] = seen + number * width + place
            seen += len(groups) * width
            ends = np.array([self._offset[group[0]] - 1 for group in groups])
            bias, longest = self._beyond(ends, torch.from_numpy(ends).to(self._device))
            prompts.append((pool, torch.tensor(table, device=self._device), bias, longest))
        order = torch.tensor([places[row] for row in rows], device=self._device)
        return _Plan(batch, own, prompts, torch.tensor(back, device=self._device), order)

    def _attend_prompts(self, number: int, plan: _Plan, query: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of each row of the batch [A, H, D] to its prompt.

        Returns:
            [A, K, H / K, D], and [A, K, H / K, 1]: the logarithm of the sum of the exponentials of the scores.
        """
        heads, (_, kv_heads, dim) = query.shape[1], self._shape
        group = heads // kv_heads
        outs, weights = [], []
        for pool, table, bias, longest in plan.prompts:
            slots, width = table.shape
            keys, values = (part[:slots, :, :longest].flatten(0, 1) for part in pool.layer(number))
            gathered = query[table.flatten()].view(slots, width, kv_heads, group, dim).transpose(1, 2)
            scores = torch.bmm(gathered.reshape(slots * kv_heads, width * group, dim), keys.transpose(1, 2))
            if bias is not None:
                scores.view(slots, -1, longest).add_(bias)
            top = scores.amax(dim=-1, keepdim=True)
            scores.sub_(top).exp_()
            total = scores.sum(dim=-1, keepdim=True)
            out = torch.bmm(scores, values).div_(total)
            outs.append(out.view(slots, kv_heads, width, group, dim).transpose(1, 2).flatten(0, 1))
            weight = (top + total.log()).view(slots, kv_heads, width, group, 1)
            weights.append(weight.transpose(1, 2).flatten(0, 1))
        return torch.cat(outs)[plan.back], torch.cat(weights)[plan.back]

    def _layers(self, ids: Tensor, positions: Tensor, attend: Any) -> Tensor:
        """[N, E]: the hidden state after all layers of N tokens, whose attention is up to `attend`."""
        weights = self._weights
        cosines, sines = weights.cosines[positions, None], weights.sines[positions, None]
        hidden = weights.embedding[ids]
        for number, layer in enumerate(weights.layers):
            query, key, value = self._project(layer, hidden, cosines, sines)
            mixed = attend(number, query, key, value).flatten(1)
            hidden = hidden + F.linear(mixed, layer.output, layer.output_bias)
            inner = F.linear(self._norm(hidden, layer.mlp_norm), layer.gate_up, layer.gate_up_bias)
            gate, up = inner.chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)
        return hidden

    def _project(self, layer: Layer, hidden: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, D], already scaled, and keys and values [N, K, D]."""
        weights = self._weights
        qkv = F.linear(self._norm(hidden, layer.attention_norm), layer.qkv, layer.qkv_bias)
        qkv = qkv.view(len(hidden), weights.heads + 2 * weights.kv_heads, weights.head_dim)
        rotated, value = torch.split(qkv, [weights.heads + weights.kv_heads, weights.kv_heads], dim=1)
        if layer.head_norm is not None:
            rotated = F.rms_norm(rotated, (weights.head_dim,), eps=weights.eps) * layer.head_norm
        rotated = torch.addcmul(rotated * cosines, rotated.roll(weights.head_dim // 2, -1), sines)
        query, key = torch.split(rotated, [weights.heads, weights.kv_heads], dim=1)
        return query * weights.scale, key, value

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self._weights.eps)

    def _logits(self, hidden: Tensor) -> Tensor:
        weights = self._weights
        return F.linear(self._norm(hidden, weights.norm), weights.head, weights.head_bias).float()


def _join(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, longest: int, shared: Tensor, weight: Tensor
) -> Tensor:
    """[a, K, G, D]: attention of rows to their own tokens in the first slots of a pool, joined with `shared`.

    Args:
        query: [a, K, G, D].
        keys, values: [slots, K, capacity, D].
        bias: [a, 1, longest] or None.
        longest: tokens of the longest row.
        shared: [a, K, G, D]: attention to the prompt.
        weight: [a, K, G, 1]: log of the sum of the exponentials of its scores.
    """
    rows, kv_heads, group, dim = query.shape
    keys, values = (part[:rows, :, :longest].flatten(0, 1) for part in (keys, values))
    scores = torch.bmm(query.reshape(rows * kv_heads, group, dim), keys.transpose(1, 2))
    if bias is not None:
        scores.view(rows, kv_heads * group, longest).add_(bias)
    weight = weight.reshape(rows * kv_heads, group, 1)
    top = torch.maximum(scores.amax(dim=-1, keepdim=True), weight)
    scores.sub_(top).exp_()
    rest = (weight - top).exp_()
    total = scores.sum(dim=-1, keepdim=True).add_(rest)
    out = torch.baddbmm(shared.reshape(rows * kv_heads, group, dim) * rest, scores, values).div_(total)
    return out.view(rows, kv_heads, group, dim)


def _ladder(first: int, last: int) -> list[int]:
    """Capacities of pools: `first` doubled until `last`, which is the largest."""
    capacities = []
    while first < last:
        capacities.append(first)
        first *= 2
    return [*capacities, last]


def make_decoder(
    model: Any, length: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Decoder:
    """The fastest decoder that gives what `model` gives, for conversations of up to `length` tokens.

    Args:
        model: Of transformers, adapted by peft or not.
        length: Tokens of the longest conversation.
        dtype: To compute in; by default bfloat16 on a GPU, else that of the model. The slow decoder keeps the model's.
        device: To compute on; by default that of the model. The slow decoder keeps the model's.
    """
    weight = next(model.parameters())
    device = weight.device if device is None else torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else weight.dtype
    reason = obstacle(model, length)
    if reason is None:
        decoder = FusedDecoder(model, length, dtype, device)
        ids = probe(model)[: max(1, length - 1)]
        after = decoder.begin([0], [Prompt(tuple(ids), 0)])[0]
        decoder.release(0)
        if close(after, logits_after(model, ids), max(dtype, weight.dtype, key=lambda kind: torch.finfo(kind).eps)):
            return decoder
        reason = "its forward pass gives other logits than its weights say"
    _log.info("%s is decoded by its own forward pass, row by row: %s", type(model).__name__, reason)
    return PlainDecoder(model)
