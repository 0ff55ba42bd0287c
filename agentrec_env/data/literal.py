"""Python literals as data: the 2014 metadata writes one dict literal a line, which no JSON parser reads.

`ast.literal_eval` runs no code, but it can exhaust memory or the parser's stack on hostile text; so the text is first
held to the small language that the dump uses (strings, numbers, None/True/False, brackets) and to a shallow depth.
"""

from __future__ import annotations

import ast
import re
from typing import Any

_MAX_DEPTH = 16
_STRING = r"""[uU]?(?:'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+")"""
_NUMBER = r"-?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][-+]?\d++)?(?![\w.])"
_OTHER = r"[\s\[\]{}(),:]|None\b|True\b|False\b"
# Possessive throughout, so that hostile text costs one pass and no backtracking.
_LITERAL = re.compile(f"(?:{_STRING}|{_NUMBER}|{_OTHER})*+", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)


def parse_literal(line: bytes, max_bytes: int) -> Any:
    """The value of a Python literal. Raises `ValueError` for anything else; nothing is ever evaluated."""
    if len(line) > max_bytes:
        raise ValueError(f"Python literal longer than {max_bytes:,} bytes")
    text = line.decode("utf-8")
    if not _LITERAL.fullmatch(text):
        raise ValueError("neither JSON nor a Python dict of strings, numbers, lists and dicts")
    depth = 0
    for char in _STRINGS.sub(" ", text):
        if char in "[{(":
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError("nested too deeply")
        elif char in "]})":
            depth -= 1
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"no Python literal: {str(error)[:80]}") from None
