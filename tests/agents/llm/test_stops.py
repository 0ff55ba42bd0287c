"""Stop strings are found wherever their characters lie in the tokens of a turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agents.llm.stops import StopFinder
from tests.agents.llm.conftest import tiny_tokenizer


class Pieces:
    """A tokenizer whose ids are places in a list of texts."""

    def __init__(self, texts: Sequence[str | None]) -> None:
        self.texts = texts
        self.decoded: list[int] = []

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.texts[token] if token < len(self.texts) else None

    def decode(self, ids: Sequence[int], **_: object) -> str:
        self.decoded += ids
        return str(self.texts[ids[0]]).replace("\u2581", "")


def ended(finder: StopFinder, turn: Sequence[int]) -> int | None:
    """How many tokens of a turn are sampled until it stops, as the engine asks."""
    for count in range(1, len(turn) + 1):
        if finder.candidates(np.array(turn[count - 1 : count])) and finder.ends(turn[:count]):
            return count
    return None


@pytest.mark.parametrize(
    ("turn", "count"),
    [
        ([0, 1, 2, 0], 3),  # "</", "answer", ">"
        ([3, 0], 1),  # in one token, with text on both sides
        ([4, 5, 0], 2),  # begins inside a token and ends inside another
        ([6, 6, 7, 8, 0], 4),
        ([2, 1, 0, 2], None),
        ([9, 10], 1),  # a shorter stop
    ],
)
def test_stops_straddle_tokens_and_end_inside_them(turn: list[int], count: int | None) -> None:
    texts = ["</", "answer", ">", 'x</answer>"', "[1]</ans", "wer>\n", "", "</answer", ">", "STOP", "y"]
    assert ended(StopFinder(Pieces(texts), ("</answer>", "STOP")), turn) == count


def test_every_split_of_a_stop_into_real_tokens_is_found() -> None:
    tokenizer = tiny_tokenizer()
    finder = StopFinder(tokenizer, ("</tool_call>", "\n\nEnd."))
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "</tool_call>"]
    assert ended(finder, letters) == len(letters)
    assert ended(finder, [5, *tokenizer.encode("Red Guitar</tool_call>Strap")]) is not None
    turn = tokenizer.encode("Rank – Café. End.\n\nEnd. And")
    assert tokenizer.decode(turn[: ended(finder, turn)]).rstrip(" And") == "Rank – Café. End.\n\nEnd."


def test_each_token_is_decoded_once_and_unknown_ids_have_no_text() -> None:
    pieces = Pieces(["a>", "\u2581b", None])
    finder = StopFinder(pieces, (" b>",))
    for _ in range(3):
        assert finder.candidates(np.array([0, 1, 2, 7, 5000])) == [0]
    assert not finder.ends([2, 0])
    assert finder.ends([1, 2]) is False
    assert sorted(pieces.decoded) == [0, 1]


@pytest.mark.parametrize("stop", ["", "Ende –"])
def test_stops_that_cannot_be_found_are_refused(stop: str) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        StopFinder(Pieces([]), (stop,))
