"""Decoders give the logits of the model's own forward pass, whatever its family, adapter and the order of the rows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from agents.llm.chat import Prompt
from agents.llm.decoder import Decoder, make_decoder
from agents.llm.fused import CPU, FusedDecoder, Layout
from agents.llm.network import Network
from agents.llm.plain import PlainDecoder
from agents.llm.step import Rounding
from agents.llm.weights import obstacle

VOCABULARY = 300
LENGTH = 512
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": LENGTH,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
FAST: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "qwen3, biases, no groups": Qwen3Config(
        **(SHAPE | {"num_key_value_heads": 6}), head_dim=16, attention_bias=True, tie_word_embeddings=False
    ),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama, biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama 3, scaled positions": LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "llama, yarn": LlamaConfig(**SHAPE, rope_parameters=YARN),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
}
SLOW: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=LENGTH, bos_token_id=None, eos_token_id=None
    ),
    "gpt_neox": GPTNeoXConfig(
        **{name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}, rotary_pct=0.25
    ),
    "mistral, sliding": MistralConfig(**SHAPE, sliding_window=24),
    "llama, dynamic positions": LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
}


def build(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, large enough for its logits to differ."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else 0.15 * noise)
    return model.eval()


@torch.no_grad()
def expected(model: Any, ids: list[int]) -> torch.Tensor:
    """[T, V]: the logits after each token, by a plain forward pass."""
    logits: torch.Tensor = model(torch.tensor([ids], device=next(model.parameters()).device), use_cache=False).logits
    return logits[0]


class Talk:
    """Conversations in a decoder, whose answers are compared with the model's own forward pass when they are over."""

    def __init__(self, model: Any, decoder: Decoder, rng: np.random.Generator) -> None:
        self.model, self.decoder, self.rng = model, decoder, rng
        self.ids: dict[int, list[int]] = {}
        self.heard: dict[int, list[tuple[int, torch.Tensor]]] = {}
        self.worst = 0.0

    def draw(self, count: int) -> list[int]:
        return [int(token) for token in self.rng.integers(0, VOCABULARY, count)]

    def hear(self, rows: list[int], logits: torch.Tensor) -> None:
        assert logits.dtype == torch.float32
        for row, got in zip(rows, logits, strict=True):
            self.heard[row].append((len(self.ids[row]) - 1, got.clone()))

    def begin(self, rows: list[int], prompts: list[Prompt]) -> None:
        for row, prompt in zip(rows, prompts, strict=True):
            self.ids[row], self.heard[row] = list(prompt.ids), []
        self.hear(rows, self.decoder.begin(rows, prompts))

    def feed(self, rows: list[int], counts: list[int]) -> None:
        more = [self.draw(count) for count in counts]
        for row, part in zip(rows, more, strict=True):
            self.ids[row] += part
        self.hear(rows, self.decoder.feed(rows, more))

    def release(self, row: int) -> None:
        self.decoder.release(row)
        right = expected(self.model, self.ids.pop(row))
        for place, got in self.heard.pop(row):
            self.worst = max(self.worst, float((got - right[place]).abs().max()))


def converse(model: Any, decoder: Decoder, device: torch.device, seed: int = 0, moves: int = 40) -> float:
    """Rows begin, go on one token or many at a time, pause and leave at random; the largest error of a logit."""
    rng = np.random.default_rng(seed)
    talk = Talk(model, decoder, rng)
    head = talk.draw(20)
    prompts = [Prompt(tuple(head + talk.draw(5 + 9 * number)), len(head)) for number in range(4)]
    prompts.append(Prompt(tuple(talk.draw(3)), 0))
    for _ in range(moves):
        free = [row for row in range(10) if row not in talk.ids]
        held = list(talk.ids)
        move = rng.choice(["begin", "step", "step", "many", "release"])
        if move == "begin" and free:
            rows = rng.permutation(free)[: rng.integers(1, 5)].tolist()
            talk.begin(rows, [prompts[number] for number in rng.integers(0, len(prompts), len(rows))])
        elif move == "release" and len(held) > 4:
            talk.release(int(rng.choice(held)))
        elif held:
            rows = rng.permutation(held)[: rng.integers(1, len(held) + 1)].tolist()
            for _ in range(3 if move == "step" else 1):
                talk.feed(rows, [1 if move == "step" else int(rng.integers(1, 40)) for _ in rows])
    for row in list(talk.ids):
        talk.release(row)
    return talk.worst


@pytest.mark.parametrize("name", FAST)
def test_families_are_decoded_from_fused_weights(name: str, device: torch.device) -> None:
    model = build(FAST[name]).to(device)
    decoder = make_decoder(model, LENGTH, torch.float32)
    assert isinstance(decoder, FusedDecoder)
    assert converse(model, decoder, device) < 1e-3


@pytest.mark.parametrize("name", SLOW)
def test_other_models_are_decoded_by_their_own_forward_pass(name: str, device: torch.device) -> None:
    model = build(SLOW[name]).to(device)
    decoder = make_decoder(model, LENGTH)
    assert isinstance(decoder, PlainDecoder)
    assert converse(model, decoder, device, moves=15) < 1e-3


@pytest.mark.parametrize(
    "layout",
    [
        Layout(prompt=16, own=16, piece=7),
        Layout(prompt=64, own=32, piece=64, rounding=Rounding(rows=4, tokens=16)),
        Layout(prompt=LENGTH, own=LENGTH, rounding=Rounding(rows=3, tokens=100)),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_sizes_of_slots_pieces_and_rounding_change_no_logit(layout: Layout, seed: int) -> None:
    model = build(FAST["qwen3"])
    decoder = FusedDecoder(model, LENGTH, torch.float32, torch.device("cpu"), layout=layout)
    assert converse(model, decoder, torch.device("cpu"), seed, moves=60) < 1e-3


def test_a_prompt_that_finds_no_room_leaves_the_others_as_they_were() -> None:
    model = build(FAST["qwen3"])
    layout = Layout(prompt=64, own=32, rounding=Rounding(rows=8, tokens=16))
    decoder = FusedDecoder(model, LENGTH, torch.float32, torch.device("cpu"), memory=300 * 1024, layout=layout)
    talk = Talk(model, decoder, np.random.default_rng(0))
    talk.begin([0], [Prompt(tuple(talk.draw(40)), 0)])
    talk.feed([0], [1])
    with pytest.raises(torch.OutOfMemoryError):
        decoder.begin([1], [Prompt(tuple(talk.draw(400)), 0)])
    talk.feed([0], [1])
    talk.release(0)
    assert talk.worst < 1e-3


@pytest.mark.gpu
def test_steps_replayed_on_a_gpu_change_no_logit() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    device = torch.device("cuda")
    model = build(FAST["qwen3"]).to(device)
    layout = Layout(prompt=64, own=64, rounding=Rounding(rows=8, tokens=64), graphs=True)
    decoder = FusedDecoder(model, LENGTH, torch.float32, device, layout=layout)
    assert converse(model, decoder, device, moves=200) < 1e-3


def test_a_window_longer_than_any_conversation_is_no_obstacle() -> None:
    model = build(SLOW["mistral, sliding"])
    assert obstacle(model, 24) is None
    assert "24 tokens" in str(obstacle(model, 25))


def test_a_model_that_keeps_no_cache_is_read_anew_each_time(caplog: pytest.LogCaptureFixture) -> None:
    model = build(SLOW["gpt2"])
    forward = model.forward

    def forgetful(input_ids: torch.Tensor, **_: Any) -> Any:
        return forward(input_ids, use_cache=False)

    model.forward = forgetful  # type: ignore[method-assign, assignment]
    decoder = make_decoder(model, LENGTH)
    assert "keeps no cache" in caplog.text
    assert converse(model, decoder, torch.device("cpu"), moves=10) < 1e-3


def test_a_forward_pass_with_something_more_is_not_decoded_from_weights() -> None:
    model = build(FAST["llama"])
    model.model.layers[0].register_forward_hook(lambda module, given, out: out * 1.5)
    decoder = make_decoder(model, LENGTH)
    assert isinstance(decoder, PlainDecoder)
    assert converse(model, decoder, torch.device("cpu"), moves=10) < 1e-3


def adapted(model: PreTrainedModel, **kwargs: Any) -> Any:
    """The model with a LoRA adapter whose matrices are not 0."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=0.3, task_type="CAUSAL_LM", **kwargs)
    with warnings.catch_warnings():  # peft asks the model for a property that transformers renames
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name and parameter.dim() == 2:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return wrapped


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", ["down_proj", "lm_head"]], ids=str)
def test_lora_is_merged_into_the_copies_and_the_model_left_alone(targets: Any, device: torch.device) -> None:
    plain = build(FAST["qwen2"])
    wrapped = adapted(plain, target_modules=targets).to(device).train()
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    decoder = make_decoder(wrapped, LENGTH, torch.float32)
    assert isinstance(decoder, FusedDecoder)
    assert wrapped.training
    assert all(torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())
    wrapped.eval()
    assert converse(wrapped, decoder, device, moves=15) < 1e-3
    with wrapped.disable_adapter():
        decoder.refresh()
        assert converse(wrapped, decoder, device, moves=15) < 1e-3
    decoder.refresh()
    assert converse(wrapped, decoder, device, moves=15) < 1e-3


def test_variants_of_lora_are_decoded_by_their_own_forward_pass() -> None:
    wrapped = adapted(build(FAST["qwen3"]), target_modules=["q_proj"], use_dora=True).eval()
    assert "q_proj" in str(obstacle(wrapped, LENGTH))
    decoder = make_decoder(wrapped, LENGTH)
    assert isinstance(decoder, PlainDecoder)
    assert converse(wrapped, decoder, torch.device("cpu"), moves=10) < 1e-3


@pytest.mark.parametrize("make", [lambda: build(FAST["llama, biases"]), lambda: build(SLOW["gpt2"])])
def test_refresh_takes_changed_weights_over(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    decoder = make_decoder(model, LENGTH)
    converse(model, decoder, torch.device("cpu"), moves=10)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    decoder.refresh()
    assert converse(model, decoder, torch.device("cpu"), moves=10) < 1e-3


def test_equal_prompts_and_the_head_of_different_ones_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    hidden = Network.hidden

    def counted(self: Network, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        read.append(len(ids))
        return hidden(self, ids, *rest)

    decoder = make_decoder(build(FAST["qwen3"]), LENGTH)
    monkeypatch.setattr(Network, "hidden", counted)
    head = tuple(range(100))
    prompts = [Prompt((*head, 7, 8, number), 100) for number in range(3)]
    decoder.begin(range(8), [prompts[row // 4] for row in range(8)])
    assert sum(read) == 100 + 2 * 3
    decoder.begin([8, 9], [prompts[0], prompts[2]])
    assert sum(read) == 100 + 3 * 3
    for row in range(10):
        decoder.release(row)
    decoder.begin([0], [prompts[0]])
    assert sum(read) == 100 + 4 * 3


def test_a_budget_of_memory_is_kept_and_what_is_spare_given_back() -> None:
    model = build(FAST["qwen3"])
    token = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, dimensions, bytes
    prompt = Prompt(tuple(range(10)), 0)
    decoder = FusedDecoder(
        model, LENGTH, torch.float32, torch.device("cpu"), memory=token * 64 * 30, layout=Layout(prompt=64, own=64)
    )
    decoder.begin(range(30), [prompt] * 30)
    with pytest.raises(torch.OutOfMemoryError, match="planned"):
        decoder.feed(range(30), [[1, 2]] * 30)
    decoder.feed(range(29), [[1, 2]] * 29)  # of 30 slots, one is for the prompt
    for row in range(8, 30):
        decoder.release(row)
    talk = Talk(model, decoder, np.random.default_rng(0))
    talk.ids = {row: list(prompt.ids) for row in range(8)}
    talk.heard = {row: [] for row in range(8)}
    for row in range(8):
        talk.ids[row] += [1, 2]
    talk.feed(list(range(8)), [2] * 8)
    for _ in range(3):
        talk.feed(list(range(8)), [1] * 8)
    for row in range(8):
        talk.release(row)
    assert talk.worst < 1e-3


def test_lower_precision_is_near(device: torch.device) -> None:
    model = build(FAST["qwen3"]).to(device)
    decoder = make_decoder(model, LENGTH, torch.bfloat16)
    assert isinstance(decoder, FusedDecoder)
    scale = float(expected(model, [1, 2, 3]).abs().max())
    assert 1e-4 < converse(model, decoder, device, moves=15) < 0.15 * scale
    assert CPU.graphs is False


def test_lower_precision_costs_no_more_than_in_the_models_own_forward(device: torch.device) -> None:
    """Scores of attention are not rounded: hundreds of tokens share one sum of exponentials."""
    ours, own = 0.0, 0.0
    for seed in range(4):
        exact = build(FAST["qwen3"], seed).to(device)
        with torch.no_grad():
            for name, parameter in exact.named_parameters():
                parameter.mul_(2.0 if "q_norm" in name or "k_norm" in name else 1.0).copy_(parameter.bfloat16())
        rough = copy.deepcopy(exact).bfloat16()
        ids = np.random.default_rng(seed).integers(0, VOCABULARY, 490).tolist()
        decoder = make_decoder(rough, LENGTH, torch.bfloat16)
        decoder.begin([0, 1], [Prompt(tuple(ids[:300]), 300)] * 2)
        decoder.feed([0, 1], [ids[300:450]] * 2)
        heard = torch.stack([decoder.feed([0, 1], [[token]] * 2)[0].clone() for token in ids[450:]])
        right = expected(exact, ids)[450:]
        ours += float((heard - right).abs().mean())
        own += float((expected(rough, ids)[450:] - right).abs().mean())
    assert ours < 1.02 * own
