"""The forward pass of a decoder's weights, around an attention that the caller brings.

Tokens of all sequences lie one after another in one batch without padding; only attention knows which belong together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.llm.weights import Layer, Weights

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From a layer's number, scaled queries [N, H, D], keys and values [N, K, D] to what the tokens take in, [N, H, D]."""


class Network:
    """Computes with weights that may change in place."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """[N, E]: the hidden states after the last layer of N tokens `ids` at `positions`, both int64 [N]."""
        weights = self.weights
        cosines, sines = weights.cosines[positions, None], weights.sines[positions, None]
        hidden = weights.embedding[ids]
        for number, layer in enumerate(weights.layers):
            mixed = attend(number, *self._project(layer, hidden, cosines, sines)).flatten(1)
            hidden = hidden + F.linear(mixed, layer.output, layer.output_bias)
            inner = F.linear(self._norm(hidden, layer.mlp_norm), layer.gate_up, layer.gate_up_bias)
            gate, up = inner.chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [N, V] of hidden states [N, E]."""
        weights = self.weights
        return F.linear(self._norm(hidden, weights.norm), weights.head, weights.head_bias).float()

    def _project(self, layer: Layer, hidden: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.weights
        qkv = F.linear(self._norm(hidden, layer.attention_norm), layer.qkv, layer.qkv_bias)
        qkv = qkv.view(len(hidden), weights.heads + 2 * weights.kv_heads, weights.head_dim)
        rotated, value = torch.split(qkv, [weights.heads + weights.kv_heads, weights.kv_heads], dim=1)
        if layer.head_norm is not None:
            rotated = F.rms_norm(rotated, (weights.head_dim,), eps=weights.eps) * layer.head_norm
        rotated = torch.addcmul(rotated * cosines, rotated.roll(weights.head_dim // 2, -1), sines)
        query, key = torch.split(rotated, [weights.heads, weights.kv_heads], dim=1)
        return query * weights.scale, key, value

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.weights.eps)
