"""How much memory a run needs, before it is begun, and how much it has taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from agents.llm.likelihood import chunk_elements
from agents.llm.policy import Policy

STATES = 20
"""States of the model's width that training keeps for each token and layer, beside three of the width of the
feed-forward layer: autograd keeps 17 in transformers' Qwen3 and 13 in its Llama; the rest is for the way back."""


def needed(
    policy: Policy,
    dtype: str,
    micro_tokens: int,
    rows: int,
    longest: int,
    checkpointing: bool = False,
    reference: bool = False,
    pieces: int = 1,
) -> dict[str, float]:
    """GiB by purpose in each process, an upper estimate: it takes all rows to reach their last token at once, and
    weights in pieces to be whole, as they are in rollouts.

    Args:
        policy: What is trained.
        dtype: Of the run's settings.
        micro_tokens: Tokens computed at a time.
        rows: Episodes that the policy plays at once; 0: it never plays.
        longest: Tokens of an episode, at most.
        checkpointing: Whether layers are computed again on the way back.
        reference: Whether the weights of the beginning are kept.
        pieces: Processes over which the weights are cut up.
    """
    config = policy.core.config.get_text_config()
    trained = sum(w.numel() * w.element_size() for w in policy.trainable().values())
    weights = sum(w.numel() * w.element_size() for w in policy.parameters())
    gpu = policy.device.type == "cuda"
    sampler = (2 if gpu and dtype != "float32" else 4 if dtype != "bfloat16" else 2) / 4
    size = 2 if dtype != "float32" else 4
    layers = config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * layers * heads * width * 4 * sampler
    layer = (STATES * config.hidden_size + 3 * getattr(config, "intermediate_size", 4 * config.hidden_size)) * size
    kept = layers * config.hidden_size * size + layer if checkpointing else layers * layer
    parameters = sum(w.numel() for w in policy.model.parameters())
    own = trained / pieces
    bytes_by_purpose = {
        "weights": weights,
        "a piece of them": own if pieces > 1 else 0,
        "gradients": own,
        "optimizer": 2 * own,
        "reference": own if reference else 0,
        "sampler's weights": parameters * 4 * sampler if rows else 0,
        "sampler's keys and values": row * rows * min(longest, policy.context),
        "activations": kept * micro_tokens,
        "logits": 3 * 4 * chunk_elements(policy.device),
    }
    return {purpose: count / 2**30 for purpose, count in bytes_by_purpose.items() if count}


def available(device: torch.device) -> float | None:
    """GiB that are free; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    try:  # what Linux would give, caches that it can drop included
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) / 2**20
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def peak_memory(device: torch.device) -> float:
    """GiB at most so far: on a GPU of tensors, else of the process; 0 where nobody says."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def table(purposes: Mapping[str, float], free: float | None) -> str:
    """The estimate in lines."""
    lines = [f"  {purpose:<28}{_size(gib)}" for purpose, gib in purposes.items()]
    total = sum(purposes.values())
    lines.append(f"  {'at most':<28}{_size(total)}" + ("" if free is None else f" of {_size(free).strip()} free"))
    if free is not None and total > free:
        lines.append(
            "  That may not fit: lower --micro-tokens or --rows, set --gradient-checkpointing, or train an adapter "
            "(--lora-rank 16)"
        )
    return "\n".join(lines)


def _size(gib: float) -> str:
    return f"{gib:8.1f} GiB" if gib >= 1 else f"{1024 * gib:8.1f} MiB"
