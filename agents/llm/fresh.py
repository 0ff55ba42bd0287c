"""A new small language model with random weights, and a tokenizer of the environment's own: how the embedded one began.

Qwen3's architecture at a size that a laptop trains: short enough for two cores, and any tool that knows Qwen3 loads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from agentrec_env.vector import RecVectorEnv
from agents.llm.policy import Policy
from agents.llm.tokenizer import environment_texts, train_tokenizer


@dataclass(frozen=True)
class NewModel:
    """Shape of a model with `model="new"`."""

    hidden: int = 128
    """Width."""
    layers: int = 3
    """Blocks of attention and feed-forward."""
    heads: int = 4
    """Attention heads; each has hidden / heads dimensions."""
    kv_heads: int = 4
    """Heads of keys and values; a divisor of `heads`."""
    intermediate: int = 256
    """Width of the feed-forward layers."""
    vocabulary: int = 4096
    """Tokens of the tokenizer, which is trained on the environment's text."""
    context: int = 4096
    """Longest conversation in tokens."""
    text_episodes: int = 1000
    """Episodes whose text the tokenizer is trained on, every tool called in each."""

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(f"hidden / heads must be an even whole number; got {self.hidden} / {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads divides heads; got {self.kv_heads} and {self.heads}")


def new_policy(shape: NewModel, envs: RecVectorEnv, seed: int = 0, device: torch.device | str = "cpu") -> Policy:
    """A policy with a tokenizer trained on the text of `envs` and random weights.

    Args:
        shape: of the model.
        envs: whose tasks' text the tokenizer learns from; its training tasks, if it is to be fair.
        seed: of the tasks and the weights.
        device: of the weights.
    """
    tokenizer = train_tokenizer(environment_texts(envs, shape.text_episodes, seed), shape.vocabulary)
    model: nn.Module = new_model(shape, tokenizer, seed)
    return Policy(model.to(device), tokenizer)


def new_model(shape: NewModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Qwen3ForCausalLM:
    """Random normal weights: embeddings of deviation 0.1, matrices that keep the size of what they multiply, and those
    that write to the residual stream the smaller the deeper the model is."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):  # transformers fills weights from the global generator; they are replaced
        model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                scale = 0.1 if "embed" in name else weight.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= math.sqrt(2 * shape.layers)
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model
