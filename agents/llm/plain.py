"""The slower decoder that is right for any causal language model: the model's own forward pass, one row at a time.

Each row keeps the cache that the model itself makes. A model that keeps none, or whose cache does not give what a whole
forward pass gives, reads the whole conversation again for every token.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.llm.chat import Prompt

_PROBE = 12
"""Tokens on which a decoder is compared with a whole forward pass."""
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""How far logits may be off, relative to the largest; lower precisions: 0.1."""
_log = logging.getLogger(__name__)


@dataclass
class _Conversation:
    ids: list[int]
    cache: Any
    """Of all `ids`; None where there is none, and they are read again."""


class PlainDecoder:
    """A `Decoder` by the forward pass of `model` itself, in its own dtype and on its own device."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        accepted = inspect.signature(_inner(model).forward).parameters
        self._last_only = "logits_to_keep" in accepted
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24
        self._rows: dict[int, _Conversation] = {}
        self._cached = True
        self._cached = self._cache_is_right()
        if not self._cached:
            _log.warning("%s keeps no cache that can be used: every token reads all before it", type(model).__name__)

    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        read: dict[tuple[int, ...], tuple[Tensor, Any]] = {}
        for prompt in prompts:
            if prompt.ids not in read:
                read[prompt.ids] = self._forward(list(prompt.ids), None)
        for row, prompt in zip(rows, prompts, strict=True):
            self._rows[row] = _Conversation(list(prompt.ids), copy.deepcopy(read[prompt.ids][1]))
        return torch.stack([read[prompt.ids][0] for prompt in prompts])

    def feed(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        kept = [len(self._rows[row].ids) for row in rows]
        try:
            return torch.stack([self._extend(self._rows[row], more) for row, more in zip(rows, ids, strict=True)])
        except BaseException:
            for row, length in zip(rows, kept, strict=True):
                conversation = self._rows[row]
                del conversation.ids[length:]
                conversation.cache = None
            raise

    def _extend(self, conversation: _Conversation, ids: Sequence[int]) -> Tensor:
        """float32 [V]: logits after `ids` more."""
        new = list(ids) if conversation.cache is not None else [*conversation.ids, *ids]
        logits, conversation.cache = self._forward(new, conversation.cache)
        conversation.ids += ids
        return logits

    def release(self, row: int) -> None:
        self._rows.pop(row, None)

    def refresh(self) -> None:
        self._rows.clear()

    def free(self) -> None:
        self._rows.clear()

    def _cache_is_right(self) -> bool:
        ids = probe(self._model)
        whole = logits_after(self._model, ids)
        try:
            _, cache = self._forward(ids[:5], None)
            kept = copy.deepcopy(cache)
            self._forward(ids[:3], cache)
            _, kept = self._forward(ids[5:-1], kept)
            after, _ = self._forward(ids[-1:], kept)
        except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError):
            return False
        return close(after, whole)

    @torch.no_grad()
    def _forward(self, ids: list[int], cache: Any) -> tuple[Tensor, Any]:
        """float32 [V] logits after `ids`, and the cache; `cache` itself may be changed."""
        kwargs: dict[str, Any] = {"logits_to_keep": 1} if self._last_only else {}
        if self._cached:
            kwargs |= {self._cache_name: cache, "use_cache": True}
        with evaluating(self._model):
            out = self._model(input_ids=torch.tensor([ids], device=self._device), **kwargs)
        return out.logits[0, -1].float(), getattr(out, self._cache_name) if self._cached else None


def probe(model: Any) -> list[int]:
    """A few ids of the model's vocabulary."""
    vocabulary = model.get_input_embeddings().num_embeddings
    return [(7 + 31 * place) % vocabulary for place in range(_PROBE)]


@torch.no_grad()
def logits_after(model: Any, ids: Sequence[int]) -> Tensor:
    """float32 [V]: logits after `ids`, by one whole forward pass without a cache."""
    device = next(model.parameters()).device
    with evaluating(model):
        logits: Tensor = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
    return logits[0, -1].float()


def close(one: Tensor, other: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether two vectors of logits are the same up to the rounding of `dtype`."""
    limit = _TOLERANCE.get(dtype, 0.1) * max(1.0, float(other.abs().max()))
    return bool((one.to(other.device) - other).abs().max() <= limit)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout; each module's mode is put back."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model
