"""Replays a computation on a GPU without launching its kernels one by one: CUDA graphs, by shape.

A step of a small model is hundreds of tiny kernels, and launching them takes longer than running them. A shape that
comes again is captured once; from then on its inputs are copied into place and the whole is launched at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 64
"""Graphs kept; the one not used for longest goes first."""


@dataclass(frozen=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphs:
    """Calls a function of a shape and tensors, and replays the call when the shape comes again.

    All tensors that the function reads beside its inputs must stay where they are, until `clear`.
    """

    def __init__(self) -> None:
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._pool: Any = None

    def clear(self) -> None:
        """Forget all graphs: something that they read has moved."""
        self._captured.clear()
        self._seen.clear()
        self._pool = None

    def __call__(self, function: Callable[..., Tensor], shape: Hashable, inputs: Sequence[Tensor]) -> Tensor:
        """`function(shape, *inputs)`; the result is overwritten by the next call."""
        key = (shape, tuple(tensor.shape for tensor in inputs))
        captured = self._captured.get(key)
        if captured is None:
            if key not in self._seen:  # a shape that never comes again is not worth capturing
                self._seen.add(key)
                return function(shape, *inputs)
            captured = self._captured[key] = self._capture(function, shape, inputs)
            while len(self._captured) > KEPT:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        for mine, given in zip(captured.inputs, inputs, strict=True):
            mine.copy_(given)
        captured.graph.replay()
        return captured.output

    def _capture(self, function: Callable[..., Tensor], shape: Hashable, inputs: Sequence[Tensor]) -> _Captured:
        copies = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up outside the capture
            function(shape, *copies)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, pool=self._pool):
            output = function(shape, *copies)
        self._pool = graph.pool()
        return _Captured(graph, copies, output)
