"""Pair tasks beside list-wise ones: the same tasks by other numbers, the same tools and budgets, the right letter."""

from __future__ import annotations

from typing import Any

import pytest

from agentrec_env.data.world import World
from agentrec_env.vector import RecVectorEnv
from agents.play import play
from algos.questions import Question, answers, pair_environment
from tests.conftest import random_dataset


@pytest.mark.parametrize(
    ("direction", "letter", "right"), [("more", "A", "A"), ("more", "B", "B"), ("less", "A", "B"), ("less", "B", "A")]
)
def test_the_right_letter(direction: Any, letter: Any, right: str) -> None:
    assert Question(7, direction, letter).right == right


@pytest.mark.parametrize("candidates", [5, 55, "catalog"])
def test_pairs_are_of_the_same_tasks(candidates: Any) -> None:
    """With 55 candidates some users have too few items left for a list, so the numbers of tasks differ."""
    world = World(random_dataset(), num_candidates=candidates, history_length=3)
    envs = RecVectorEnv(2, world=world, tools=["get_user_profile"], max_calls=2, retries=0)
    pairs, numbers = pair_environment(envs)
    assert len(numbers) == envs.num_tasks
    assert (pairs.num_tasks > envs.num_tasks) is (candidates == 55)
    here, there = envs.scenario.rules, pairs.scenario.rules
    assert (there.mode, there.max_calls, there.retries, list(there.tools)) == ("pair", 2, 0, list(here.tools))
    for task, number in enumerate(numbers.tolist()):
        one, other = world.task("train", task), pairs.world.task("train", number)
        assert (one.user, one.position, one.target, one.fold) == (other.user, other.position, other.target, other.fold)
        assert one.history.tolist() == other.history.tolist()


def test_how_questions_were_answered(tiny: Any) -> None:
    envs = RecVectorEnv(4, world=World(tiny, num_candidates=2), mode="pair", reward="pair", retries=0)
    said = ["A", "B", "A", "nothing"]
    questions = [Question(0, "more", "A"), Question(0, "less", "A"), Question(0, "less", "A"), Question(0, "more", "B")]
    episodes = [
        play(
            envs,
            lambda _, letter=letter: f"\\boxed{{{letter}}}",
            [3],
            options={"direction": [question.direction], "letter": [question.letter]},
        )[0]
        for letter, question in zip(said, questions, strict=True)
    ]
    assert [episode.reward for episode in episodes] == [1.0, 1.0, 0.0, -1.0]
    assert answers(episodes, questions).means() == pytest.approx(
        {"pair/more": 1 / 2, "pair/less": 1 / 2, "pair/says_a": 2 / 3}
    )
