"""Packs: every sampled token once, common heads once, budgets kept, the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.llm.packing import MIN_SHARED, Span, packs
from agents.llm.transcript import Transcript, TranscriptWriter
from tests.agents.llm.transcripts import Head, groups, transcript


@st.composite
def families(draw):
    """Transcripts that branch from one another at random places, some equal, some without a sampled token."""
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    made: list[Transcript] = []
    for _ in range(draw(st.integers(0, 12))):
        if made and draw(st.booleans()):
            parent = made[draw(st.integers(0, len(made) - 1))]
            head = parent.ids[: draw(st.integers(1, len(parent)))].tolist()
        else:
            head = generator.integers(0, 3, draw(st.integers(1, 80))).tolist()
        made.append(transcript(generator, head, draw(st.integers(0, 2)), vocabulary=3))
    return made


@settings(deadline=None, max_examples=60)
@given(families(), st.integers(1, 400), st.booleans())
def test_every_sampled_token_is_scored_once_from_its_own_past(transcripts, max_tokens, share):
    made = packs(transcripts, max_tokens, share)
    places = [tuple(place) for pack in made for place in pack.index.tolist()]
    assert sorted(places) == [(i, t) for i, one in enumerate(transcripts) for t in np.flatnonzero(one.mask)]
    for pack in made:
        paths = [np.concatenate([np.arange(*run) for run in row]) for row in pack.rows]
        for (number, place), row, source, target in zip(
            pack.index.tolist(), pack.row.tolist(), pack.source.tolist(), pack.target.tolist(), strict=True
        ):
            ids = transcripts[number].ids
            path = paths[row]
            assert target == ids[place]
            assert source == path[place - 1]
            np.testing.assert_array_equal(pack.ids.numpy()[path[:place]], ids[:place])
            np.testing.assert_array_equal(pack.positions.numpy()[path], np.arange(len(path)))


@settings(deadline=None, max_examples=60)
@given(families(), st.integers(1, 400))
def test_spans_are_the_forest_of_the_rows(transcripts, max_tokens):
    """What a token attends to by the spans is its row up to itself, for every row that it is in."""
    for pack in packs(transcripts, max_tokens):
        covered = [place for span in pack.spans for place in range(span.start, span.stop)]
        assert covered == list(range(pack.tokens))
        seen = np.zeros((pack.tokens, pack.tokens), bool)
        for span in pack.spans:
            for place in range(span.start, span.stop):
                seen[place, span.start : place + 1] = True
            seen[span.stop : span.end, span.start : span.stop] = True
        for row in pack.rows:
            path = np.concatenate([np.arange(*run) for run in row])
            for place, token in enumerate(path):
                assert np.flatnonzero(seen[token]).tolist() == path[: place + 1].tolist()


@settings(deadline=None, max_examples=60)
@given(families(), st.integers(1, 400))
def test_budgets_are_kept(transcripts, max_tokens):
    for pack in packs(transcripts, max_tokens):
        assert pack.tokens <= max_tokens or len(pack.rows) == 1
        assert pack.tokens <= sum(pack.lengths)
    for pack in packs(transcripts, max_tokens, share=False):
        assert pack.tokens == sum(pack.lengths)
        assert len(pack.rows) * max(pack.lengths) <= max_tokens or len(pack.rows) == 1


def test_a_group_has_its_prompt_once_and_all_groups_their_system_message():
    transcripts = groups(0, sizes=(3, 2), system=100, task=40)
    (pack,) = packs(transcripts, 10**6)
    tails = sum(int(np.flatnonzero(one.mask)[-1]) - 140 for one in transcripts[:-1])  # the last is the first again
    assert pack.tokens == 100 + 2 * 40 + tails
    assert pack.spans[0] == Span(0, 100, pack.tokens)


def test_short_heads_are_not_worth_a_span():
    generator = np.random.default_rng(0)
    for common, spans in ((MIN_SHARED - 1, 2), (MIN_SHARED, 3)):
        head = generator.integers(0, 512, common).tolist()
        pair = [transcript(generator, [*head, own], 1) for own in (1, 2)]
        (pack,) = packs(pair, 10**6)
        assert len(pack.spans) == spans


def test_packs_depend_on_the_transcripts_alone():
    transcripts = groups(3)
    order = np.random.default_rng(0).permutation(len(transcripts))
    one = packs(transcripts, 700)
    two = packs([transcripts[i] for i in order], 700)
    assert [pack.ids.tolist() for pack in one] == [pack.ids.tolist() for pack in two]
    assert [pack.spans for pack in one] == [pack.spans for pack in two]


def test_gather_picks_the_entries_of_the_scored_tokens():
    transcripts = groups(4)
    for pack in packs(transcripts, 900):
        picked = pack.gather([one.logprobs for one in transcripts]).tolist()
        assert picked == [float(transcripts[i].logprobs[t]) for i, t in pack.index.tolist()]


def test_what_has_nothing_to_score_is_left_out():
    writer = TranscriptWriter(Head([1, 2, 3]))
    assert packs([writer.freeze()], 100) == []
    assert packs([], 100) == []
    writer.sampled([4], [-1.0], "end")
    writer.observed([5] * 50)
    (pack,) = packs([writer.freeze()], 100)
    assert pack.ids.tolist() == [1, 2, 3]  # the scored token and what follows it are not read


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        packs(groups(0), 0)
    writer = TranscriptWriter(Head([]))
    writer.sampled([4], [-1.0], "end")
    with pytest.raises(ValueError, match="transcript 1 begins with a sampled token"):
        packs([groups(0)[0], writer.freeze()], 100)
