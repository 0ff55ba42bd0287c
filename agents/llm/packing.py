"""Transcripts laid out for one pass of a model: what several have in common at their head stands there once.

A pack is a forest of token runs. Members of a GRPO group hang from their prompt, prompts from the system message, and
nothing is padded, so the linear layers of a model see each different token once. Equality of tokens alone decides what
is shared: the hidden states of equal heads are equal, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from agents.llm.transcript import Transcript

Ids = NDArray[np.int64]

MIN_SHARED = 32
"""Shorter common heads are computed again: with 16 tokens, a model of 1 M parameters on a CPU takes as long either way,
because each run costs two more calls of attention."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of tokens of a pack and, right behind it, all that continues it."""

    start: int
    stop: int
    """Its own tokens are `start` to `stop`, exclusive: each attends to itself and those before it in the run."""
    end: int
    """Tokens `stop` to `end` continue it: each attends to the whole run."""


@dataclass(frozen=True, eq=False)
class Pack:
    """T different tokens of M transcripts, of which N are scored. Tensors are on the CPU until `to`."""

    ids: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T]: place of each token in its transcript."""
    spans: tuple[Span, ...]
    """The forest, every span before those that continue it; their own tokens cover 0 to T exactly once."""
    rows: tuple[tuple[tuple[int, int], ...], ...]
    """M rows: the runs (start, stop) of tokens that make up each transcript, up to its last but one scored token."""
    index: torch.Tensor
    """int64 [N, 2]: the transcript's number in the sequence given to `packs`, and the token's place in it."""
    row: torch.Tensor
    """int64 [N]: which of `rows` each score belongs to."""
    source: torch.Tensor
    """int64 [N]: which of the T tokens predicts the scored one."""
    target: torch.Tensor
    """int64 [N]: the id that was sampled."""

    @property
    def tokens(self) -> int:
        """T, to which the cost of a model's linear layers is proportional."""
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """M lengths of `rows`; their sum is what T would be if nothing were shared."""
        return [sum(stop - start for start, stop in row) for row in self.rows]

    def to(self, device: torch.device | str) -> Pack:
        """The same on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("ids", "positions", "index", "row", "source", "target")
        }
        return replace(self, **moved)

    def gather(self, values: Sequence[ArrayLike]) -> torch.Tensor:
        """float32 [N]: for each score, the entry of its token in `values`, which holds an array [T] a transcript."""
        numbers, places = self.index.cpu().numpy().T
        picked = np.empty(len(numbers), np.float32)
        for number in np.unique(numbers):
            here = numbers == number
            picked[here] = np.asarray(values[number])[places[here]]
        return torch.from_numpy(picked).to(self.index.device)


def packs(transcripts: Sequence[Transcript], max_tokens: int, share: bool = True) -> list[Pack]:
    """Cut transcripts into micro-batches.

    Each sampled token of each transcript is scored exactly once, in an order that depends on the transcripts alone.
    Transcripts without a sampled token have nothing to score and are left out.

    Args:
        transcripts: What to score.
        max_tokens: Most tokens of a pack: those it computes with `share`; without, its number of rows times the
            longest of them. A transcript that is longer by itself is a pack of its own.
        share: Whether to compute common heads of at least `MIN_SHARED` tokens once. Without, rows are sorted by length,
            so that a model that needs padding gets little of it (`Policy.shares`).

    Raises:
        ValueError: `max_tokens` is not positive, or a transcript begins with a sampled token.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is the largest number of tokens of a micro-batch, at least 1; got {max_tokens}")
    rows = [row for number, transcript in enumerate(transcripts) if (row := _row(number, transcript)) is not None]
    if share:
        # Big-endian bytes sort as the numbers do, so rows with equal heads come to stand side by side.
        rows.sort(key=lambda row: (row.ids.astype(">i8").tobytes(), row.number))
    else:
        rows.sort(key=lambda row: (len(row.ids), row.number))
    return [_lay_out(part, common) for part, common in _parts(rows, max_tokens, share)]


@dataclass(frozen=True, slots=True)
class _Row:
    """What of a transcript a model must read: all up to its last sampled token, which is only predicted."""

    number: int
    ids: Ids
    places: Ids
    """Of the sampled tokens."""
    targets: Ids


def _row(number: int, transcript: Transcript) -> _Row | None:
    places = np.flatnonzero(transcript.mask)
    if len(places) == 0:
        return None
    if places[0] == 0:
        raise ValueError(
            f"transcript {number} begins with a sampled token, which nothing predicts; a transcript begins with a "
            "prompt of at least one token"
        )
    return _Row(number, transcript.ids[: places[-1]], places, transcript.ids[places])


def _common(one: Ids, two: Ids) -> int:
    """Length of the head that both have in common."""
    length = min(len(one), len(two))
    differs = np.flatnonzero(one[:length] != two[:length])
    return int(differs[0]) if len(differs) else length


def _parts(rows: list[_Row], max_tokens: int, share: bool) -> Iterator[tuple[list[_Row], list[int]]]:
    """Neighbours, as many as fit, and the lengths of the heads that each has in common with the next."""
    part: list[_Row] = []
    common: list[int] = []
    at_most = 0
    for row in rows:
        if part:
            common.append(_common(part[-1].ids, row.ids) if share else 0)
            at_most += len(row.ids) - max(0, common[-1] - MIN_SHARED + 1)
            if not share:
                fits = (len(part) + 1) * max(len(row.ids), len(part[-1].ids)) <= max_tokens
            else:
                fits = at_most <= max_tokens or _size([*part, row], common) <= max_tokens
            if not fits:
                yield part, common[:-1]
                part, common = [], []
        if not part:
            at_most = len(row.ids)
        part.append(row)
    if part:
        yield part, common


def _size(rows: list[_Row], common: list[int]) -> int:
    """Tokens that a pack of these rows computes."""
    return sum(run.stop - run.done for run in _forest([len(row.ids) for row in rows], common))


@dataclass(frozen=True, slots=True, order=True)
class _Run:
    """Tokens `done` to `stop` that rows `low` to `high` (exclusive) have in common; in this order, depth first."""

    low: int
    done: int
    stop: int
    high: int


def _forest(lengths: list[int], common: list[int]) -> list[_Run]:
    """The runs of sorted rows, depth first.

    Args:
        lengths: Of R rows.
        common: R - 1 lengths of the heads that each has in common with the next.
    """
    runs: list[_Run] = []
    todo = [(0, len(lengths), 0)]
    while todo:
        first, last, done = todo.pop()
        cuts = [first, *(i + 1 for i in range(first, last - 1) if common[i] < done + MIN_SHARED), last]
        for low, high in pairwise(cuts):
            stop = lengths[low] if high == low + 1 else min(common[low : high - 1])
            if stop > done:  # else the row ends where the run it continues does
                runs.append(_Run(low, done, stop, high))
            if high > low + 1:
                todo.append((low, high, stop))
    return sorted(runs)


def _lay_out(rows: list[_Row], common: list[int]) -> Pack:
    runs = _forest([len(row.ids) for row in rows], common)
    starts = np.cumsum([0, *(run.stop - run.done for run in runs)])
    ends = [
        int(starts[next((after for after in range(i + 1, len(runs)) if runs[after].low >= run.high), len(runs))])
        for i, run in enumerate(runs)
    ]
    paths: list[list[tuple[int, int]]] = [[] for _ in rows]
    for run, start, stop in zip(runs, starts, starts[1:], strict=False):
        for row in range(run.low, run.high):
            paths[row].append((int(start), int(stop)))
    places = np.concatenate([np.stack([np.full(len(row.places), row.number), row.places], axis=1) for row in rows])
    sources = [
        np.concatenate([np.arange(start, stop) for start, stop in path])[row.places - 1]
        for row, path in zip(rows, paths, strict=True)
    ]
    return Pack(
        ids=torch.from_numpy(np.concatenate([rows[run.low].ids[run.done : run.stop] for run in runs])),
        positions=torch.from_numpy(np.concatenate([np.arange(run.done, run.stop) for run in runs])),
        spans=tuple(
            Span(int(start), int(stop), end) for start, stop, end in zip(starts, starts[1:], ends, strict=False)
        ),
        rows=tuple(map(tuple, paths)),
        index=torch.from_numpy(places),
        row=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row.places) for row in rows])),
        source=torch.from_numpy(np.concatenate(sources)),
        target=torch.from_numpy(np.concatenate([row.targets for row in rows])),
    )
