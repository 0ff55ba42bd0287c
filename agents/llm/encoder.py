"""Text to token ids such that only text which we trust can become a control token.

Titles and tool outputs are written by strangers, and every tokenizer has its own set of added tokens (`<|eot_id|>`,
`<think>`, …). Here such text is encoded by a copy of the tokenizer that knows no added tokens at all, so what it may
hold does not have to be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, TypeAlias

from tokenizers import Tokenizer, pre_tokenizers

Piece: TypeAlias = int | str
"""A control token, or plain text that may not become one."""

_BLANK = " \t\r\n\u2581"


class Encoder:
    """Encodes a mixture of control tokens and plain text.

    Args:
        tokenizer: of transformers, with a `tokenizers` backend ("fast").

    Raises:
        ValueError: a tokenizer without that backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"{type(tokenizer).__name__} has no `tokenizers` backend, which keeps item text from becoming control "
                "tokens; use a model with a tokenizer.json, or convert the tokenizer and save it"
            )
        self._tokenizer = tokenizer
        self.added: dict[str, int] = {
            token.content: number for number, token in backend.get_added_tokens_decoder().items()
        }
        """Every added token, special or not: its text and id."""
        self.special = frozenset(
            number for number, token in backend.get_added_tokens_decoder().items() if token.special
        )
        """Ids of the special ones among them."""
        self._control = frozenset(number for text, number in self.added.items() if text.strip(_BLANK))
        """Runs of blanks and line breaks, which are added tokens of some families, control nothing."""
        self._plain = Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._plain.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._plain.pre_tokenizer = _inside(backend.pre_tokenizer)

    def trusted(self, text: str) -> list[Piece]:
        """`text` of a chat template, in which the tokenizer finds its added tokens."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pieces: list[Piece] = []
        at = 0
        for number, (begin, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if number in self._control:
                pieces += [text[at:begin], number]
                at = end
        return [piece for piece in [*pieces, text[at:]] if piece != ""]

    def content(self, text: str, tags: Collection[str] = ()) -> list[Piece]:
        """`text` from outside, in which only `tags` are taken as added tokens, where the tokenizer has them."""
        known = [re.escape(tag) for tag in tags if tag in self.added]
        if not known:
            return [text] if text else []
        parts = re.split(f"({'|'.join(known)})", text)
        return [self.added[part] if place % 2 else part for place, part in enumerate(parts) if part]

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of `pieces`; neighbouring texts are encoded as one, as the tokenizer does between two added tokens."""
        ids: list[int] = []
        texts: list[str] = []
        for piece in pieces:
            if isinstance(piece, str):
                texts.append(piece)
            else:
                ids += self._text("".join(texts))
                ids.append(piece)
                texts.clear()
        return ids + self._text("".join(texts))

    def _text(self, text: str) -> list[int]:
        if not text:
            return []
        found = self._plain.encode(text, add_special_tokens=False)
        ids: list[int] = found.ids
        if self._control.isdisjoint(ids):
            return ids
        # The model's own vocabulary holds the text of an added token (SentencePiece): spell that by letters.
        safe: list[int] = []
        for number, (begin, end) in zip(ids, found.offsets, strict=True):
            safe += [number] if number not in self._control else self._letters(text[begin:end])
        return safe

    def _letters(self, text: str) -> list[int]:
        ids = [number for letter in text for number in self._plain.encode(letter, add_special_tokens=False).ids]
        return [number for number in ids if number not in self._control]


def _inside(pre_tokenizer: Any) -> Any:
    """The same for text that begins inside a conversation, where SentencePiece puts no blank before the first word."""
    if isinstance(pre_tokenizer, pre_tokenizers.Metaspace) and pre_tokenizer.prepend_scheme == "first":
        return pre_tokenizers.Metaspace(
            replacement=pre_tokenizer.replacement, prepend_scheme="never", split=pre_tokenizer.split
        )
    return pre_tokenizer
