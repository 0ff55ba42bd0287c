"""Small random models and tokenizers for the tests of the language-model policy: made in memory, no download.

`tiny_tokenizer` and `tiny_model` are plain functions, so that a test may ask for the family, seed and template it
needs; the fixtures are the common cases.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEMPLATES = Path(__file__).parent / "templates"

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Special tokens of `tiny_tokenizer`: pad, start of a message, end of a message."""
ADDED = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<answer>",
    "</answer>",
    "<observation>",
    "</observation>",
)
"""Added tokens of `tiny_tokenizer` that are not special: decoding keeps them."""

_QWEN = (
    *(f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "object_ref_start", "vision_pad", "image_pad")),
)
_LLAMA = tuple(
    f"<|{name}|>"
    for name in (
        *("finetune_right_pad_id", "begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id"),
        *("eot_id", "python_tag", "reserved_special_token_0"),
    )
)
_STARCODER = (
    "<repo_name>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<jupyter_code>",
    "<empty_output>",
)
_CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_THOUGHTS = ("<think>", "</think>")

FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, str | None]] = {
    "chatml": (SPECIAL, ADDED, "<|im_end|>", None),
    "qwen25": (_QWEN, (*_CALLS[:2], "<|fim_prefix|>", "<|repo_name|>", "<|file_sep|>"), "<|im_end|>", None),
    "qwen3": (_QWEN, (*_CALLS, *_THOUGHTS, "<|fim_prefix|>", "<|file_sep|>"), "<|im_end|>", None),
    "llama3": (_LLAMA, (), "<|eot_id|>", "<|begin_of_text|>"),
    "smollm2": ((*SPECIAL, *_STARCODER), (), "<|im_end|>", "<|im_start|>"),
    "smollm3": ((*_LLAMA, "<|im_start|>", "<|im_end|>"), (*_CALLS, *_THOUGHTS), "<|im_end|>", None),
}
"""Special tokens, added tokens, end of a message and beginning of a text of the families of chat templates."""

CORPUS = (
    "Rank the candidate items by how likely this user is to choose each of them next.",
    "The user's latest items, oldest first:\n- Maple Guitar Stand (rated 5 of 5)\n- Steel Whisk, 12 in",
    "The 20 candidates:\n1. Red Guitar Strap\n2. Canvas Bag\n3. Café Mug, 350 ml\n4. Notebook – Lined\n5. Desk Lamp",
    "Tools:\n- get_user_profile(): Describe the user.\n- score_candidates(): Score every candidate.",
    'Then call tools, each as {"name": "score_candidates", "arguments": {"item_title": "Red Guitar Strap"}}',
    "Think if you like. Answer \\boxed{[8, 3, 15]} with up to ten candidate numbers, 1 to 20, most likely first.",
    "[1]=9 [2]=7 [3]=5 [4]=3 [5]=1 taken by those who took what this user took; 2 tool calls left.",
)


@cache
def _bpe(special: tuple[str, ...], added: tuple[str, ...], vocab_size: int) -> str:
    """A byte-level BPE trained on the corpus, as JSON; special and added tokens have the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - len(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer.to_str()


def tiny_tokenizer(
    template: str | None = "chatml",
    special: tuple[str, ...] = SPECIAL,
    added: tuple[str, ...] = ADDED,
    end: str = "<|im_end|>",
    vocab_size: int = 512,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer.

    Args:
        template: name of a file in `templates/`, without its ending; None: no chat template.
        special: special tokens; the first is the padding token.
        added: added tokens that are not special.
        end: the token that ends a message.
        vocab_size: at most so many tokens in all; at least 256 and the special and added ones.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe(special, added, vocab_size)), eos_token=end, pad_token=special[0]
    )
    if template is not None:
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return tokenizer


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the added tokens and the chat template of one of `FAMILIES`."""
    special, added, end, begin = FAMILIES[family]
    tokenizer = tiny_tokenizer(family, special, added, end)
    if begin is not None:
        tokenizer.bos_token = begin
    return tokenizer


def tiny_model(
    family: str = "qwen3", seed: int = 0, vocab_size: int = 512, context: int = 4096, layers: int = 2
) -> PreTrainedModel:
    """A random causal language model of 64 dimensions, in float32 and evaluation mode.

    Args:
        family: "qwen3", "llama" or "qwen2".
        seed: of the weights.
        vocab_size: rows of the embedding.
        context: `max_position_embeddings`.
        layers: number of layers.
    """
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family == "qwen2":
        shape.pop("head_dim")
    kinds = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }
    config, model = kinds[family]
    made = model(config(**shape))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return made.eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """The ChatML tokenizer of 512 tokens."""
    return tiny_tokenizer()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)
