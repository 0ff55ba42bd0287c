"""What counts as an agent, and how scores become an answer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.actions import parse
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.registry import UnknownNameError
from agentrec_env.types import Choice, FloatArray, IntArray, Ranking, StopReason
from agentrec_env.vector import RecVectorEnv
from agents import AGENTS, Agent, ScoringAgent, make, play
from agents.protocol import top


def first_three(observation: dict) -> str:
    return f"<answer>[1, 2, {3 + 0 * observation['turn']}]</answer>"


class Fixed:
    def __init__(self, answer: str = "[4]") -> None:
        self.answer = answer

    def reset(self, num_envs: int, seed: int) -> None:
        pass

    def act(self, observations, rows):
        return [f"<answer>{self.answer}</answer>"] * len(rows)


class ByIndex(ScoringAgent):
    """The larger the item's index, the better."""

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return items.astype(np.float64)


def test_names_are_registered_and_none_imports_torch_before_it_is_made():
    assert set(AGENTS.names()) >= {
        "random", "identity", "reversed", "popularity", "item_knn", "ease", "bm25",
        "sasrec", "fusion", "scripted", "oracle",
    }  # fmt: skip
    heavy = "{'torch', 'lightgbm', 'transformers'} & set(sys.modules)"
    code = f"import sys, agents; agents.make('popularity'); assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "source",
    [first_three, Fixed, Fixed(), "tests.agents.test_protocol:first_three", "tests.agents.test_protocol:Fixed"],
)
def test_functions_classes_instances_and_paths_are_agents(shop, source):
    assert isinstance(make(source), Agent)
    (episode,) = play(RecVectorEnv(1, world=shop), source, [5])
    assert episode.stop is StopReason.ANSWERED
    expected = shop.task("train", 5).candidates
    assert set(episode.ranking) <= set(expected.tolist())


def test_arguments_reach_the_constructor_or_every_call():
    assert make(Fixed, answer="[7]").act([{}], [0]) == ["<answer>[7]</answer>"]
    assert make(lambda observation, place: f"<answer>[{place}]</answer>", place=2).act([{}], [0]) == [
        "<answer>[2]</answer>"
    ]


def test_bad_sources_say_what_to_do(tiny):
    with pytest.raises(UnknownNameError, match="Did you mean 'popularity'"):
        make("populartiy")
    with pytest.raises(TypeError, match="history"):
        make("item_knn", histroy=3)
    with pytest.raises(TypeError, match="made already"):
        make(Fixed(), answer="[1]")
    with pytest.raises(TypeError, match="is no agent"):
        make(World, dataset=tiny)  # a class without act
    with pytest.raises(RuntimeError, match="bind"):
        make("popularity").act([{"text": ""}], [0])


def test_scoring_agent_names_the_best_candidates_by_number(shop):
    envs = RecVectorEnv(3, world=shop, task_split="test")
    episodes = play(envs, ByIndex(), [3, 4, 5, 6])
    for episode in episodes:
        assert list(episode.ranking) == sorted(episode.candidates, reverse=True)[:10]


def test_scoring_agent_names_unknown_items_by_id_in_catalogue_mode(shop):
    world = World(shop.dataset, shop.split, "catalog")
    envs = RecVectorEnv(2, world=world, task_split="test")
    for episode in play(envs, ByIndex(), [0, 1, 2]):
        known = set(world.view(world.task("test", episode.task_index)).known.tolist())
        best = [i for i in range(world.dataset.num_items - 1, -1, -1) if i not in known][:10]
        assert list(episode.ranking) == best


def test_scoring_agent_takes_the_direction_of_a_pair(shop):
    world = World(shop.dataset, shop.split, 2)
    envs = RecVectorEnv(4, world=world, task_split="test", mode="pair")
    agent = ByIndex()
    agent.bind(envs)
    agent.reset(4, 0)
    for direction in ("more", "less"):
        observations, _ = envs.reset(options={"task": [0, 1, 2, 3], "direction": direction})
        for pair, text in zip(observations["candidates"], agent.act([{}] * 4, range(4)), strict=True):
            larger = "A" if pair[0] > pair[1] else "B"
            smaller = "B" if larger == "A" else "A"
            assert parse(text, 2, "pair") == Choice(larger if direction == "more" else smaller)


@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan"), float("-inf")]), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_order_of_the_list_never_decides(scores, seed, data):
    items = np.random.default_rng(seed).permutation(1000)[: len(scores)]
    values = np.array(scores)
    order = np.array(data.draw(st.permutations(range(len(scores)))))
    straight = items[top(values, items, np.random.default_rng(seed), 10)]
    shuffled = items[order][top(values[order], items[order], np.random.default_rng(seed), 10)]
    assert straight.tolist() == shuffled.tolist()
    ranked = np.nan_to_num(values, nan=-np.inf)[[items.tolist().index(i) for i in straight]]
    assert (ranked[:-1] >= ranked[1:]).all()


def test_ties_are_broken_evenly():
    first = [top(np.zeros(4), np.arange(4), np.random.default_rng(seed), 1)[0] for seed in range(800)]
    assert np.bincount(first, minlength=4).min() > 150


def test_wrong_shape_of_scores_is_named(shop):
    class Short(ScoringAgent):
        def scores(self, view, items):
            return np.zeros(3)

    (episode,) = play(RecVectorEnv(1, world=shop), Short(), [0])
    assert episode.stop is StopReason.AGENT_ERROR
    assert "shape (3,) for 20 items" in (episode.error or "")


def test_answers_are_in_the_grammar(shop):
    envs = RecVectorEnv(1, world=shop)
    agent = make("random")
    agent.bind(envs)
    agent.reset(1, 0)
    envs.reset(options={"task": 0})
    (text,) = agent.act([{}], [0])
    answer = parse(text, 20)
    assert isinstance(answer, Ranking)
    assert len(answer.entries) == 10
