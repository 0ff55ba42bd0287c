"""The dialogue in PettingZoo: its conformance suites, one episode in two views, and what either seat may do wrong."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import pettingzoo
import pytest
from gymnasium.utils.env_checker import data_equivalence
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test

import agentrec_env
from agentrec_env.actions import render
from agentrec_env.check import check_rec_env
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.world import World
from agentrec_env.dialogue.core import SEATS
from agentrec_env.dialogue.env import DialogueEnv, DialogueVectorEnv
from agentrec_env.dialogue.user import ScriptedUser
from agentrec_env.multi_agent import DialogueAEC, DialogueParallel
from agentrec_env.registration import DIALOGUE
from agentrec_env.types import Ranking, StopReason, ToolCall
from agents import Agent, make, play

ALLOWED = (
    # The suite knows games of arrays; here observations hold text beside arrays, and actions are texts.
    "Observation is not a NumPy array",
    "Observation space for each agent probably should be gymnasium.spaces.box or gymnasium.spaces.discrete",
    "Action space for each agent probably should be gymnasium.spaces.box or gymnasium.spaces.discrete",
    # The seats are called what they are; there is one of each.
    'We recommend agents to be named in the format <descriptor>_<number>, like "player_0"',
    # The wanted item is the user's alone.
    "Agents have different observation space sizes",
)
"""Every warning that PettingZoo's suites may give."""

RANKING = render(Ranking((3, 1, 2)))


def ask(question: str = "Which brand?") -> str:
    return render([ToolCall("ask_user", {"question": question})])


@pytest.fixture(scope="module")
def world(tiny: Dataset) -> World:
    return World(tiny, num_candidates=8)


def aec(world: World, **kwargs: Any) -> DialogueAEC:
    return DialogueAEC(world=world, task_split="test", **kwargs)


def quietly(test: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        test(*args, **kwargs)
    assert {str(warning.message) for warning in caught} <= set(ALLOWED)


def test_the_ids_make_both_views_and_the_single_agent_one(world: World) -> None:
    assert type(pettingzoo.make("aec", DIALOGUE, world=world)) is DialogueAEC
    assert type(pettingzoo.make("parallel", DIALOGUE, world=world)) is DialogueParallel
    assert type(gym.make(DIALOGUE, world=world).unwrapped) is DialogueEnv
    agentrec_env.register_envs()  # again, without PettingZoo's warning of an overriding


def test_pettingzoo_suites(world: World) -> None:
    quietly(api_test, aec(world, render_mode="ansi"), num_cycles=50)
    quietly(parallel_api_test, DialogueParallel(world=world), num_cycles=50)
    quietly(seed_test, lambda: aec(world), num_cycles=50)
    quietly(parallel_seed_test, lambda: DialogueParallel(world=world), num_cycles=50)


@pytest.mark.filterwarnings("ignore:The environment AgentRec")
def test_the_single_agent_view_conforms() -> None:
    points = check_rec_env(DIALOGUE, episodes=3, tools=False)
    assert "the vector environment gives the same" in points


def talk(env: DialogueAEC, seats: Mapping[str, Agent], **reset: Any) -> list[tuple[Any, ...]]:
    """Play one episode; (seat, observation, reward, terminated, truncated, info, action) of each turn."""
    env.reset(**reset)
    turns = []
    for seat in env.agent_iter():
        observation, reward, terminated, truncated, info = env.last()
        action = None if terminated or truncated else seats[seat].act([observation], [0])[0]
        turns.append((seat, observation, reward, terminated, truncated, info, action))
        env.step(action)
    return turns


def players(recommender: str = "asking") -> dict[str, Agent]:
    seats: dict[str, Agent] = {"recommender": make(recommender), "user": ScriptedUser()}
    for agent in seats.values():
        agent.reset(1, 0)
    return seats


def test_a_dialogue_is_the_same_in_both_views(world: World) -> None:
    for seed in range(3):
        turns = talk(aec(world), players(), seed=seed)
        env, seats = DialogueParallel(world=world, task_split="test"), players()
        observations, _ = env.reset(seed=seed)
        paid = dict.fromkeys(SEATS, 0.0)
        infos: dict[str, Any] = {}
        for seat, observation, _, over, cut, _, action in turns:
            if over or cut:
                break
            assert data_equivalence(observations[seat], observation)
            assert observations[seat]["active"] == 1
            assert seats[seat].act([observations[seat]], [0])[0] == action
            observations, rewards, _, _, infos = env.step({name: action if name == seat else "?" for name in SEATS})
            paid = {name: paid[name] + rewards[name] for name in SEATS}
        assert env.agents == []
        assert {turn[0]: turn[2] for turn in turns[-2:]} == paid
        assert {turn[0]: turn[5] for turn in turns[-2:]} == infos


def test_the_views_are_deterministic_and_survive_pickle(world: World) -> None:
    first = talk(aec(world), players(), seed=5)
    again = talk(pickle.loads(pickle.dumps(aec(world))), players(), seed=5)
    assert data_equivalence(first, again)
    other = aec(world)
    other.reset(seed=6)
    assert other.observe("recommender")["text"] != first[0][1]["text"]


def test_folding_the_user_in_gives_the_same_episode(world: World) -> None:
    for task in range(3):
        turns = talk(aec(world), players(), options={"task": task})
        mine = [turn for turn in turns if turn[0] == "recommender"]
        env, agent = DialogueEnv(world=world, task_split="test"), make("asking")
        agent.reset(1, 0)
        observation, _ = env.reset(options={"task": task})
        for _, seen, _, _, _, _, action in mine[:-1]:
            assert observation["text"] == seen["text"]
            assert agent.act([observation], [0])[0] == action
            observation, reward, _, _, info = env.step(action)
        assert (reward, info) == (mine[-1][2], mine[-1][5])
        envs = DialogueVectorEnv(4, world=world, task_split="test")
        [episode] = play(envs, make("asking"), [task])
        assert episode.reward == reward
        assert episode.info["dialogue"]["questions"] == info["questions"]


@pytest.mark.parametrize("name", ["random", "scripted", "asking", "oracle"])
def test_any_agent_takes_the_recommenders_seat(world: World, name: str) -> None:
    env, agent = aec(world), make(name)
    env.reset(seed=0)
    if hasattr(agent, "bind"):
        agent.bind(env.seat("recommender"))
    agent.reset(1, 0)
    turns = talk(env, {"recommender": agent, "user": players()["user"]}, seed=0)
    assert turns[-1][5]["stop"] == "answered"


def test_any_agent_takes_the_users_seat(world: World) -> None:
    turns = talk(aec(world), {**players(), "user": make(lambda observation: "<accept/>")}, seed=0)
    assert turns[-1][5]["accepted"] is True
    envs = DialogueVectorEnv(2, world=world, task_split="test", user=make(lambda observation: "a spoon"))
    episodes = play(envs, make("asking"), range(2))
    assert {reply for episode in episodes for _, reply in episode.info["dialogue"]["said"]} == {"a spoon"}
    assert {episode.info["dialogue"]["accepted"] for episode in episodes} == {False}


@pytest.mark.slow
def test_language_models_take_both_seats(world: World) -> None:
    pytest.importorskip("transformers")
    user = make("llm", model="tiny")
    envs = DialogueVectorEnv(2, world=world, task_split="test", user=user)
    episodes = play(envs, make("llm", model="tiny"), range(2))
    assert all(episode.stop is not StopReason.AGENT_ERROR for episode in episodes)
    env, seats = aec(world), {seat: make("llm", model="tiny") for seat in SEATS}
    env.reset(seed=0)
    for seat, agent in seats.items():
        agent.bind(env.seat(seat))  # type: ignore[attr-defined]
        agent.reset(1, 0)
    assert env.observe("user")["text"]
    env.step(ask())
    env.step(seats["user"].act([env.observe("user")], [0])[0])
    assert env.dialogue.questions == 1


def test_who_reads_what_and_when(world: World) -> None:
    env = aec(world)
    env.reset(options={"task": 0})
    wanted = env.dialogue.task.target
    title = f"- title: {env.observe('user')['text'].split('- title: ')[1].splitlines()[0]}"
    assert env.observe("user")["target"].tolist() == [wanted]
    assert (env.observe("user")["candidates"] == -1).all()
    assert env.observe("recommender")["candidates"].tolist() == env.dialogue.task.candidates.tolist()
    assert title not in env.observe("recommender")["text"]
    env.step(ask())
    assert env.agent_selection == "user"
    assert env.observe("recommender")["text"] == ""
    assert env.observe("user")["text"].endswith("The recommender asks: Which brand?")
    env.step("<think>it is Brand3, number 4</think>That of the blue box, 4 of them")
    assert (
        env.observe("recommender")["text"]
        == "<observation>The user says: That of the blue box, … of them</observation>"
    )
    assert env.observe("user")["text"] == ""
    env.step(RANKING)
    assert env.observe("user")["candidates"][:3].tolist() == env.dialogue.task.candidates[[2, 0, 1]].tolist()
    assert env.observe("user")["text"].startswith("The recommender shows you this list")
    assert env.rewards == {"recommender": 0.0, "user": 0.0}
    env.step("<leave/>")
    assert env.terminations == {"recommender": True, "user": True}
    assert "accepted" in env.infos["user"]


@pytest.mark.parametrize(
    ("verdict", "rank", "taken"), [("<accept/>", 2, 0.6309), ("<accept/>", 0, -0.5), ("<leave/>", 2, 0)]
)
def test_rewards_are_what_the_docstring_says(world: World, verdict: str, rank: int, taken: float) -> None:
    env = aec(world, patience=1, question_cost=0.05)
    env.reset(options={"task": 1})
    place = env.dialogue.task.candidates.tolist().index(env.dialogue.task.target) + 1
    others = [number for number in range(1, 9) if number != place]
    for _ in range(3):
        env.step(ask())
        env.step("blue")
    env.step(render(Ranking((others[0], place, others[1]) if rank else tuple(others[:3]))))
    env.step(verdict)
    recommender, user = env.infos["recommender"], env.infos["user"]
    assert recommender["reward/questions"] == pytest.approx(-0.15)
    assert env.rewards["recommender"] == pytest.approx((0.6309 if rank else -0.5) - 0.15, abs=1e-4)
    assert user["utility/taken"] == pytest.approx(taken, abs=1e-4)
    assert env.rewards["user"] == pytest.approx(taken - 0.15 - 0.2, abs=1e-4)


def test_a_user_may_leave_before_the_list(world: World) -> None:
    env = aec(world)
    env.reset(seed=0)
    env.step(ask())
    env.step("That is enough. <leave/>")
    assert env.infos["recommender"]["stop"] == StopReason.LEFT
    assert env.rewards == {"recommender": -1.02, "user": -0.02}
    assert env.dialogue.episode().turns[-1].calls[0].name == "ask_user"
    turns = talk(aec(world, patience=0), players(), seed=0)
    assert turns[-1][5]["stop"] == "left"


def test_questions_have_limits_that_are_told(world: World) -> None:
    env = aec(world, max_questions=1, max_calls=4)
    env.reset(seed=0)
    env.step(ask())
    env.step("blue")
    env.step(ask())
    assert "takes no more questions" in env.observe("recommender")["text"]
    env.step(ask("12 34"))
    assert "Error" in env.observe("recommender")["text"]
    env.step(f"{ask()}\n{ask()}")
    assert "alone in a message" in env.observe("recommender")["text"]
    env.step(ask())
    env.step(ask())
    assert env.infos["recommender"]["stop"] == StopReason.TOO_MANY_CALLS
    assert env.dialogue.questions == 1


def test_a_question_at_the_last_turn_does_not_reach_the_user(world: World) -> None:
    env = aec(world, max_turns=1)
    env.reset(seed=0)
    env.step(ask())
    assert env.truncations == {"recommender": True, "user": True}
    assert env.dialogue.questions == 0


def test_a_user_that_does_not_decide_is_asked_once_more_and_has_then_left(world: World) -> None:
    env = aec(world)
    env.reset(seed=0)
    env.step(RANKING)
    env.step("Hm.")
    assert env.agent_selection == "user"
    assert "<accept/>" in env.observe("user")["text"]
    env.step("Hm.")
    assert env.infos["user"]["accepted"] is False


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                ask(),
                RANKING,
                "<leave/>",
                "<accept/>",
                "<think>",
                "</think>",
                "<tool_call>",
                '{"name":',
                "</answer>",
                "é\ud800",
            ]
        ),
        max_size=3,
    ).map("".join),
    st.sampled_from(
        [render([ToolCall("ask_user", arguments)]) for arguments in ({}, {"question": 3}, {"question": ""})]
    ),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS, min_size=12, max_size=12), st.integers(0, 5))
def test_no_text_of_either_seat_raises(world: World, texts: list[str], seed: int) -> None:
    env = aec(world)
    env.reset(seed=seed)
    for text in texts:
        seat = env.agent_selection
        if env.terminations[seat] or env.truncations[seat]:
            break
        env.step(text)
        for name in SEATS:
            assert env.observation_space(name).contains(env.observe(name))
    if env.dialogue.seat is None:
        assert env.rewards["recommender"] == pytest.approx(sum(env.dialogue.terms.values()))


def test_misuse_is_explained(world: World) -> None:
    env = DialogueParallel(world=world)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="turn of the recommender"):
        env.step({"user": "hello"})
    with pytest.raises(TypeError, match="is a text"):
        env.step({"recommender": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="pool"):
        DialogueAEC(num_candidates="catalog")
    with pytest.raises(ValueError, match="question_cost"):
        aec(world, question_cost=-1)
    with pytest.raises(TypeError, match="max_questions"):
        aec(world, max_question=1)
    with pytest.raises(TypeError, match="reset"):
        DialogueEnv(world=world, user=3)


def test_a_transcript_holds_what_was_said(world: World) -> None:
    env = aec(world, render_mode="ansi")
    assert env.render() == ""
    talk(env, players(), seed=1)
    text = env.render()
    assert text is not None
    assert "The user says: " in text
    assert text.endswith(("The user took the list.", "The user left."))
