"""The weights of a Hugging Face decoder as the engine multiplies with them: fused, LoRA merged, in the engine's dtype.

Families that share the Llama layout (RMSNorm, rotary positions, grouped-query attention, SwiGLU) differ only in which
biases and norms they have, so one record holds them all. `obstacle` says what a model has that the record has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the configurations that are decoded with fused weights (SmolLM is a Llama by type)."""

_PROJECTIONS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies do not depend on the length of the sequence."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: E hidden sizes, H query heads, K key-value heads of D dimensions, I of the feed-forward part."""

    attention_norm: Tensor
    """[E]"""
    qkv: Tensor
    """[(H + 2 K) D, E]: query, key and value projections, one above the other."""
    qkv_bias: Tensor | None
    """[(H + 2 K) D]"""
    head_norm: Tensor | None
    """[H + K, D]: norm weights of each query and key head, where the family has them."""
    output: Tensor
    """[E, H D]"""
    output_bias: Tensor | None
    """[E]"""
    mlp_norm: Tensor
    """[E]"""
    gate_up: Tensor
    """[2 I, E]"""
    gate_up_bias: Tensor | None
    """[2 I]"""
    down: Tensor
    """[E, I]"""
    down_bias: Tensor | None
    """[E]"""


@dataclass(frozen=True, eq=False)
class Weights:
    """A decoder for positions below P and V tokens."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """Of the attention scores."""
    eps: float
    """Of the norms."""
    embedding: Tensor
    """[V, E]"""
    layers: tuple[Layer, ...]
    norm: Tensor
    """[E]"""
    head: Tensor
    """[V, E]"""
    head_bias: Tensor | None
    """[V]"""
    cosines: Tensor
    """[P, D]: what rotary positions multiply a head with."""
    sines: Tensor
    """[P, D]: what they multiply its halves, exchanged, with; signs included."""

    @classmethod
    @torch.no_grad()
    def read(cls, model: Any, length: int, dtype: torch.dtype, device: torch.device) -> Weights:
        """Copy the weights of `model`, which has no `obstacle`, for sequences of up to `length` tokens."""
        causal, base, config = _parts(model)
        attention = base.layers[0].self_attn
        cosines, sines = base.rotary_emb(
            torch.zeros(1, device=base.rotary_emb.inv_freq.device),
            torch.arange(length, device=base.rotary_emb.inv_freq.device)[None],
        )
        head, head_bias = _dense(causal.get_output_embeddings())
        half = cosines.shape[-1] // 2

        def copy(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(device, dtype, copy=True)

        embedding = copy(causal.get_input_embeddings().weight)
        tied = head is causal.get_input_embeddings().weight
        return cls(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            scale=attention.scaling,
            eps=config.rms_norm_eps,
            embedding=_some(embedding),
            layers=tuple(
                Layer(**{name: copy(tensor) for name, tensor in _layer(layer, config).items()})  # type: ignore[arg-type]
                for layer in base.layers
            ),
            norm=_some(copy(base.norm.weight)),
            head=_some(embedding if tied else copy(head)),
            head_bias=copy(head_bias),
            cosines=_some(copy(cosines[0])),
            sines=_some(copy(torch.cat([-sines[0, :, :half], sines[0, :, half:]], dim=-1))),
        )

    @torch.no_grad()
    def refresh(self, model: Any) -> None:
        """Take over changed weights of the same model, in place."""
        causal, base, config = _parts(model)
        head, head_bias = _dense(causal.get_output_embeddings())
        self.embedding.copy_(causal.get_input_embeddings().weight)
        self.norm.copy_(base.norm.weight)
        if self.head is not self.embedding:
            self.head.copy_(head)
        if self.head_bias is not None:
            self.head_bias.copy_(_some(head_bias))
        for mine, layer in zip(self.layers, base.layers, strict=True):
            for name, tensor in _layer(layer, config).items():
                if tensor is not None:
                    getattr(mine, name).copy_(tensor)


def obstacle(model: Any, length: int) -> str | None:
    """Why `model` cannot be decoded from fused weights for sequences of `length` tokens; None where it can."""
    try:
        causal, base, config = _parts(model)
        layers = list(base.layers)
        linears = {
            f"{part}.{name}": getattr(getattr(layer, part), name)
            for layer in layers
            for part, names in _PROJECTIONS.items()
            for name in names
        }
        linears["head"] = causal.get_output_embeddings()
        rope = base.rotary_emb.rope_type
    except AttributeError as error:
        return f"it is not laid out as {', '.join(FAMILIES)} are: {error}"
    if config.model_type not in FAMILIES:
        return f"its type is {config.model_type!r}, not one of {', '.join(FAMILIES)}"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act!r}, not 'silu'"
    if rope not in _FIXED_ROPES:
        return f"its rotary positions are {rope!r}, whose frequencies change with the length"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < length:
        return f"its attention slides over {window} tokens, fewer than the {length} of a transcript"
    if type(causal.get_input_embeddings()) is not nn.Embedding:
        return f"its embedding is a {type(causal.get_input_embeddings()).__name__}"
    for name, module in linears.items():
        reason = _linear_obstacle(module)
        if reason:
            return f"its {name} {reason}"
    return None


def _linear_obstacle(module: nn.Module) -> str | None:
    base = getattr(module, "base_layer", module)
    if type(base) is not nn.Linear:
        return f"is a {type(base).__name__}, not a plain Linear"
    if base is module:
        return None
    if not hasattr(module, "lora_A"):
        return f"is adapted by {type(module).__name__}, not by LoRA"
    if getattr(module, "lora_variant", None) or any(getattr(module, "lora_bias", {}).values()):
        return "has a variant of LoRA with more than two matrices"
    return None


def _parts(model: Any) -> tuple[Any, Any, Any]:
    """The causal model inside an adapter, its decoder without the head, and the configuration."""
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    return causal, causal.model, causal.config


def _layer(layer: Any, config: Any) -> Mapping[str, Tensor | None]:
    """The tensors of one layer under the names of `Layer`'s fields, in the model's own dtype."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = [_dense(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    gate_up = [_dense(module) for module in (mlp.gate_proj, mlp.up_proj)]
    output, output_bias = _dense(attention.o_proj)
    down, down_bias = _dense(mlp.down_proj)
    head_norm = None
    if hasattr(attention, "q_norm"):
        head_norm = torch.cat(
            [
                attention.q_norm.weight.expand(config.num_attention_heads, -1),
                attention.k_norm.weight.expand(config.num_key_value_heads, -1),
            ]
        )
    found = {
        "attention_norm": layer.input_layernorm.weight,
        "qkv": torch.cat([weight for weight, _ in qkv]),
        "qkv_bias": _biases(qkv),
        "head_norm": head_norm,
        "output": output,
        "output_bias": output_bias,
        "mlp_norm": layer.post_attention_layernorm.weight,
        "gate_up": torch.cat([weight for weight, _ in gate_up]),
        "gate_up_bias": _biases(gate_up),
        "down": down,
        "down_bias": down_bias,
    }
    assert found.keys() == {field.name for field in fields(Layer)}
    return found


def _dense(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a Linear as it acts now: with its active LoRA adapters added, unless they are switched off."""
    base = getattr(module, "base_layer", module)
    weight = base.weight
    if base is not module and not module.disable_adapters and not module.merged:
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                weight = weight.float() + module.get_delta_weight(adapter).float()
    return weight, base.bias


def _biases(linears: list[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """The biases one after another, 0 for those that have none; None where none has."""
    if all(bias is None for _, bias in linears):
        return None
    return torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in linears])


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
