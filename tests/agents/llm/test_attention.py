"""Attention over packs against the plain softmax of masked products, outputs and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agents.llm import attention
from agents.llm.attention import IMPLEMENTATION, UnsupportedAttentionError, longest, pack_attention
from agents.llm.kernels import Products, kernel_for
from agents.llm.packing import Span, packs
from tests.agents.llm.conftest import tiny_model
from tests.agents.llm.transcripts import groups

FOREST = (Span(0, 9, 40), Span(9, 20, 35), Span(20, 26, 26), Span(26, 35, 35), Span(35, 40, 40), Span(40, 47, 47))


def mask_of(spans, tokens):
    """bool [T, T]: what each token attends to."""
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for span in spans:
        own = span.stop - span.start
        mask[span.start : span.stop, span.start : span.stop] = torch.ones(own, own, dtype=torch.bool).tril()
        mask[span.stop : span.end, span.start : span.stop] = True
    return mask


def plain(query, key, value, mask, scale):
    repeat = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeat, 1).mT * scale
    weights = scores.masked_fill(~mask.to(scores.device), -torch.inf).softmax(-1)
    return (weights @ value.repeat_interleave(repeat, 1)).transpose(1, 2)


def tensors(device, heads, kv_heads, width, dtype=torch.float32, tokens=47):
    """As projections give them: [1, T, H, D] seen as [1, H, T, D]."""
    generator = torch.Generator().manual_seed(heads + width)
    return [
        torch.randn(1, tokens, count, width, generator=generator).to(device, dtype).transpose(1, 2).requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 16), (6, 1, 8), (3, 3, 24), (4, 4, 20)])
def test_equals_masked_products_forwards_and_backwards(device, monkeypatch, products, heads, kv_heads, width):
    if products:
        monkeypatch.setattr(attention, "kernel_for", lambda _: Products())
    inputs = tensors(device, heads, kv_heads, width)
    expected = plain(*inputs, mask_of(FOREST, 47), 0.3)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(device)
    wanted = torch.autograd.grad(expected, inputs, direction)
    out, weights = pack_attention(nn.Identity(), *inputs, None, scaling=0.3, spans=FOREST)
    assert weights is None
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    for one, two in zip(torch.autograd.grad(out, inputs, direction), wanted, strict=True):
        torch.testing.assert_close(one, two, atol=5e-6, rtol=1e-5)


WANTED = [
    [0],
    [46],
    [3, 4, 8, 9, 10, 19, 22, 23, 25, 30, 34, 39, 40, 41, 42, 46],
    list(range(20, 26)),
    list(range(47)),
]


def last_layer():
    layer = nn.Identity()
    layer.layer_idx, layer.config = 1, SimpleNamespace(num_hidden_layers=2)
    return layer


@pytest.mark.parametrize("wanted", WANTED)
def test_the_last_layer_is_right_for_the_tokens_that_are_wanted(device, wanted):
    inputs = tensors(device, 4, 2, 16)
    read = torch.tensor(wanted, device=device)
    whole = plain(*inputs, mask_of(FOREST, 47), 0.25)
    expected = torch.zeros_like(whole).index_copy(1, read, whole[:, read])
    direction = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1)).to(device)
    gradients = torch.autograd.grad(expected, inputs, direction)
    out, _ = pack_attention(last_layer(), *inputs, None, spans=FOREST, wanted=read)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
    for one, two in zip(torch.autograd.grad(out, inputs, direction), gradients, strict=True):
        torch.testing.assert_close(one, two, atol=5e-6, rtol=1e-5)


def test_other_layers_are_right_for_all_tokens(device):
    inputs = tensors(device, 4, 2, 16)
    first = last_layer()
    first.layer_idx = 0
    for layer in (first, nn.Identity()):
        out, _ = pack_attention(layer, *inputs, None, spans=FOREST, wanted=torch.tensor([3], device=device))
        torch.testing.assert_close(out, plain(*inputs, mask_of(FOREST, 47), 0.25), atol=2e-6, rtol=1e-5)


def test_gradients_are_exact_in_double_precision():
    inputs = [part.detach().double().requires_grad_() for part in tensors("cpu", 4, 2, 4, tokens=14)]
    forest = (Span(0, 3, 10), Span(3, 6, 10), Span(6, 8, 8), Span(8, 10, 10), Span(10, 14, 14))
    assert torch.autograd.gradcheck(
        lambda *parts: pack_attention(nn.Identity(), *parts, None, spans=forest)[0], inputs, atol=1e-7, fast_mode=True
    )


def test_half_precision_is_near(device):
    exact = tensors(device, 4, 2, 16)
    rough = [part.detach().bfloat16().requires_grad_() for part in exact]
    one, two = (pack_attention(nn.Identity(), *parts, None, spans=FOREST)[0] for parts in (exact, rough))
    assert two.dtype == torch.bfloat16
    torch.testing.assert_close(two.float(), one, atol=0.03, rtol=0.03)
    two.float().square().sum().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in rough)


def test_large_scores_do_not_overflow(device):
    query, key, value = (part.detach() for part in tensors(device, 4, 2, 16))
    out, _ = pack_attention(nn.Identity(), query * 300, key * 300, value, None, spans=FOREST)
    torch.testing.assert_close(
        out, plain(query * 300, key * 300, value, mask_of(FOREST, 47), 0.25), atol=1e-3, rtol=1e-3
    )


def test_the_fused_kernel_is_used_where_there_is_one(device):
    assert not isinstance(kernel_for(torch.empty(2, 2, 5, 16, device=device)), Products)
    if device.type == "cuda":
        assert isinstance(kernel_for(torch.empty(2, 2, 5, 12, device=device)), Products)


def test_without_a_layout_a_model_is_as_under_sdpa():
    """Generation and padded batches are untouched, so the attention can be set for good."""
    model = tiny_model("qwen3")
    ids = torch.randint(0, 512, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :7] = mask[2, :3] = 0
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(input_ids=ids, attention_mask=mask).logits
        text = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
        model.set_attn_implementation(IMPLEMENTATION)
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected, atol=0, rtol=0)
        again = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(text, again)


def test_refuses_what_it_would_get_wrong():
    inputs = tensors("cpu", 4, 2, 16)
    for wish in ({"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"sliding_window": 28}):
        with pytest.raises(UnsupportedAttentionError):
            pack_attention(nn.Identity(), *inputs, None, spans=FOREST, **wish)
    with pytest.raises(UnsupportedAttentionError, match="without spans"):
        pack_attention(nn.Identity(), *inputs, None, spans=())
    wide = torch.cat([inputs[2], inputs[2]], dim=-1)
    with pytest.raises(UnsupportedAttentionError, match="width"):
        pack_attention(nn.Identity(), *inputs[:2], wide, None, spans=FOREST)
    pack_attention(nn.Identity(), *inputs, None, spans=FOREST, sliding_window=29)


def test_longest_row():
    assert longest(FOREST) == 29
    for pack in packs(groups(0), 900):
        assert longest(pack.spans) == max(pack.lengths)
