"""The loop: same results for any number of rows, no row waits, no exception ends it."""

from __future__ import annotations

from collections import Counter

import pytest

from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.tools import tool
from agentrec_env.types import StopReason
from agentrec_env.vector import RecVectorEnv
from agents import play
from agents.protocol import Overflow, StreamingAgent


@tool(register=False)
def broken_tool(view: View) -> str:
    """Raises, as a tool with a bug does."""
    raise KeyError("a bug")


class Uneven:
    """Calls a tool as many times as the first history item says (0..3), then answers; one text or many a turn."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def reset(self, num_envs, seed):
        self.batches = []

    def act(self, observations, rows):
        self.batches.append(len(rows))
        call = '<tool_call>{"name": "get_user_profile", "arguments": {}}</tool_call>'
        return [call if o["turn"] < o["history"][0] % 4 else "<answer>[1, 5, 9]</answer>" for o in observations]


def same(one, other):
    return [
        (
            e.task_index,
            e.ranking,
            e.reward,
            e.stop,
            e.error,
            e.calls,
            tuple(t.observation for t in e.turns),
            dict(e.metrics),
        )
        for e in one
    ] == [
        (
            e.task_index,
            e.ranking,
            e.reward,
            e.stop,
            e.error,
            e.calls,
            tuple(t.observation for t in e.turns),
            dict(e.metrics),
        )
        for e in other
    ]


@pytest.mark.parametrize("agent", ["random", "popularity", "scripted", Uneven])
def test_results_do_not_depend_on_the_number_of_rows(shop, agent):
    tasks = [9, 3, 0, 3, 17, 4, 11, 2, 8, 30, 21]
    runs = [play(RecVectorEnv(n, world=shop), agent, tasks, seed=5) for n in (1, 7, 40)]
    assert [e.task_index for e in runs[0]] == tasks
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_no_row_waits_for_another(shop):
    agent = Uneven()
    episodes = play(RecVectorEnv(4, world=shop), agent, range(40))
    turns = sum(len(e.turns) for e in episodes)
    assert sum(agent.batches) == turns
    assert len(agent.batches) <= turns / 4 + 4  # all rows act in every round but the last few


def test_each_task_has_its_own_options(tiny):
    envs = RecVectorEnv(3, world=World(tiny, num_candidates=2), mode="pair", reward="pair")
    letters = ["A", "B", "B", "A", "B", "A", "A"]
    options = {"letter": letters, "direction": ["less", "more"] * 3 + ["less"]}
    episodes = play(envs, lambda observation: "\\boxed{A}", [5] * 7, seeds=[3] * 7, options=options)
    for episode, letter, direction in zip(episodes, letters, options["direction"], strict=True):
        assert (episode.candidates[0] == episode.target) is (letter == "A")
        assert episode.reward == float((direction == "more") is (letter == "A"))
    with pytest.raises(ValueError, match="'letter' has one value for each of the 2 tasks; got 1"):
        play(envs, "random", [0, 1], options={"letter": ["A"]})


def test_a_guilty_row_alone_fails(shop):
    def raising(observation):
        if observation["candidates"][0] % 3 == 0:
            raise ValueError("I do not like this one")
        return "<answer>[1]</answer>"

    episodes = play(RecVectorEnv(5, world=shop), raising, range(30))
    for episode in episodes:
        guilty = episode.candidates[0] % 3 == 0
        assert episode.stop is (StopReason.AGENT_ERROR if guilty else StopReason.ANSWERED)
        assert (episode.error == "ValueError: I do not like this one") is guilty
        assert (episode.reward == -1) is guilty or episode.stop is StopReason.ANSWERED
    assert 0 < sum(e.error is not None for e in episodes) < 30


@pytest.mark.parametrize("returned", [None, ["<answer>[1]</answer>"] * 99, [3], "text"])
def test_what_is_no_list_of_texts_is_an_error_of_the_agent(shop, returned):
    class Odd:
        def reset(self, num_envs, seed):
            pass

        def act(self, observations, rows):
            return returned

    episodes = play(RecVectorEnv(2, world=shop), Odd(), range(3))
    assert Counter(e.stop for e in episodes) == {StopReason.AGENT_ERROR: 3}
    assert all("act() must return" in (e.error or "") for e in episodes)


def test_a_broken_tool_ends_its_episode_alone(shop):
    envs = RecVectorEnv(3, world=shop, tools=[broken_tool, "get_user_profile"])

    def calls(observation):
        name = "broken_tool" if observation["candidates"][0] % 2 else "get_user_profile"
        done = observation["turn"] > 0
        return "<answer>[2]</answer>" if done else f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'

    for episode in play(envs, calls, range(12)):
        broken = episode.candidates[0] % 2 == 1
        assert episode.stop is (StopReason.ENVIRONMENT_ERROR if broken else StopReason.ANSWERED)
        assert ("a bug" in (episode.error or "")) is broken


def test_episodes_are_handed_out_as_they_end_and_carry_times(shop):
    seen = []
    episodes = play(RecVectorEnv(3, world=shop), Uneven(), range(10), on_episode=seen.append)
    assert sorted(e.task_index for e in seen) == list(range(10))
    assert all(turn.seconds > 0 for e in episodes for turn in e.turns)


def test_interrupts_are_not_swallowed(shop):
    def stopped(observation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(RecVectorEnv(2, world=shop), stopped, range(3))


def test_tasks_out_of_range_are_refused_before_anything_runs(shop):
    with pytest.raises(IndexError, match=r"tasks 0\.\."):
        play(RecVectorEnv(1, world=shop), "random", [0, 10**6])
    assert play(RecVectorEnv(1, world=shop), "random", []) == []


def test_a_task_that_cannot_be_made_is_marked_and_the_rest_goes_on(shop):
    class Hollow(World):
        def task(self, task_split, index, seed=None):
            if index % 5 == 3:
                raise ValueError("too few items are left")
            return super().task(task_split, index, seed)

    for rows in (1, 4):
        world = Hollow(shop.dataset, shop.split)
        episodes = play(RecVectorEnv(rows, world=world), "random", range(14))
        assert [e.task_index for e in episodes] == list(range(14))
        lost = [e for e in episodes if e.stop is StopReason.ENVIRONMENT_ERROR]
        assert [e.task_index for e in lost] == [3, 8, 13]
        assert all("too few items" in (e.error or "") and e.metrics["ndcg@10"] == 0 for e in lost)


class Slow(Uneven):
    """Answers one row at a time, the latest asked first; its list depends on the number of the episode."""

    def reset(self, num_envs, seed):
        self.waiting = []
        self.most = 0
        self.ended = {}

    def send(self, observations, rows, episodes):
        self.waiting += zip(rows, observations, episodes, strict=True)
        self.most = max(self.most, len(self.waiting))

    def recv(self):
        row, observation, episode = self.waiting.pop()
        self.ended[row] = episode
        if episode == 7:
            return [Overflow("512 tokens are gone")], [row]
        if episode == 9:
            return [ValueError("I cannot")], [row]
        action = super().act([observation], [row])[0]
        return [action.replace("[1,", f"[{episode % 4 + 1},") if "answer" in action else action], [row]

    def record(self, row):
        return {"episode": self.ended[row]}


def test_an_agent_that_streams_answers_rows_when_it_likes(shop):
    Slow().reset(1, 0)
    assert isinstance(Slow(), StreamingAgent)
    tasks = [9, 3, 0, 3, 17, 4, 11, 2, 8, 30, 21]
    runs = []
    for rows in (1, 4, 20):
        agent = Slow()
        agent.batches = []
        runs.append(play(RecVectorEnv(rows, world=shop), agent, tasks, seed=5))
        assert agent.most == min(rows, len(tasks))
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    episodes = runs[1]
    assert [e.info["episode"] for e in episodes] == list(range(11))
    assert (episodes[7].stop, episodes[7].error, episodes[7].reward) == (StopReason.OVERFLOW, "512 tokens are gone", -1)
    assert (episodes[9].stop, episodes[9].error) == (StopReason.AGENT_ERROR, "ValueError: I cannot")
    assert all(e.stop is StopReason.ANSWERED for i, e in enumerate(episodes) if i not in (7, 9))
    assert all(turn.seconds > 0 for e in episodes for turn in e.turns)


@pytest.mark.parametrize("returned", [([], []), (["a"], [77]), ([3], [0]), (["a", "b"], [0, 0])])
def test_odd_answers_of_a_streaming_agent_are_its_errors(shop, returned):
    class Odd(Slow):
        def recv(self):
            return returned

    episodes = play(RecVectorEnv(2, world=shop), Odd(), range(5))
    assert Counter(e.stop for e in episodes) == {StopReason.AGENT_ERROR: 5}
    assert all("recv() must" in (e.error or "") for e in episodes)


def test_a_failed_record_leaves_the_episode_without(shop):
    class Forgetful(Uneven):
        def record(self, row):
            raise KeyError("lost")

    assert all(e.info == {} and e.error is None for e in play(RecVectorEnv(2, world=shop), Forgetful(), range(3)))


def test_seeds_draw_fresh_pools_and_a_group_shares_one(shop):
    tasks, seeds = [4, 4, 4, 4, 6], [1, 1, 2, None, 1]
    for rows in (1, 3):
        episodes = play(RecVectorEnv(rows, world=shop), "random", tasks, seeds=seeds)
        pools = [e.candidates for e in episodes]
        assert pools[0] == pools[1]
        assert pools[3] == tuple(shop.task(episodes[3].task_split, 4).candidates.tolist())
        assert len({pools[0], pools[2], pools[3]}) == 3
        assert [e.seed for e in episodes] == seeds
        assert len({e.target for e in episodes[:4]}) == 1
    with pytest.raises(ValueError, match="one seed for each of the 2 tasks; got 1"):
        play(RecVectorEnv(1, world=shop), "random", [0, 1], seeds=[3])
