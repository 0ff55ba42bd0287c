"""Low-rank adapters by peft: few weights to train, and the model without them as the reference at no cost.

Adapters begin as a change of nothing. Their random half is drawn from a seed of its own, so that making one leaves the
program's random numbers alone and two runs begin alike.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.llm.loading import PolicyLoadError


@dataclass(frozen=True)
class LoRA:
    """An adapter of `targets`: weights W become W + alpha / rank * B A, with A [rank, in] and B [out, rank]."""

    rank: int = 16
    """Of the change; 16 is ample for reinforcement learning, whose signal is a few bits an episode."""
    alpha: float = 32.0
    """Strength of the change; twice the rank keeps learning rates comparable between ranks."""
    targets: tuple[str, ...] = ()
    """Last parts of the names of the linear layers, ("q_proj", "v_proj") say; none: all but the output layer."""
    seed: int = 0
    """Of A; B begins at zero."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is at least 1; got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"alpha is positive; got {self.alpha}")


def attach(model: nn.Module, lora: LoRA, base: str) -> Any:
    """`model` with a fresh adapter, whose weights are float32 and alone trainable.

    Args:
        model: A transformers model; it is changed in place.
        lora: The adapter.
        base: Where the model came from, kept with the adapter so that it can be loaded again.

    Raises:
        PolicyLoadError: peft is missing, or no layer has one of the target names.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets) or "all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    try:
        with _undisturbed():
            adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
        raise PolicyLoadError(
            f"no adapter for the layers {', '.join(lora.targets) or 'all-linear'} of {base}: {error} Its linear "
            f"layers: {', '.join(names)}."
        ) from None
    generator = torch.Generator().manual_seed(lora.seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_A" in name:
                fresh = torch.empty(weight.shape)
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
                weight.copy_(fresh)
    # peft sets this from the model, which does not know a name such as "tiny".
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def load_adapter(model: nn.Module, folder: Path) -> Any:
    """`model` with the adapter that `folder` holds, trainable.

    Raises:
        PolicyLoadError: peft is missing, or the folder holds no LoRA adapter for this model in safetensors.
    """
    peft = _peft()
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode, config.lora_dropout = False, 0.0
        with _undisturbed():
            return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True, config=config)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise PolicyLoadError(f"the adapter in {folder} cannot be put on its base model: {error}") from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """peft draws random weights, which are replaced, and reads an attribute that newer transformers warn of."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise PolicyLoadError("LoRA needs the package peft: pip install 'agentrec-env[llm]'") from None
    return peft
