"""What a model can do, found out on twelve tokens: the only test that also holds for families not yet written.

A model may transform its logits behind the output layer, mix tokens by other means than attention, or call attention in
its own way. Each would give wrong log-probabilities without an error, so a policy compares before it trusts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agents.llm.attention import IMPLEMENTATION, UnsupportedAttentionError
from agents.llm.loading import PolicyLoadError
from agents.llm.packing import Span

if TYPE_CHECKING:
    from agents.llm.policy import Policy

SPANS = (Span(0, 4, 12), Span(4, 8, 8), Span(8, 12, 12))
"""Two rows of eight tokens with four in common."""
PLACES = (0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7)
READ = (1, 2, 4, 6, 7, 10, 11)
"""Tokens whose states are compared; what is not read need not be right."""

_log = logging.getLogger(__name__)


def check_model(policy: Policy) -> None:
    """Compare the policy's logits of padded rows with the model's own.

    Raises:
        PolicyLoadError: The model is not causal, cannot be taken apart, or it changes its logits in an unknown way.
    """
    core = policy.core
    name = type(core).__name__
    decoder, head = core.get_decoder(), core.get_output_embeddings()
    if head is None or decoder is None or decoder is core:
        raise PolicyLoadError(
            f"{name} has no decoder and output layer that stand apart; choose a causal language model"
        )
    rows = _rows(_ids(policy))
    with torch.no_grad(), policy.arithmetic():
        expected = core(input_ids=rows, use_cache=False).logits.float()
    if not _close(policy, expected[0, :4], expected[1, :4]):
        raise PolicyLoadError(f"{name} reads tokens before it predicts them: it is no causal language model")
    with torch.no_grad():
        logits = policy.logits(policy.decode(rows).flatten(0, 1)).view_as(expected)
    if not _close(policy, logits, expected):
        raise PolicyLoadError(
            f"{name} changes its logits behind the output layer in a way that is not known here, so its "
            "log-probabilities would be wrong; report it with the model's id"
        )


def enable_sharing(policy: Policy) -> bool:
    """Set the attention of packs where the model reads packs as it reads padded rows, gradients too; say whether."""
    core = policy.core
    before = core.config._attn_implementation
    reason = _obstacle(policy)
    if reason is None:
        return True
    if core.config._attn_implementation != before:
        core.set_attn_implementation(before)
    _log.info("%s gets padded rows, not packs: %s", type(core).__name__, reason)
    return False


def _obstacle(policy: Policy) -> str | None:
    core = policy.core
    if not getattr(core, "_supports_attention_backend", False):
        return "its attention is not open to others"
    ids, places = _ids(policy), torch.tensor(PLACES, device=policy.device)
    try:
        core.set_attn_implementation(IMPLEMENTATION)
        try:
            with torch.no_grad():
                policy.decode(ids, places, ())
            return "it does not pass the layout on to its attention"
        except UnsupportedAttentionError:
            pass  # a layout without spans is refused where it arrives
        with torch.enable_grad():
            read = torch.tensor(READ, device=policy.device)
            packed = policy.decode(ids, places, SPANS, read)[read]
            padded = policy.decode(_rows(ids))
            padded = torch.cat([padded[0], padded[1, 4:]])[read]
            if not _close(policy, packed, padded):
                return "it mixes tokens by other means than attention"
            if weights := _small_weights(policy):
                # Not the sum of squares, which the last norm makes constant.
                loss = torch.arange(packed.numel(), device=packed.device).cos().view_as(packed)
                grads = [torch.autograd.grad((states * loss).sum(), weights) for states in (packed, padded)]
                if not _close(policy, *(torch.cat([grad.flatten().float() for grad in each]) for each in grads)):
                    return "the gradients of packs differ"
    except Exception as error:  # noqa: BLE001 - whatever a model makes of a pack, padded rows remain
        return f"{type(error).__name__}: {error}"
    return None


def _ids(policy: Policy) -> Tensor:
    """int64 [12]"""
    return (torch.arange(12, device=policy.device) * 7 + 3) % policy.vocabulary


def _rows(ids: Tensor) -> Tensor:
    """int64 [2, 8]: the rows of `SPANS`, padded."""
    return torch.stack([ids[:8], torch.cat([ids[:4], ids[8:]])])


def _small_weights(policy: Policy) -> list[Any]:
    """The smallest weights that are trained: enough to see whether gradients pass as they should."""
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad and not weight.is_inference()]
    return sorted(trained, key=lambda weight: weight.numel())[:8]


def _close(policy: Policy, one: Tensor, two: Tensor) -> bool:
    """Equal up to what the arithmetic of the policy loses."""
    one, two = one.detach(), two.detach()
    exact = not policy.mixed and two.dtype == torch.float32 and next(policy.model.parameters()).dtype == torch.float32
    scale = float(two.float().abs().max())
    return bool((one.float() - two.float()).abs().max() <= (1e-3 if exact else 0.1) * max(scale, 1e-12))
