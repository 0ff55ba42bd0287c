"""The teacher calls what it is told to and answers as its ranker, or as the lists it read, would."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from agentrec_env.data.world import World
from agentrec_env.types import StopReason
from agentrec_env.vector import RecVectorEnv
from agents import make, play
from agents.scripted import mean_rank, strengths
from agents.teacher import PLAN, Teacher

TASKS = range(30)


@pytest.fixture(scope="module")
def envs(shop: World) -> RecVectorEnv:
    return RecVectorEnv(8, world=shop, task_split="train")


def names(episode) -> list[str]:
    return [call.name for turn in episode.turns for call in turn.calls]


def test_calls_its_plan_and_answers_as_the_ranker_does(envs: RecVectorEnv):
    taught = play(envs, Teacher("popularity", variety=0.0), TASKS)
    plain = play(envs, "popularity", TASKS)
    assert all(names(episode) == list(PLAN) for episode in taught)
    assert all(episode.stop is StopReason.ANSWERED for episode in taught)
    assert [episode.ranking for episode in taught] == [episode.ranking for episode in plain]


def test_asks_about_a_candidate_that_a_list_named(envs: RecVectorEnv):
    plan = ["score_candidates", "candidates_analyze", "get_item_stats"]
    for episode in play(envs, Teacher("popularity", plan=plan, variety=0.0), TASKS):
        call = episode.turns[2].calls[0]
        named = strengths(episode.turns[1].observation) or strengths(episode.turns[0].observation)
        assert call.arguments["item_name"] == f"[{next(iter(named[0])) if named else 1}]"


def test_variety_draws_other_tools_in_other_orders(envs: RecVectorEnv):
    episodes = play(envs, Teacher("popularity", variety=0.5), range(200))
    others = [tuple(names(episode)) for episode in episodes if names(episode) != list(PLAN)]
    assert 60 < len(others) < 140
    assert len(set(others)) > 50
    assert all(len(set(calls)) == len(calls) for calls in others)
    assert "search_items" not in {name for calls in others for name in calls}
    assert all(episode.stop is StopReason.ANSWERED for episode in episodes)
    few = play(
        envs, Teacher("popularity", variety=1.0, others=["get_item_stats", "score_candidates"], most=1), range(60)
    )
    assert Counter(name for e in few for name in names(e)).keys() == {"get_item_stats", "score_candidates"}
    assert all(episode.calls == 1 for episode in few)


def test_without_a_ranker_it_answers_by_what_it_read_and_nothing_else(envs: RecVectorEnv):
    for episode in play(envs, Teacher(None, plan=["score_candidates", "get_item_stats"], variety=0.0), TASKS):
        lists = [found for turn in episode.turns for found in strengths(turn.observation)]
        ranks = mean_rank([str(n) for n in range(1, 21)], lists)
        answered = ranks[[episode.candidates.index(item) for item in episode.ranking]]
        assert np.all(np.diff(answered) >= 0)
        assert answered[-1] <= np.sort(ranks)[9]


def test_equal_seeds_give_equal_episodes_whatever_the_rows(shop: World, envs: RecVectorEnv):
    agent = Teacher("popularity", variety=0.5)
    one = play(RecVectorEnv(1, world=shop), agent, TASKS, seed=3)
    many = play(envs, agent, TASKS, seed=3)
    assert [[t.action for t in e.turns] for e in one] == [[t.action for t in e.turns] for e in many]
    other = play(envs, agent, TASKS, seed=4)
    assert [names(e) for e in one] != [names(e) for e in other]


def test_keeps_to_the_budget_and_to_the_tools_on_offer(shop: World):
    few = RecVectorEnv(4, world=shop, tools=["get_item_stats", "search_items"], max_calls=1)
    assert {tuple(names(e)) for e in play(few, Teacher("popularity"), TASKS)} == {("get_item_stats",)}
    none = RecVectorEnv(4, world=shop, max_calls=0)
    assert {tuple(names(e)) for e in play(none, Teacher("popularity", variety=1.0), TASKS)} == {()}


def test_works_where_items_have_no_numbers(shop: World):
    world = World(shop.dataset, shop.split, "catalog")
    episodes = play(RecVectorEnv(4, world=world), Teacher("popularity", variety=0.5), range(8))
    assert {episode.stop for episode in episodes} == {StopReason.ANSWERED}
    assert "get_item_stats" not in {name for episode in episodes for name in names(episode)}


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="0 to 1"):
        Teacher("popularity", variety=2)
    with pytest.raises(TypeError, match="list of tools"):
        Teacher("popularity", plan="score_candidates")
    with pytest.raises(ValueError, match="at least 1"):
        Teacher("popularity", most=0)
    assert isinstance(make("teacher", ranker="popularity"), Teacher)
