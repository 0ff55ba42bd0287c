"""The policy against the model's own forward pass: scores, gradients, references, and what is saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from agents.llm.loading import PolicyLoadError
from agents.llm.lora import LoRA, attach
from agents.llm.packing import packs
from agents.llm.policy import Policy
from agents.llm.transcript import TranscriptWriter
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.agents.llm.transcripts import Head, groups


def made(family="qwen3", device="cpu", seed=0, lora=None, **options):
    model = tiny_model(family, seed).to(device)
    return Policy(model if lora is None else attach(model, lora, "base"), tiny_tokenizer(), **options)


def naive(policy, transcript, temperature=1.0):
    """Log-probabilities and entropies [T] by the model's own forward pass; 0 where nothing was sampled."""
    ids = torch.from_numpy(np.array(transcript.ids)).to(policy.device)
    logprobs = torch.log_softmax(policy.model(input_ids=ids[None], use_cache=False).logits[0].float() / temperature, -1)
    mask = torch.from_numpy(np.array(transcript.mask)).to(policy.device)
    of_ids = torch.cat([logprobs.new_zeros(1), logprobs[:-1].gather(1, ids[1:, None])[:, 0]])
    entropy = torch.cat([logprobs.new_zeros(1), -(logprobs.exp() * logprobs).sum(-1)[:-1]])
    return of_ids * mask, entropy * mask


def weights_of(transcripts, seed=1):
    """A factor for each token, as advantages are."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=len(one)).astype(np.float32) for one in transcripts]


def gradients(policy, loss):
    policy.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in policy.trainable().items() if weight.grad is not None}


def packed_gradients(policy, transcripts, factors, max_tokens, share, temperature=0.7):
    policy.zero_grad()
    for pack in packs(transcripts, max_tokens, share):
        (policy(pack, temperature).logprobs * pack.gather(factors).to(policy.device)).sum().backward()
    return {name: weight.grad.clone() for name, weight in policy.trainable().items() if weight.grad is not None}


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_equal_the_models_own_forward_pass(device, family, temperature):
    policy, transcripts = made(family, device), groups(0)
    assert policy.shares
    with torch.no_grad():
        expected = [naive(policy, one, temperature) for one in transcripts]
        for share in (True, False):
            for pack in packs(transcripts, 900, share):
                scores = policy(pack, temperature)
                assert scores.logprobs.dtype == torch.float32
                assert scores.values is None
                for got, which in ((scores.logprobs, 0), (scores.entropy, 1)):
                    wanted = torch.stack([expected[i][which][t] for i, t in pack.index.tolist()])
                    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
    for got, (wanted, _) in zip(policy.score(transcripts, 700, temperature), expected, strict=True):
        np.testing.assert_allclose(got, wanted.cpu(), atol=2e-5)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_gradients_do_not_depend_on_the_layout(device, lora):
    """Shared heads, no sharing, padding, any micro-batch and checkpointing: the gradients of the naive loss."""
    policy, transcripts = made(device=device, lora=lora), groups(1)
    if lora is not None:  # an adapter begins as no change, and half its gradients at 0
        with torch.no_grad():
            for number, weight in enumerate(policy.trainable().values()):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)).to(device) * 0.1)
    factors = weights_of(transcripts)
    loss = sum(
        (naive(policy, one, 0.7)[0] * torch.from_numpy(factor).to(device)).sum()
        for one, factor in zip(transcripts, factors, strict=True)
    )
    expected = gradients(policy, loss)
    scale = max(float(grad.abs().max()) for grad in expected.values())
    results = [
        packed_gradients(policy, transcripts, factors, size, share)
        for size, share in ((10**6, True), (600, True), (300, True), (10**6, False), (500, False))
    ]
    policy.shares = False
    results.append(packed_gradients(policy, transcripts, factors, 900, False))
    policy.shares = True
    Policy(policy.model, policy.tokenizer, gradient_checkpointing=True)  # switches it on in the model
    results.append(packed_gradients(policy, transcripts, factors, 900, True))
    for result in results:
        assert result.keys() == expected.keys()
        for name, grad in result.items():
            torch.testing.assert_close(grad, expected[name], atol=2e-5 * scale, rtol=1e-4, msg=name)


def test_no_gradient_on_what_was_not_sampled():
    """Factors of unsampled tokens reach nothing, and the output layer sees the sampled positions alone."""
    policy, transcripts = made(), groups(2)
    factors = weights_of(transcripts)
    other = [np.where(one.mask, factor, 1e9) for one, factor in zip(transcripts, factors, strict=True)]
    same = [packed_gradients(policy, transcripts, each, 900, True) for each in (factors, other)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    rows = []
    hook = policy.core.get_output_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    policy.score(transcripts)
    hook.remove()
    assert sum(rows) == sum(int(one.mask.sum()) for one in transcripts)


def test_what_comes_later_changes_nothing():
    writer = TranscriptWriter(Head(list(range(20))))
    writer.sampled([5, 6, 7], [0, 0, 0], "stop")
    one = writer.freeze()
    writer.observed(range(30, 60))
    two = writer.freeze()
    policy = made()
    scores = policy.score([one, two])
    np.testing.assert_array_equal(scores[0], scores[1][: len(one)])
    assert (scores[1][len(one) :] == 0).all()


def test_entropy_is_a_figure_unless_asked_for():
    policy, transcripts = made(), groups(3)
    (pack,) = packs(transcripts, 10**6)
    assert not policy(pack).entropy.requires_grad
    grads = gradients(policy, policy(pack, 0.8, entropy_gradient=True).entropy.sum())
    expected = gradients(policy, sum(naive(policy, one, 0.8)[1].sum() for one in transcripts))
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], atol=2e-5 * scale, rtol=1e-4)


SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.mark.parametrize(
    ("config", "kind", "options", "shares"),
    [
        (BloomConfig, BloomForCausalLM, {"n_layer": 2, "n_head": 4}, False),  # attention of its own
        (Lfm2Config, Lfm2ForCausalLM, {"layer_types": ["conv", "full_attention"]}, False),  # convolutions
        (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 16, "final_logit_softcapping": 2.0}, False),  # capped scores
        (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 3.0}, True),
        (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}, True),
        (MistralConfig, MistralForCausalLM, {"sliding_window": 150}, True),  # longer packs are padded
    ],
)
def test_other_families_are_right_too(config, kind, options, shares):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(**{**SMALL, **options})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    policy, transcripts = Policy(model, tiny_tokenizer()), groups(4, sizes=(2, 2))
    assert policy.shares is shares
    with torch.no_grad():
        for got, one in zip(policy.score(transcripts, 800), transcripts, strict=True):
            np.testing.assert_allclose(got, naive(policy, one)[0], atol=3e-5)


def test_refuses_models_that_are_no_causal_language_models():
    small = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    with pytest.raises(PolicyLoadError, match="reads tokens before it predicts them"):
        Policy(BertLMHeadModel(BertConfig(**small)).eval(), tiny_tokenizer())


def test_refuses_logits_that_it_does_not_understand():
    model = tiny_model()
    forward = model.forward

    def odd(*args, **kwargs):
        result = forward(*args, **kwargs)
        result.logits = result.logits.clamp(max=0.5)
        return result

    model.forward = odd
    with pytest.raises(PolicyLoadError, match="changes its logits"):
        Policy(model, tiny_tokenizer())


def test_dropout_is_off():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy, transcripts = Policy(model, tiny_tokenizer()), groups(5)
    assert policy.training
    one, two = (np.concatenate(policy.score(transcripts, 900)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    policy.shares = False
    np.testing.assert_allclose(np.concatenate(policy.score(transcripts, 900)), one, atol=2e-5)


@pytest.mark.parametrize("mixed", [False, True])
def test_bfloat16_is_near(device, mixed):
    exact, transcripts = made(device=device), groups(6)
    model = tiny_model().to(device)
    rough = Policy(model if mixed else model.bfloat16(), tiny_tokenizer(), mixed=mixed)
    assert rough.shares
    difference = np.concatenate(exact.score(transcripts)) - np.concatenate(rough.score(transcripts))
    assert np.abs(difference).mean() < 0.02
    (pack,) = packs(transcripts, 10**6)
    scores = rough(pack)
    assert scores.logprobs.dtype == torch.float32
    scores.logprobs.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in rough.parameters())


def test_an_adapter_begins_as_no_change_and_switches_off():
    plain, transcripts = made(), groups(7)
    model, state = tiny_model(), torch.get_rng_state()
    policy = Policy(attach(model, LoRA(rank=4, seed=3), "base"), tiny_tokenizer(), value_head=True)
    assert torch.equal(torch.get_rng_state(), state)
    expected = np.concatenate(plain.score(transcripts))
    np.testing.assert_array_equal(np.concatenate(policy.score(transcripts)), expected)
    weights = policy.trainable()
    assert weights
    assert all("lora_" in name or name.startswith("value_head.") for name in weights)
    again = made(lora=LoRA(rank=4, seed=3)).trainable()
    other = made(lora=LoRA(rank=4, seed=4)).trainable()
    assert all(torch.equal(weights[name], again[name]) for name in again)
    assert not all(torch.equal(weights[name], other[name]) for name in other)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(0.05)
    trained = np.concatenate(policy.score(transcripts))
    assert np.abs(trained - expected).max() > 0.1
    with policy.reference():
        np.testing.assert_array_equal(np.concatenate(policy.score(transcripts)), expected)
        assert not policy(packs(transcripts, 10**6)[0]).logprobs.requires_grad
    np.testing.assert_array_equal(np.concatenate(policy.score(transcripts)), trained)
    policy.keep_reference()
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(2)
    with policy.reference():
        np.testing.assert_array_equal(np.concatenate(policy.score(transcripts)), trained)


def test_adapters_are_for_the_layers_asked_for():
    policy = made(lora=LoRA(rank=2, targets=("q_proj", "v_proj")))
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in policy.trainable()} == {"q_proj", "v_proj"}
    with pytest.raises(PolicyLoadError, match=r"nothing_proj.*k_proj"):
        made(lora=LoRA(targets=("nothing_proj",)))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        LoRA(rank=0)


def test_full_weights_need_a_kept_reference():
    policy, transcripts = made(), groups(8)
    with pytest.raises(RuntimeError, match="keep_reference"), policy.reference():
        pass
    expected = np.concatenate(policy.score(transcripts))
    policy.keep_reference()
    names = set(policy.state_dict())
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.mul_(1.1)
    trained = np.concatenate(policy.score(transcripts))
    with policy.reference():
        np.testing.assert_array_equal(np.concatenate(policy.score(transcripts)), expected)
    np.testing.assert_array_equal(np.concatenate(policy.score(transcripts)), trained)
    assert set(policy.state_dict()) == names


def test_values_are_read_where_the_token_is_predicted():
    policy, transcripts = made(value_head=True), groups(9)
    (pack,) = packs(transcripts, 10**6)
    values = policy(pack).values
    assert values.shape == pack.target.shape
    assert (values == 0).all()
    with torch.no_grad():
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        hidden = policy.core.model(input_ids=torch.from_numpy(np.array(transcripts[0].ids))[None]).last_hidden_state[0]
        expected = policy.value_head(hidden)[:, 0]
        for (number, place), value in zip(pack.index.tolist(), policy(pack).values.tolist(), strict=True):
            if number == 0:
                assert value == pytest.approx(float(expected[place - 1]), abs=1e-4)


def test_bad_packs():
    policy = Policy(tiny_model(context=64), tiny_tokenizer())
    (pack,) = packs(groups(0, sizes=(1,)), 10**6)
    with pytest.raises(ValueError, match="exceeds the model's context of 64"):
        policy(pack)
    policy = Policy(tiny_model(vocab_size=300), tiny_tokenizer())
    with pytest.raises(ValueError, match="beyond the model's 300"):
        policy(pack)
    with pytest.raises(ValueError, match="temperature is positive"):
        policy(pack, temperature=0)
