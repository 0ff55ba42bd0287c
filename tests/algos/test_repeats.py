"""What an answer must not say: found exactly, and made unlikely."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.llm.packing import packs
from agents.llm.policy import Policy
from agents.llm.transcript import Transcript, TranscriptWriter
from algos.repeats import Repeats, unlikelihood
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer(added=tuple(str(number) for number in range(1, 21)))
NUMBERS = {number: TOKENIZER(str(number), add_special_tokens=False)["input_ids"][0] for number in range(1, 21)}


@dataclass(frozen=True)
class Opening:
    ids: tuple[int, ...]
    shared: int = 0


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def answer(named: list[int], shown: int = 0) -> Transcript:
    """An answer that names these candidates, of which the first are only shown."""
    texts = [", ".join(map(str, part)) for part in (named[:shown], named[shown:])]
    writer = TranscriptWriter(Opening(tuple(ids("lists: 3, 4, 5 [7]=2, [3]=1; answer \\boxed{["))))
    if shown:
        writer.observed(ids(texts[0] + ", "))
    told = ids(texts[1] + "]}</answer>")
    writer.sampled(told, [0.0] * len(told), "stop")
    return writer.freeze()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=10, unique=True), st.integers(0, 9))
def test_all_that_was_named_before_and_nothing_else(named: list[int], shown: int):
    shown = min(shown, len(named) - 1)
    transcript = answer(named, shown)
    found = Repeats(TOKENIZER, 20).find(transcript)
    places = [place for place, token in enumerate(transcript.ids.tolist()) if token in NUMBERS.values()][-len(named) :]
    expected = [(place, NUMBERS[before]) for k, place in enumerate(places) for before in named[:k] if k >= shown]
    assert found == expected


def test_an_answer_without_numbers_has_none():
    writer = TranscriptWriter(Opening(tuple(ids("which one?"))))
    told = ids("\\boxed{A}</answer>")
    writer.sampled(told, [0.0] * len(told), "stop")
    assert Repeats(TOKENIZER, 20).find(writer.freeze()) == []


def test_a_number_that_is_named_twice_is_right_where_it_stands():
    assert NUMBERS[4] not in [token for _, token in Repeats(TOKENIZER, 20).find(answer([4, 4]))]


def test_a_tokenizer_that_writes_digits_is_refused():
    with pytest.raises(ValueError, match="writes 10 in 2"):
        Repeats(tiny_tokenizer(), 20)


def test_the_scores_are_those_of_the_model():
    policy = Policy(tiny_model(vocab_size=len(TOKENIZER)), TOKENIZER)
    transcripts = [answer([3, 1, 7]), answer([3, 2, 9, 12]), answer([5, 6, 7, 8], shown=2)]
    repeats = Repeats(TOKENIZER, 20)
    expected = sum(len(repeats.find(transcript)) for transcript in transcripts)
    seen = 0
    for pack in packs(transcripts, 60):
        with torch.no_grad():
            own, added = policy(pack).logprobs, repeats.add(pack, transcripts)
            scores = policy(added).logprobs
        torch.testing.assert_close(scores[: len(own)], own)
        seen += len(scores) - len(own)
        for score, (number, place), token in zip(scores, added.index.tolist(), added.target.tolist(), strict=True):
            with torch.no_grad():
                logits = policy.model(torch.from_numpy(transcripts[number].ids[None, :place].copy())).logits[0, -1]
            assert float(score) == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
    assert seen == expected == 3 + 6 + 2 + 3


def test_unlikelihood_is_minus_the_log_of_the_rest():
    logprobs = torch.tensor([-0.1, -1.0, -5.0, -30.0, 0.0])
    values = unlikelihood(logprobs)
    for value, logprob in zip(values[:4], logprobs[:4], strict=True):
        assert float(value) == pytest.approx(-math.log1p(-math.exp(logprob)), rel=1e-4)
    assert math.isfinite(float(values[4]))
