"""What the engine needs of a model: conversations that are opened, grow, and are forgotten, with the logits after each.

There is a fast decoder for the families that `agents.llm.weights` knows (`agents.llm.fused`), and a slow one that is
right for every causal language model (`agents.llm.plain`). `make_decoder` picks, and checks the fast one on the spot.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from agents.llm.chat import Prompt
from agents.llm.fused import FusedDecoder
from agents.llm.plain import PlainDecoder, close, logits_after, probe
from agents.llm.weights import obstacle

_log = logging.getLogger(__name__)


class Decoder(Protocol):
    """A model with the conversations it has read. Rows are any numbers; what a call reads is kept until released."""

    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        """Open a conversation in each of N rows that have none; float32 [N, V]: the logits after its prompt."""

    def feed(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Append at least one id to each of N rows; float32 [N, V]: the logits after the last.

        Raises:
            torch.OutOfMemoryError: also from `begin`; the conversations are as they were, and may be tried again.
        """

    def release(self, row: int) -> None:
        """Forget a row's conversation; one that has none is left alone."""

    def refresh(self) -> None:
        """Take over changed weights of the model. All conversations are forgotten."""

    def free(self) -> None:
        """Forget all conversations and give their memory back."""


def make_decoder(
    model: Any,
    length: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int | None = None,
) -> Decoder:
    """The fastest decoder that gives what `model` gives.

    Args:
        model: Of transformers, adapted by peft or not.
        length: Tokens of the longest conversation.
        dtype: To compute in; by default bfloat16 on a GPU, else that of the model. The slow decoder keeps the model's.
        device: To compute on; by default that of the model. The slow decoder keeps the model's.
        memory: Bytes for keys and values; by default nine tenths of what is free on a GPU, no limit on a CPU. The slow
            decoder takes what it needs.
    """
    weight = next(model.parameters())
    device = weight.device if device is None else torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else weight.dtype
    reason = obstacle(model, length)
    if reason is None:
        decoder = FusedDecoder(model, length, dtype, device, memory)
        ids = probe(model)[:length]
        after = decoder.begin([0], [Prompt(tuple(ids), 0)])[0]
        decoder.release(0)
        if close(after, logits_after(model, ids), max(dtype, weight.dtype, key=lambda kind: torch.finfo(kind).eps)):
            return decoder
        reason = "its forward pass gives other logits than its weights say"
    _log.info("%s is decoded by its own forward pass, row by row: %s", type(model).__name__, reason)
    return PlainDecoder(model)
