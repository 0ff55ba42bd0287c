"""The fast decoder: our own forward pass over a cache in which nothing is kept twice.

A prompt is read once for all rows that have it, and the head that prompts share once for all of them. Rows of any
length decode together, and what they are told is read at once for all that wait.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.llm.cache import Budget, Cache
from agents.llm.chat import Prompt
from agents.llm.graphs import Graphs
from agents.llm.network import Network
from agents.llm.step import EXACT, Plan, Rounding, Stepper
from agents.llm.weights import Weights

_HEADS_KEPT = 4
"""Heads of prompts kept for later prompts; an environment has one."""


_LONGEST = 1024
"""Tokens of one sequence whose attention is computed at once."""
_SPARE = 1
"""Tokens of its slot that a row never fills: a step writes there for rows of the batch that only pause."""


@dataclass(frozen=True)
class Layout:
    """Sizes that suit a device; what is computed is the same for all."""

    prompt: int = 256
    """Tokens of the smallest slot of a prompt; each next pool has slots of twice the size."""
    own: int = 128
    """The same for what follows the prompt."""
    piece: int = 1024
    """Tokens read at once: so many activations stay in a CPU's cache."""
    rounding: Rounding = EXACT
    graphs: bool = False
    """Whether steps are replayed as CUDA graphs."""


CPU = Layout()
CUDA = Layout(prompt=1024, own=512, piece=16384, rounding=Rounding(rows=32, tokens=256), graphs=True)
"""Static shapes: sizes are rounded up so that graphs are replayed often."""


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


class FusedDecoder:
    """Decodes models that have no `agents.llm.weights.obstacle`; a `Decoder`.

    Args:
        model: Of transformers, adapted by peft or not.
        length: Tokens of the longest conversation.
        dtype: To compute in.
        device: To compute on.
        memory: Bytes for keys and values; None: nine tenths of what is free on a GPU, on a CPU as many as there are.
        layout: Sizes; None: those of the device.
    """

    def __init__(
        self,
        model: Any,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        memory: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._model = model
        self._network = Network(Weights.read(model, length, dtype, device))
        self._layout = layout or (CUDA if device.type == "cuda" else CPU)
        self._dtype = dtype
        self._device = device
        if memory is None and device.type == "cuda":
            torch.cuda.empty_cache()  # what training has done with is free too
            memory = int(0.9 * torch.cuda.mem_get_info(device)[0])
        weights, budget = self._network.weights, Budget(memory)
        shape = (len(weights.layers), weights.kv_heads, weights.head_dim)
        self._prompts, self._own = (
            Cache(shape, _ladder(first, length + _SPARE), dtype, device, budget)
            for first in (self._layout.prompt, self._layout.own)
        )
        self._graphs = Graphs() if self._layout.graphs else None
        self._stepper = Stepper(self._network, self._own, self._prompts, self._layout.rounding, self._graphs)
        self._ahead = torch.zeros(0, 0, dtype=dtype, device=device)
        self._forget()

    @torch.inference_mode()
    def refresh(self) -> None:
        self._network.weights.refresh(self._model)
        self._forget()

    @torch.inference_mode()
    def free(self) -> None:
        self._forget()
        self._own.trim()
        self._prompts.trim()
        if self._graphs is not None:
            self._graphs.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _forget(self) -> None:
        self._own.clear()
        self._prompts.clear()
        self._plan: Plan | None = None
        self._count = 0
        self._heads: dict[tuple[int, ...], int] = {}
        self._numbers: dict[tuple[int, ...], int] = {}
        self._after: dict[int, Tensor] = {}
        self._members: dict[int, set[int]] = {}
        self._prompt: dict[int, int] = {}
        self._offset: dict[int, int] = {}
        self._past: dict[int, int] = {}

    @torch.inference_mode()
    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        new = {prompt.ids: prompt for prompt in prompts if prompt.ids not in self._numbers}
        self._plan = None
        self._read(list(new.values()))
        for row, prompt in zip(rows, prompts, strict=True):
            number = self._numbers[prompt.ids]
            self._members[number].add(row)
            self._prompt[row] = number
            self._offset[row] = len(prompt.ids)
            self._past[row] = 0
        return torch.stack([self._after[self._prompt[row]] for row in rows])

    @torch.inference_mode()
    def feed(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        lengths = [self._past[row] + len(more) + _SPARE for row, more in zip(rows, ids, strict=True)]
        self._reserve(self._own, zip(rows, lengths, strict=True))
        if all(len(more) == 1 for more in ids):
            if self._plan is None or self._plan.rows != tuple(rows):
                self._plan = self._stepper.plan(rows, self._prompt, self._offset)
            logits = self._stepper.run(
                self._plan, {row: more[0] for row, more in zip(rows, ids, strict=True)}, self._past
            )
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

    @torch.inference_mode()
    def release(self, row: int) -> None:
        number = self._prompt.pop(row, None)
        if number is None:
            return
        self._plan = None
        self._own.drop(row)
        self._members[number].discard(row)
        if not self._members[number]:
            self._prompts.drop(number)
            del self._members[number], self._after[number]
            self._numbers = {ids: other for ids, other in self._numbers.items() if other != number}

    def _reserve(self, cache: Cache, wanted: Iterable[tuple[Hashable, int]]) -> None:
        for key, length in wanted:
            try:
                moved = cache.reserve(key, length)
            except torch.OutOfMemoryError:
                self._plan = None
                self._own.trim()
                self._prompts.trim()
                moved = cache.reserve(key, length)
            if moved:
                self._plan = None

    def _read(self, prompts: Sequence[Prompt]) -> None:
        """Read prompts that no row has, each after the head that it shares with others."""
        segments: list[_Segment] = []
        try:
            for prompt in prompts:
                head = prompt.ids[: min(prompt.shared, len(prompt.ids) - 1)]
                known = self._head(head) if head else None
                self._count += 1
                segments.append(_Segment(self._prompts, self._count, prompt.ids[len(head) :], len(head)))
                self._reserve(self._prompts, [(self._count, len(prompt.ids))])
                if known is not None:
                    source, place = self._prompts.place(known)
                    target, slot = self._prompts.place(self._count)
                    target.data[:, :, slot, :, : len(head)] = source.data[:, :, place, :, : len(head)]
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
            self._reserve(self._prompts, [(self._count, len(head))])
            try:
                self._extend([_Segment(self._prompts, self._count, head, 0)])
            except BaseException:
                self._prompts.drop(self._count)
                raise
            self._heads[head] = self._count
        return self._heads[head]

    def _extend(self, segments: Sequence[_Segment]) -> Tensor:
        """Append many tokens to each of N sequences; float32 [N, V] logits after the last of each."""
        pieces: list[list[_Segment]] = [[]]
        lasts = []
        left = self._layout.piece
        for segment in segments:
            for start in range(0, len(segment.ids), _LONGEST):
                ids = segment.ids[start : start + _LONGEST]
                if len(ids) > left and pieces[-1]:
                    pieces.append([])
                    left = self._layout.piece
                pieces[-1].append(replace(segment, ids=ids, past=segment.past + start))
                left -= len(ids)
            lasts.append(sum(map(len, pieces)) - 1)
        hidden = torch.cat([self._extend_piece(piece) for piece in pieces])
        return self._network.logits(hidden[torch.tensor(lasts, device=self._device)])

    def _extend_piece(self, segments: Sequence[_Segment]) -> Tensor:
        """[N, E]: hidden states after the last token of each of N segments."""
        device = self._device
        counts = [len(segment.ids) for segment in segments]
        starts = [segment.offset + segment.past for segment in segments]
        ids = torch.tensor([token for segment in segments for token in segment.ids], device=device)
        positions = torch.cat(
            [torch.arange(start, start + count, device=device) for start, count in zip(starts, counts, strict=True)]
        )
        masks = [self._mask(count, start) for start, count in zip(starts, counts, strict=True)]

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            parts = zip(segments, masks, *(torch.split(part, counts) for part in (query, key, value)), strict=True)
            return torch.cat([self._attend(number, *part) for part in parts])

        hidden = self._network.hidden(ids, positions, attend)
        return hidden[torch.tensor(counts, device=device).cumsum(0) - 1]

    def _mask(self, new: int, past: int) -> Tensor | None:
        """[new, past + new]: −inf where a new token would look ahead, 0 elsewhere; None where nothing is past."""
        if past == 0:
            return None
        rows, columns = self._ahead.shape[0], self._ahead.shape[1] - self._ahead.shape[0]
        if new > rows or past > columns:
            rows, columns = max(rows, new + -new % 64), max(columns, past + -past % 256)
            ahead = self._ahead.new_full((rows, rows), -torch.inf).triu_(1)
            self._ahead = torch.cat([ahead.new_zeros(rows, columns), ahead], dim=1)
        return self._ahead[:new, columns - past : columns + new]

    def _attend(
        self, number: int, segment: _Segment, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """[n, H, D]: attention of n new tokens to their prompt, their past and each other; they become past here."""
        pool, slot = segment.cache.place(segment.key)
        total = segment.past + len(query)
        keys, values = (data[slot, :, :total] for data in pool.layer(number))
        keys[:, segment.past :] = key.transpose(0, 1)
        values[:, segment.past :] = value.transpose(0, 1)
        if segment.prompt is not None:
            front, place = self._prompts.place(segment.prompt)
            keys, values = (
                torch.cat([data[place, :, : segment.offset], own], dim=1)
                for data, own in zip(front.layer(number), (keys, values), strict=True)
            )
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


def _ladder(first: int, last: int) -> list[int]:
    """Capacities of pools: `first` doubled until `last`, which is the largest."""
    capacities = []
    while first < last:
        capacities.append(first)
        first *= 2
    return [*capacities, last]
