"""How a lesson's task looks where it is not to look as it is: shortened, with other names, with less in its tables.

A policy that has seen one world alone reads its names and its signs as that world has them, and is lost in the next.
Names of random letters teach it that names are not what it reads, unknown signs to rank by those that are there.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import numpy as np

from agentrec_env.types import Episode

MOST_WORDS = 10
MOST_LETTERS = 9
_ITEM = re.compile(r"^(- |(?:\d+|[AB])\. )(.*?)( \(rated [\d.]+ of 5\))?$", re.MULTILINE)
_ROW = re.compile(r"^(?:[a-z]+:[\d?] )+(?=\[)", re.MULTILINE)


def shorten(prompt: str, rules: str, how: Literal["whole", "numbers", "none"]) -> str:
    """`prompt`, which ends with `rules`: as it is, with items as bare numbers, or nothing at all."""
    if how == "none":
        return ""
    body = prompt.removesuffix(rules)
    return prompt if how == "whole" else _ITEM.sub(lambda found: found[1].rstrip(), body) + prompt[len(body) :]


def rename(prompt: str, rules: str, generator: np.random.Generator) -> str:
    """`prompt`, which ends with `rules`, with words of random letters in place of each item's name."""

    def word() -> str:
        codes = generator.integers(ord("a"), ord("z") + 1, size=int(generator.integers(1, MOST_LETTERS + 1)))
        letters = codes.astype(np.uint8).tobytes().decode()
        return letters.capitalize() if generator.random() < 0.7 else letters

    def name(found: re.Match[str]) -> str:
        words = [word() for _ in range(int(generator.integers(1, MOST_WORDS + 1)))]
        return f"{found[1]}{' '.join(words)}{found[3] or ''}"

    body = prompt.removesuffix(rules)
    return _ITEM.sub(name, body) + prompt[len(body) :]


def conceal(episode: Episode, signs: Collection[str]) -> Episode:
    """The episode as if nothing were known of `signs` in the tables of `compare_candidates`."""
    turns = tuple(replace(turn, observation=without(turn.observation, signs)) for turn in episode.turns)
    return replace(episode, turns=turns) if signs else episode


def without(text: str, signs: Collection[str]) -> str:
    """`text` as if nothing were known of `signs` in the rows of `compare_candidates` that it holds."""
    sign = re.compile(rf"\b({'|'.join(map(re.escape, signs))}):\d")
    return _ROW.sub(lambda row: sign.sub(r"\1:?", row[0]), text) if signs else text
