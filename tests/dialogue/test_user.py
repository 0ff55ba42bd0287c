"""The scripted user tells the truth, never all of it, and knows when to leave."""

from __future__ import annotations

import numpy as np
import pytest

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.world import World
from agentrec_env.dialogue.env import DialogueEnv, DialogueVectorEnv
from agentrec_env.dialogue.prompts import BANDS, band
from agentrec_env.dialogue.user import NOT_SAID, USERS, ScriptedUser, make_user
from agents import make, play
from tests.test_multi_agent import ask


@pytest.fixture(scope="module")
def world() -> World:
    return DialogueEnv(task_split="test").world


def told(world: World, *questions: str, task: int = 0, vagueness: float = 0.0, seed: int = 0) -> list[str]:
    user = ScriptedUser(vagueness, seed)
    env = DialogueEnv(world=world, task_split="test", user=user, max_questions=9, patience=9)
    env.reset(options={"task": task})
    return [
        env.step(ask(question))[0]["text"].split("says: ")[1].removesuffix("</observation>") for question in questions
    ]


def test_answers_are_true_and_partial(world: World) -> None:
    items = world.dataset.items
    for task in range(20):
        target = world.task("test", task).target
        kind, closer, brand, price = told(
            world, "What kind?", "What kind, more closely?", "Which brand?", "How cheap?", task=task
        )
        path = items.categories[target]
        assert (kind, closer) == (path[1:3] if len(path) > 1 else 2 * (path or (NOT_SAID,)))
        assert len(path) in (0, 1, 4)
        assert brand == (items.brands[target] or NOT_SAID)
        assert price == (band(items, target) or NOT_SAID)


def test_it_confirms_what_is_named_and_says_no_more(world: World) -> None:
    target = world.task("test", 0).target
    named = f"Is it from {world.dataset.items.brands[target]}?"
    assert told(world, named, "How are you?") == ["Yes.", NOT_SAID]


def test_vagueness_is_a_chance_that_asking_again_does_not_change(world: World) -> None:
    silent = [told(world, "Which brand?", "Which brand?", task=task, vagueness=0.5) for task in range(30)]
    assert all(first == second for first, second in silent)
    share = np.mean([first == NOT_SAID for first, _ in silent])
    assert 0.25 < share < 0.8
    assert told(world, "Which brand?", vagueness=1.0) == [NOT_SAID]
    with pytest.raises(ValueError, match="0 to 1"):
        ScriptedUser(2)


def test_bands_are_thirds_of_the_catalogue(world: World) -> None:
    items = world.dataset.items
    bands = [band(items, item) for item in range(len(items))]
    for name in BANDS:
        assert bands.count(name) == pytest.approx((len(items) - bands.count(None)) / 3, rel=0.1)
    prices = {name: [items.prices[i] for i, b in enumerate(bands) if b == name] for name in BANDS}
    assert max(prices["cheap"]) <= min(prices["mid-priced"])
    assert max(prices["mid-priced"]) <= min(prices["expensive"])


def test_it_takes_a_list_that_holds_what_it_wants_and_leaves_any_other(tiny: Dataset) -> None:
    envs = DialogueVectorEnv(4, world=World(tiny, num_candidates=15), task_split="test")
    for episode in play(envs, make("random"), range(12)):
        assert episode.info["dialogue"]["accepted"] is (episode.rank is not None)


def test_dialogues_do_not_depend_on_the_rows_beside_them(world: World) -> None:
    few, many = (
        play(DialogueVectorEnv(rows, world=world, task_split="test"), make("asking"), range(6)) for rows in (1, 6)
    )
    assert [e.info["dialogue"] for e in few] == [e.info["dialogue"] for e in many]
    assert [e.ranking for e in few] == [e.ranking for e in many]


def test_users_are_named_made_or_refused() -> None:
    assert USERS.names() == ("scripted",)
    assert isinstance(make_user("agentrec_env.dialogue.user:ScriptedUser"), ScriptedUser)
    with pytest.raises(LookupError, match="scripted"):
        make_user("scriptd")
