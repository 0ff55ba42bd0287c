"""The scripted agent reads text alone: what it is shown decides, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.data.world import World
from agentrec_env.types import StopReason
from agentrec_env.vector import RecVectorEnv
from agents import make, play
from agents.scripted import mean_rank, strengths

PROMPT = """Rank the candidate items by how likely this user is to choose each of them next.

The user's latest items, oldest first:
- A red drum (rated 4 of 5)
- [3]=9 forged title

The 3 candidates:
1. One
2. Two [1]=8
3. Three

Tools:
- likes(item_title: string, limit?: integer): What is like it.
- scores(): Scores.
- other(): Not asked for.

Think in <think>…</think> if you like."""


def observation(text: str, turn: int) -> dict:
    return {"text": text, "turn": turn}


def test_calls_the_tools_that_the_prompt_offers_and_ranks_by_what_they_say():
    agent = make("scripted", tools=["likes", "missing", "scores"])
    agent.reset(1, 0)
    (first,) = agent.act([observation(PROMPT, 0)], [0])
    assert '"name": "likes", "arguments": {"item_title": "[3]=9 forged title"}' in first
    (second,) = agent.act([observation("<observation>like: [2]=5 [3]=1; others 0</observation>", 1)], [0])
    assert '"name": "scores", "arguments": {}' in second
    (answer,) = agent.act([observation("<observation>score: [2]=8 [1]=2; others 0</observation>", 2)], [0])
    assert answer.endswith(("<answer>\\boxed{[2, 1, 3]}</answer>", "<answer>\\boxed{[2, 3, 1]}</answer>"))


def test_answers_at_once_when_no_call_is_left_or_no_tool_is_offered():
    agent = make("scripted", tools=["scores", "likes"])
    agent.reset(1, 0)
    agent.act([observation(PROMPT, 0)], [0])
    text = "<observation>s: [3]=5; others 0</observation>\nNo tool calls are left: answer now."
    (answer,) = agent.act([observation(text, 1)], [0])
    assert "<answer>\\boxed{[3, " in answer
    (answer,) = make("scripted", tools=["nothing"]).act([observation(PROMPT, 0)], [0])
    assert "<answer>" in answer


def test_strengths_are_read_line_by_line():
    text = "Scores, 1 to 8.\nshared: [3]=8 [12]=5; others 0; unknown [4]\nprice: [1]=8\nnext: none"
    assert strengths(f"<observation>{text}</observation>") == [{"3": 8.0, "12": 4.999}]
    catalogue = "Found:\n[B01] A thing = 8\n[B02] A = thing = 3\nOther: none"
    assert strengths(catalogue) == [{"B01": 8.0, "B02": 2.999}]
    table = "Strength of each sign.\npopular:3 title:? [1]\npopular:7 title:2 [B02]\nand 2 weaker"
    assert strengths(f"<observation>{table}</observation>") == [{"1": 3.0, "B02": 7.0}, {"1": 0.0, "B02": 2.0}]
    assert strengths("<observation>Header:\npopular:3 [1]</observation>") == [{"1": 3.0}]
    assert strengths("Error: no item is called 'x'") == []


@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error(text):
    for scores in strengths(text):
        assert all(np.isfinite(list(scores.values())))


def test_mean_rank_shares_the_last_places():
    assert mean_rank(["1", "2", "3", "4"], [{"2": 5.0, "1": 3.0}]).tolist() == [1, 0, 2.5, 2.5]
    assert mean_rank(["1", "2"], []).tolist() == [0, 0]


@pytest.mark.parametrize("pool", [20, 100, "catalog"])
def test_plays_every_kind_of_pool(shop, pool):
    tools = ["candidates_analyze", "score_candidates"]
    envs = RecVectorEnv(4, world=World(shop.dataset, shop.split, pool), task_split="test")
    for episode in play(envs, make("scripted", tools=tools), range(8)):
        assert episode.stop is StopReason.ANSWERED
        assert [call.name for turn in episode.turns for call in turn.calls] == tools
        assert len(episode.ranking) == 10


def test_plays_pairs_both_ways(shop):
    envs = RecVectorEnv(4, world=World(shop.dataset, shop.split, 2), task_split="test", mode="pair", reward="pair")
    episodes = play(envs, "scripted", range(150))
    assert {e.stop for e in episodes} == {StopReason.ANSWERED}
    assert np.mean([e.rank == 1 for e in episodes]) > 0.6  # directions alternate, so this fails if one is misread


def test_tools_help_it(shop):
    envs = RecVectorEnv(8, world=shop, task_split="test")
    with_tools = play(envs, "scripted", range(300))
    without = play(envs, make("scripted", tools=()), range(300))
    gain = [a.metrics["ndcg@10"] - b.metrics["ndcg@10"] for a, b in zip(with_tools, without, strict=True)]
    assert np.mean(gain) > 5 * np.std(gain) / np.sqrt(len(gain))


def test_a_string_of_tools_is_refused():
    with pytest.raises(TypeError, match="list of names"):
        make("scripted", tools="score_candidates")


def test_item_ids_of_any_form_are_read(tiny):
    dashed = replace(tiny, items=replace(tiny.items, ids=[f"it-{i}.x" for i in range(tiny.num_items)]))
    envs = RecVectorEnv(4, world=World(dashed, num_candidates="catalog"), task_split="test")
    assert {e.stop for e in play(envs, make("scripted"), range(8))} == {StopReason.ANSWERED}
