"""Attention of one block of queries to one block of keys, with its log-sum-exp, forwards and backwards.

torch's fused kernels give the log-sum-exp that merging needs, but only below its public interface; these are the same
operators that torch's own context parallelism merges. Where a device or a shape has no fused kernel, products and a
softmax do the same. All tensors are [B, K, T, D]; keys and values may repeat along B with stride 0.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_aten = torch.ops.aten


class Kernel(Protocol):
    """A pair of passes for queries [B, K, Q, D] and keys and values [B, K, S, D]."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """[B, K, Q, D], and the log-sum-exp of each query's scores [B, K, Q], float32 or wider.

        With `causal`, Q = S and a query attends to the keys up to its own place.
        """

    def gradients(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, each [B, K, ., D].

        `out` and `lse` may be those of attention to more keys than these: the gradients are then the part of these.
        """


class CpuFlash:
    """The tiled kernel for CPUs: any float dtype, memory linear in the length."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        return out, lse

    def gradients(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        one, two, three = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
        return one, two, three


class CudaFlash:
    """FlashAttention: float16 and bfloat16, widths up to 256 that are multiples of 8."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
        return out, lse

    def gradients(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The state of the random numbers is read for dropout alone.
        nothing = torch.zeros(2, dtype=torch.uint64, device=query.device)
        one, two, three = _aten._scaled_dot_product_flash_attention_backward(
            grad,
            query,
            key,
            value,
            out,
            lse.contiguous(),
            None,
            None,
            query.shape[2],
            key.shape[2],
            0.0,
            causal,
            nothing,
            nothing,
            scale=scale,
        )
        return one, two, three


class CudaEfficient:
    """The memory-efficient kernel of xFormers, which has float32 too; widths that are multiples of 8."""

    _ALIGNMENT = 32
    """Its backward pass wants the log-sum-exp padded to this."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
        return out, lse[:, :, : query.shape[2]]

    def gradients(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        padded = torch.nn.functional.pad(lse, (0, -lse.shape[2] % self._ALIGNMENT), value=torch.inf).contiguous()
        nothing = torch.zeros((), dtype=torch.int64)  # state of the random numbers, read for dropout alone
        one, two, three, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad,
            query,
            key,
            value,
            None,
            out,
            padded,
            nothing,
            nothing,
            0.0,
            [True, True, True, False],
            causal,
            scale=scale,
        )
        return one, two, three


class Products:
    """Plain products and a softmax: any device and width, memory quadratic in the length."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        scores = self._scores(query, key, causal, scale)
        lse = scores.logsumexp(-1)
        return ((scores - lse[..., None]).exp_() @ value.to(scores.dtype)).to(query.dtype), lse

    def gradients(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = (self._scores(query, key, causal, scale) - lse[..., None]).exp_()
        grad, out = grad.to(weights.dtype), out.to(weights.dtype)
        inner = weights * (grad @ value.to(weights.dtype).mT - (grad * out).sum(-1, keepdim=True)) * scale
        one, two, three = inner @ key.to(inner.dtype), inner.mT @ query.to(inner.dtype), weights.mT @ grad
        return one.to(query.dtype), two.to(key.dtype), three.to(value.dtype)

    @staticmethod
    def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
        """[B, K, Q, S]"""
        dtype = torch.promote_types(query.dtype, torch.float32)
        scores = query.to(dtype) @ key.to(dtype).mT * scale
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores.masked_fill_(later, -torch.inf)
        return scores


def kernel_for(query: Tensor) -> Kernel:
    """The fastest one for such queries [B, K, Q, D]."""
    width = query.shape[-1]
    if query.device.type == "cpu":
        return CpuFlash()
    if query.device.type == "cuda" and torch.version.hip is None and width % 8 == 0 and width <= 256:
        return CudaFlash() if query.dtype in (torch.float16, torch.bfloat16) else CudaEfficient()
    return Products()
