"""Text from data can never be a control token."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.text import clip, neutralise, one_line

TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|python_tag|>",
    "<s>",
    "</s>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<observation>",
    "</observation>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "<function=rank>",
    "\\boxed{",
    "<|user|>",
    "<tools>",
    "</tools>",
    "<｜begin▁of▁sentence｜>",
    "<THINK>",
    "</ Tool_Call >",
]


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_are_disarmed_and_read_the_same(token: str) -> None:
    safe = neutralise(f"a {token} b")
    assert token not in safe
    assert safe.replace("\u2060", "") == f"a {token} b"


@given(st.lists(st.sampled_from([*TOKENS, "<", ">", "|", "/", "\u2060", "\u200b", "\x00", "im_end", "x", "\\"])))
def test_no_mixture_of_tokens_survives(parts: list[str]) -> None:
    safe = neutralise("".join(parts))
    assert not any(token in safe for token in TOKENS)
    assert neutralise(safe) == safe
    assert not re.search(r"[\x00-\x08\u200b]", safe)


@given(st.text())
def test_any_text(text: str) -> None:
    assert neutralise(neutralise(text)) == neutralise(text)
    assert "\n" not in one_line(text)


def test_plain_text_is_untouched() -> None:
    text = 'Pens, 3 < 4 & 5 > 2; price <unknown>, "quoted" [Large] É ✓'
    assert neutralise(text) == text


def test_clip_shows_the_cut() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("abcdef", 3) == "abc… (3 more characters)"
