"""Finds where a turn ends: a stop string in the text of the sampled tokens, without decoding the whole turn each time.

Each id's text is looked up once. Only a token whose text has the last character of a stop string can complete one, so
nearly all tokens cost one look-up in a table; for the few others the last tokens' texts are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agentrec_env.types import IntArray

_UNKNOWN, _PLAIN, _CLOSING = 0, 1, 2


class StopFinder:
    """Says which sampled tokens complete a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        """Of `tokenizer` only `decode` and `convert_ids_to_tokens` are used; ids it does not know have no text.

        Raises:
            ValueError: a stop string that is empty, or not ASCII (the bytes of other characters may lie in two tokens).
        """
        for stop in stops:
            if not stop or not stop.isascii():
                raise ValueError(f"a stop string must be ASCII text of at least one character, got {stop!r}")
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._closing = frozenset(stop[-1] for stop in stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._kinds = np.zeros(0, dtype=np.int8)
        self._texts: dict[int, str] = {}

    def candidates(self, ids: IntArray) -> list[int]:
        """Places in `ids` (int64 [N]) of the tokens that may complete a stop string, to be asked about with `ends`."""
        if not self._stops:
            return []
        if len(ids) and ids.max() >= len(self._kinds):
            self._kinds = np.concatenate([self._kinds, np.zeros(int(ids.max()) + 1024, dtype=np.int8)])
        kinds = self._kinds[ids]
        for place in np.flatnonzero(kinds == _UNKNOWN):
            text = self._text(int(ids[place]))
            kinds[place] = _PLAIN if self._closing.isdisjoint(text) else _CLOSING
            self._kinds[ids[place]] = kinds[place]
        found: list[int] = np.flatnonzero(kinds == _CLOSING).tolist()
        return found

    def ends(self, turn: Sequence[int]) -> bool:
        """Whether the last of a turn's sampled ids completes a stop string, which may begin in earlier ones."""
        last = self._text(turn[-1])
        text = last
        for place in range(len(turn) - 2, -1, -1):
            if len(text) >= len(last) + self._longest - 1:
                break
            text = self._text(turn[place]) + text
        first = max(0, len(text) - len(last) - self._longest + 1)
        return any(text.find(stop, first) >= 0 for stop in self._stops)

    def _text(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._decode(token)
        return text

    def _decode(self, token: int) -> str:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # an embedding row that the tokenizer has no token for
            return ""
        text = str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        # Sentencepiece decoders drop the space in front of the first word of a text.
        return f" {text}" if str(piece).startswith("\u2581") and not text.startswith(" ") else text
