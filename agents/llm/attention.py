"""Attention over a pack: a common head is attended to by all that continues it, without a copy, a mask or padding.

Each run of tokens attends to itself causally, and all that continues a run attends to the whole of it. The parts of a
token's attention are merged by their log-sum-exp, as in ring attention; with the merged output and log-sum-exp the
kernel's own backward pass gives the exact gradient of each part. A model reaches this function through transformers'
AttentionInterface, and the layout reaches it as an argument of the model's forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    parts = (part.to(dtype) for part in (query, key, value))
    out: Tensor = _PackAttention.apply(*parts, tuple(spans), scale)  # type: ignore[no-untyped-call]
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


def _dtype(query: Tensor) -> torch.dtype:
    """Of the products: under autocast that of autocast, but not on a CPU, whose backward kernel is fastest in float32
    and where accuracy so costs nothing."""
    kind = query.device.type
    if kind != "cpu" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(query.dtype, torch.float32) if kind == "cpu" else query.dtype


class _PackAttention(torch.autograd.Function):
    """[1, H, T, D], [1, K, T, D], [1, K, T, D] -> [1, T, H, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: tuple[Span, ...], scale: float) -> Tensor:
        kernel = kernel_for(query)
        result = query.new_empty(query.transpose(1, 2).shape)
        folded, keys, values = _fold(query, key.shape[1]), *_repeat(query, key, value)
        out = _fold(result.transpose(1, 2), key.shape[1])
        lse = query.new_empty(out.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for span in spans:
            own = slice(span.start, span.stop)
            out[:, :, own], lse[:, :, own] = kernel.attend(
                folded[:, :, own], keys[:, :, own], values[:, :, own], True, scale
            )
        for span in spans:
            if span.end > span.stop:
                own, rest = slice(span.start, span.stop), slice(span.stop, span.end)
                part, part_lse = kernel.attend(folded[:, :, rest], keys[:, :, own], values[:, :, own], False, scale)
                weight = torch.sigmoid(part_lse - lse[:, :, rest])[..., None]
                out[:, :, rest] = torch.lerp(out[:, :, rest].to(weight.dtype), part.to(weight.dtype), weight)
                lse[:, :, rest] = torch.logaddexp(lse[:, :, rest], part_lse)
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.spans, ctx.scale = spans, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, result, lse = ctx.saved_tensors
        kernel, kv_heads = kernel_for(query), key.shape[1]
        folded, keys, values = _fold(query, kv_heads), *_repeat(query, key, value)
        out, grads = _fold(result.transpose(1, 2), kv_heads), _fold(grad.transpose(1, 2), kv_heads)
        query_grad, key_grad, value_grad = (torch.empty_like(tensor) for tensor in (query, key, value))
        folded_grad = _fold(query_grad, kv_heads)

        def part(queries: slice, own: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            one, two, three = kernel.gradients(
                grads[:, :, queries],
                folded[:, :, queries],
                keys[:, :, own],
                values[:, :, own],
                out[:, :, queries],
                lse[:, :, queries],
                causal,
                ctx.scale,
            )
            return one, two.sum(0), three.sum(0)

        for span in ctx.spans:
            own = slice(span.start, span.stop)
            folded_grad[:, :, own], key_grad[0, :, own], value_grad[0, :, own] = part(own, own, True)
        for span in ctx.spans:
            if span.end > span.stop:
                own, rest = slice(span.start, span.stop), slice(span.stop, span.end)
                for total, more in zip(
                    (folded_grad[:, :, rest], key_grad[0, :, own], value_grad[0, :, own]),
                    part(rest, own, False),
                    strict=True,
                ):
                    total += more
        return query_grad, key_grad, value_grad, None, None


def _fold(query: Tensor, kv_heads: int) -> Tensor:
    """A view [H / K, K, T, D] of [1, H, T, D]: query heads that share keys stand in the batch."""
    return query[0].view(kv_heads, -1, *query.shape[2:]).transpose(0, 1)


def _repeat(query: Tensor, *shared: Tensor) -> list[Tensor]:
    """Views [H / K, K, T, D] of tensors [1, K, T, D] that do not copy them."""
    return [tensor.expand(query.shape[1] // tensor.shape[1], -1, -1, -1) for tensor in shared]
