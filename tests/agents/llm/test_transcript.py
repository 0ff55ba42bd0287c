"""The token record of an episode: what goes in comes out, and the mask says what was sampled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.llm.chat import Prompt
from agents.llm.transcript import Transcript, TranscriptWriter, TurnSpan

IDS = st.lists(st.integers(0, 2**31), max_size=6)
STEPS = st.lists(st.tuples(st.booleans(), IDS), max_size=8)


@given(IDS, STEPS, st.data())
def test_the_mask_is_true_exactly_on_sampled_tokens(
    prompt: list[int], steps: list[tuple[bool, list[int]]], data
) -> None:
    shared = data.draw(st.integers(0, len(prompt)))
    writer = TranscriptWriter(Prompt(tuple(prompt), shared))
    ids, mask, logprobs = list(prompt), [False] * len(prompt), [0.0] * len(prompt)
    for sampled, new in steps:
        scores = [-0.5 * place - 0.25 for place in range(len(new))] if sampled else [0.0] * len(new)
        if sampled:
            writer.sampled(new, scores, "stop")
        else:
            writer.observed(new)
        ids += new
        mask += [sampled] * len(new)
        logprobs += scores
    transcript = writer.freeze()
    assert transcript.ids.tolist() == ids
    assert transcript.mask.tolist() == mask
    assert transcript.logprobs.tolist() == logprobs
    assert (transcript.prompt, transcript.shared) == (len(prompt), shared)
    assert transcript.sampled.tolist() == [token for sampled, new in steps if sampled for token in new]
    assert [transcript.ids[turn.start : turn.end].tolist() for turn in transcript.turns] == [
        new for sampled, new in steps if sampled
    ]
    assert len(transcript) == len(writer) == len(ids)
    assert (transcript.ids.dtype, transcript.mask.dtype, transcript.logprobs.dtype) == (np.int64, bool, np.float32)


def test_a_transcript_is_finished_when_it_is_frozen() -> None:
    writer = TranscriptWriter(Prompt((1, 2), 1))
    writer.sampled([3], [-1.0], "end")
    transcript = writer.freeze()
    writer.observed([4])
    assert transcript.ids.tolist() == [1, 2, 3]
    assert writer.freeze().ids.tolist() == [1, 2, 3, 4]
    for array in (transcript.ids, transcript.mask, transcript.logprobs):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_each_sampled_token_has_its_probability() -> None:
    writer = TranscriptWriter(Prompt((1,), 0))
    with pytest.raises(ValueError, match="got 1 for 2"):
        writer.sampled([3, 4], [-1.0], "stop")
    assert len(writer) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": [False, True, True]}, "exactly on the tokens of the turns"),
        ({"mask": [False, True]}, "mask has shape"),
        ({"logprobs": [0.0]}, "logprobs has shape"),
        ({"shared": 3}, "shared <= prompt"),
        ({"prompt": 4}, "shared <= prompt"),
        ({"turns": (TurnSpan(1, 4, "stop"),)}, "turns follow the prompt"),
        ({"turns": (TurnSpan(0, 2, "stop"),)}, "turns follow the prompt"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    parts = {
        "ids": [5, 6, 7],
        "mask": [False, True, False],
        "logprobs": [0.0, -1.0, 0.0],
        "prompt": 1,
        "shared": 0,
        "turns": (TurnSpan(1, 2, "stop"),),
    }
    Transcript(**parts)
    with pytest.raises(ValueError, match=message):
        Transcript(**(parts | change))
