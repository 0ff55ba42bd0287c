"""Attention over a pack: a common head is attended to by all that continues it, without a copy, a mask or padding.

Each run of tokens attends to itself causally, and all that continues a run attends to the whole of it. The parts of a
token's attention are merged by their log-sum-exp, as in ring attention; with the merged output and log-sum-exp the
kernel's own backward pass gives the exact gradient of each part. A model reaches this function through transformers'
AttentionInterface, and the layout reaches it as an argument of the model's forward pass. So do the tokens whose states
are read at the end: in the last layer no other token needs to look at anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agents.llm.kernels import kernel_for
from agents.llm.packing import Span

IMPLEMENTATION = "agentrec"
"""Name of the function in transformers: `model.set_attn_implementation(IMPLEMENTATION)`."""


class UnsupportedAttentionError(NotImplementedError):
    """A layer wants something of attention that a pack cannot give; pad its transcripts instead."""


def pack_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    spans: Sequence[Span] | None = None,
    wanted: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each layer. Without `spans` it is transformers' own `sdpa`.

    Args:
        module: The layer.
        query: [1, H, T, D], rotated.
        key: [1, K, T, D]; H is a multiple of K.
        value: [1, K, T, D].
        attention_mask: Not used with `spans`.
        scaling: Of the scores; 1 / sqrt(D) by default.
        spans: Layout of the T tokens.
        wanted: int64, ascending: tokens whose states are read behind the last layer, which gives 0 for the others; all
            by default.
        sliding_window, softcap, s_aux: What some families want beside.

    Returns:
        [1, T, H, D] and no weights.

    Raises:
        UnsupportedAttentionError: The layer has sinks or caps its scores, or its window is shorter than the pack.
    """
    if spans is None:
        kwargs |= {"sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if not spans:
        raise UnsupportedAttentionError("a layout without spans")
    if softcap is not None or s_aux is not None:
        raise UnsupportedAttentionError("attention with capped scores or sinks")
    if sliding_window is not None and sliding_window < longest(spans):
        raise UnsupportedAttentionError(f"a window of {sliding_window} tokens")
    if value.shape[-1] != query.shape[-1]:
        raise UnsupportedAttentionError("values of another width than the keys")
    dtype = _dtype(query)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not _is_last(module):
        wanted = None
    chosen = query if wanted is None else query.index_select(2, wanted)
    parts = (part.to(dtype) for part in (chosen, key, value))
    out: Tensor = _PackAttention.apply(*parts, *_blocks(spans, wanted), scale)  # type: ignore[no-untyped-call]
    if wanted is not None:
        out = out.new_zeros(query.transpose(1, 2).shape).index_copy(1, wanted, out)
    return out.to(value.dtype), None


AttentionInterface.register(IMPLEMENTATION, pack_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def longest(spans: Sequence[Span]) -> int:
    """Tokens of the longest row of a layout."""
    most = 0
    above: list[tuple[int, int]] = []  # (end, tokens up to the end of its run) of the runs that the next one continues
    for span in spans:
        while above and above[-1][0] <= span.start:
            above.pop()
        above.append((span.end, (above[-1][1] if above else 0) + span.stop - span.start))
        most = max(most, above[-1][1])
    return most


def _is_last(module: nn.Module) -> bool:
    layers = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    return layers is not None and getattr(module, "layer_idx", None) == layers - 1


_Block = tuple[slice, slice]
"""Queries, and the tokens that each of them attends to."""


def _blocks(spans: Sequence[Span], wanted: Tensor | None) -> tuple[list[_Block], list[_Block]]:
    """Attention to a layout, of all tokens or of those `wanted`, which are then numbered among themselves.

    Returns:
        Blocks in which each query is the same token as one that is attended to, and sees no further: they have every
        query once. And blocks in which each query sees all.
    """
    if wanted is None:
        tokens = [slice(span.start, span.stop) for span in spans]
        behind = [(slice(span.stop, span.end), own) for span, own in zip(spans, tokens, strict=True)]
        return list(zip(tokens, tokens, strict=True)), [block for block in behind if block[0].stop > block[0].start]
    own, more = [], []
    numbers = wanted.cpu().numpy()
    for span in spans:
        low, high, end = np.searchsorted(numbers, (span.start, span.stop, span.end)).tolist()
        breaks = np.flatnonzero(np.diff(numbers[low:high]) > 1) + low + 1
        for first, last in pairwise([low, *breaks.tolist(), high]):
            if last > first:
                start = int(numbers[first])
                own.append((slice(first, last), slice(start, start + last - first)))
                if start > span.start:
                    more.append((slice(first, last), slice(span.start, start)))
        if end > high:
            more.append((slice(high, end), slice(span.start, span.stop)))
    return own, more


def _dtype(query: Tensor) -> torch.dtype:
    """Of the products: under autocast that of autocast, but not on a CPU, whose backward kernel is fastest in float32
    and where accuracy so costs nothing."""
    kind = query.device.type
    if kind != "cpu" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(query.dtype, torch.float32) if kind == "cpu" else query.dtype


class _PackAttention(torch.autograd.Function):
    """[1, H, Q, D], [1, K, T, D], [1, K, T, D] -> [1, Q, H, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, own: list[_Block], more: list[_Block], scale: float
    ) -> Tensor:
        kernel = kernel_for(query)
        result = query.new_empty(query.transpose(1, 2).shape)
        folded, keys, values = _fold(query, key.shape[1]), *_repeat(query, key, value)
        out = _fold(result.transpose(1, 2), key.shape[1])
        lse = query.new_empty(out.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for queries, tokens in own:
            out[:, :, queries], lse[:, :, queries] = kernel.attend(
                folded[:, :, queries], keys[:, :, tokens], values[:, :, tokens], True, scale
            )
        for queries, tokens in more:
            part, part_lse = kernel.attend(
                folded[:, :, queries], keys[:, :, tokens], values[:, :, tokens], False, scale
            )
            weight = torch.sigmoid(part_lse - lse[:, :, queries])[..., None]
            out[:, :, queries] = torch.lerp(out[:, :, queries].to(weight.dtype), part.to(weight.dtype), weight)
            lse[:, :, queries] = torch.logaddexp(lse[:, :, queries], part_lse)
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.own, ctx.more, ctx.scale = own, more, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, result, lse = ctx.saved_tensors
        kernel, kv_heads = kernel_for(query), key.shape[1]
        folded, keys, values = _fold(query, kv_heads), *_repeat(query, key, value)
        out, grads = _fold(result.transpose(1, 2), kv_heads), _fold(grad.transpose(1, 2), kv_heads)
        query_grad, key_grad, value_grad = (torch.zeros_like(tensor) for tensor in (query, key, value))
        folded_grad = _fold(query_grad, kv_heads)
        for blocks, causal in ((ctx.own, True), (ctx.more, False)):
            for queries, tokens in blocks:
                one, two, three = kernel.gradients(
                    grads[:, :, queries],
                    folded[:, :, queries],
                    keys[:, :, tokens],
                    values[:, :, tokens],
                    out[:, :, queries],
                    lse[:, :, queries],
                    causal,
                    ctx.scale,
                )
                folded_grad[:, :, queries] += one
                key_grad[0, :, tokens] += two.sum(0)
                value_grad[0, :, tokens] += three.sum(0)
        return query_grad, key_grad, value_grad, None, None, None


def _fold(query: Tensor, kv_heads: int) -> Tensor:
    """A view [H / K, K, T, D] of [1, H, T, D]: query heads that share keys stand in the batch."""
    return query[0].view(kv_heads, -1, *query.shape[2:]).transpose(0, 1)


def _repeat(query: Tensor, *shared: Tensor) -> list[Tensor]:
    """Views [H / K, K, T, D] of tensors [1, K, T, D] that do not copy them."""
    return [tensor.expand(query.shape[1] // tensor.shape[1], -1, -1, -1) for tensor in shared]
