"""The one place where text from data or tools is made safe to show to a model.

Titles and reviews are written by strangers. A title that holds ``<|im_end|>`` or ``</tool_call>`` could end a turn or
forge a tool's answer, so every such token gets a word joiner (U+2060) after its first character: it reads the same,
but no tokenizer and no parser takes it for the token. Inserting cannot be undone by nesting, as deleting can.
"""

from __future__ import annotations

import re

WORD_JOINER = "\u2060"

_TAGS = (
    "think|tool_call|tool_calls|tool_response|tool|tools|observation|answer|s|bos|eos|pad|unk|mask|"
    "start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|file_sep|repo_name|"
    "function|parameter|function_calls|invoke|system|user|assistant|human|endoftext"
)
_CONTROL = re.compile(
    r"<(?=[|\uff5c])"  # <|im_end|>, <|eot_id|>, <|endoftext|> and the full-width bars of some families
    rf"|<(?=/?\s*(?:{_TAGS})(?:[\s=][^<>]*)?/?>)"  # <tool_call>, </answer>, <s>, <function=name>
    r"|<(?=/?<)"  # <<SYS>>
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|ARGS|CALL_ID)\])"
    r"|\\(?=boxed\b)",
    re.IGNORECASE,
)
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def neutralise(text: str) -> str:
    """``text`` with every chat-control token disarmed and invisible control characters removed. Idempotent."""
    return _CONTROL.sub(lambda match: match.group() + WORD_JOINER, _INVISIBLE.sub("", text))


def one_line(text: str) -> str:
    """``text`` with every run of white space as one blank, so that data cannot fake the lines of a prompt."""
    return " ".join(text.split())


def clip(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` characters, the cut being visible."""
    if len(text) <= limit:
        return text
    return f"{text[:limit].rstrip()}… ({len(text) - limit} more characters)"
