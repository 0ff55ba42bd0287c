"""Episodes become transcripts that say the same, and a stream of them depends on seed and step alone."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from agentrec_env.data.synthetic import make_world
from agentrec_env.data.world import World
from agentrec_env.types import Episode, StopReason
from agentrec_env.vector import RecVectorEnv
from agents import make, play
from agents.llm.chat import Chat
from agents.protocol import Observation
from agents.teacher import Teacher
from algos.demonstrations import Demonstrations, Lessons, Scribe, overview
from algos.questions import pair_environment
from tests.agents.llm.conftest import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEACHER = {"ranker": "popularity", "plan": ["score_candidates", "get_item_stats"], "variety": 0.3}


@pytest.fixture(scope="module")
def envs() -> RecVectorEnv:
    return RecVectorEnv(4, world=World(make_world(num_users=120, num_items=560, seed=1).dataset), task_split="train")


@pytest.fixture(scope="module")
def scribe(envs: RecVectorEnv) -> Scribe:
    return Scribe(TOKENIZER, Chat(TOKENIZER, envs.tool_schemas), envs.scenario.rules.text)


@pytest.fixture(scope="module")
def episode(envs: RecVectorEnv) -> Episode:
    return play(envs, Teacher("popularity", TEACHER["plan"], variety=0.0), [3])[0]


def said(transcript) -> list[str]:
    """Its turns, each of which ends as the template ends one."""
    turns = [TOKENIZER.decode(transcript.ids[turn.start : turn.end]) for turn in transcript.turns]
    assert all(turn.endswith("<|im_end|>") for turn in turns)
    return [turn.removesuffix("<|im_end|>") for turn in turns]


def stream(envs: RecVectorEnv, scribe: Scribe, seed: int = 0, **lessons) -> Demonstrations:
    return Demonstrations(envs, make("teacher", **TEACHER), scribe, Lessons(**lessons), seed)


def same(one, two) -> bool:
    return len(one) == len(two) and all(np.array_equal(a.ids, b.ids) for a, b in zip(one, two, strict=True))


def test_a_transcript_says_what_the_episode_said(scribe: Scribe, episode: Episode, envs: RecVectorEnv):
    transcript = scribe.transcript(episode)
    assert said(transcript) == [turn.action for turn in episode.turns]
    text = TOKENIZER.decode(transcript.ids)
    for part in (envs.scenario.rules.text, *(turn.observation for turn in episode.turns)):
        assert part in text
    assert text.endswith("</answer><|im_end|>")
    assert 0 < transcript.shared < transcript.prompt < len(transcript)
    assert not transcript.logprobs.any()


def test_the_conversation_is_the_one_that_the_policy_will_have(scribe: Scribe, episode: Episode, envs: RecVectorEnv):
    chat = Chat(TOKENIZER, envs.tool_schemas)
    transcript = scribe.transcript(episode)
    prompt = chat.begin(episode.prompt, envs.scenario.rules.text)
    assert transcript.ids[: transcript.prompt].tolist() == list(prompt.ids)
    first, second = transcript.turns[:2]
    between = chat.observe(episode.turns[0].observation, transcript.ids[first.start : first.end].tolist())
    assert transcript.ids[first.end : second.start].tolist() == between


def test_an_answer_can_be_gone_on_with_from_any_beginning(scribe: Scribe, episode: Episode):
    whole, early = scribe.transcript(episode), scribe.continuation(episode, 1)
    (turn,) = early.turns  # the call is shown, not learned
    start = turn.start
    assert TOKENIZER.decode(early.ids[:start]).endswith("<answer>\\boxed{[")
    assert said(early)[0] == episode.turns[-1].action.partition("[")[2]
    length = whole.turns[1].start
    assert np.array_equal(early.ids[:length], whole.ids[:length])

    ranked = [episode.candidates.index(item) for item in episode.ranking]
    outside = next(place for place in range(20) if place not in ranked)
    named = (ranked[2], outside)
    given = scribe.continuation(episode, 2, named)
    start = given.turns[-1].start
    assert TOKENIZER.decode(given.ids[:start]).endswith(f"<answer>\\boxed{{[{ranked[2] + 1}, {outside + 1}, ")
    rest = [place + 1 for place in ranked if place not in named][:8]
    assert said(given)[-1] == f"{', '.join(map(str, rest))}]}}</answer>"


@pytest.mark.parametrize("ranker", ["popularity", None])
def test_the_letter_of_a_question_is_learned_after_each_call(envs: RecVectorEnv, ranker: str | None):
    pairs = pair_environment(envs)[0]
    own = Scribe(TOKENIZER, Chat(TOKENIZER, pairs.tool_schemas), pairs.scenario.rules.text)
    teacher = Teacher(ranker, TEACHER["plan"], variety=0.0)
    demonstrations = Demonstrations(pairs, teacher, own, Lessons(early=3))
    episodes = demonstrations.episodes(0, 12)
    batch = demonstrations.batch(0, 12)
    assert len(batch) == 12 * 3
    for number, episode in enumerate(episodes):
        whole, *letters = batch[3 * number : 3 * number + 3]
        assert said(whole) == [turn.action for turn in episode.turns]
        letter = re.search(r"boxed\{(.)\}", episode.turns[-1].action)[1]
        for calls, each in enumerate(letters, 1):
            assert said(each) == [f"{letter}}}</answer>"]
            text = TOKENIZER.decode(each.ids)
            assert text.count("<tool_call>{") == calls + pairs.scenario.rules.text.count("<tool_call>{")


class Chatty(Teacher):
    """Puts words with the letters A and B around its answers."""

    def act(self, observations: list[Observation], rows: list[int]) -> list[str]:
        return [f"I hold A against B.\n{text}\nAs B and A differ." for text in super().act(observations, rows)]


def test_the_letter_is_the_one_that_was_judged_whatever_is_said_around_it(envs: RecVectorEnv):
    pairs = pair_environment(envs)[0]
    own = Scribe(TOKENIZER, Chat(TOKENIZER, pairs.tool_schemas), pairs.scenario.rules.text)
    letters = set()
    for episode in play(pairs, Chatty("popularity", ["get_item_stats"], variety=0.0), range(12)):
        assert episode.stop is StopReason.ANSWERED
        letter = re.search(r"boxed\{(.)\}", episode.turns[-1].action)[1]
        early = own.continuation(episode, 1, mode="pair")
        assert said(early) == [f"{letter}}}</answer>"]
        assert TOKENIZER.decode(early.ids[: early.turns[0].start]).endswith("assistant\n<answer>\\boxed{")
        letters.add(letter)
    assert letters == {"A", "B"}


def test_lists_of_two_are_no_questions():
    two = RecVectorEnv(4, world=World(make_world(num_users=120, num_items=560, seed=1).dataset, num_candidates=2))
    own = Scribe(TOKENIZER, Chat(TOKENIZER, two.tool_schemas), two.scenario.rules.text)
    demonstrations = Demonstrations(two, make("teacher", **TEACHER), own, Lessons(early=2, truth=1.0))
    for episode in demonstrations.episodes(0, 6):
        first = episode.candidates.index(episode.target) + 1
        assert f"boxed{{[{first}, {3 - first}]}}" in episode.turns[-1].action
    assert all(re.search(r"\d\]\}</answer>$", said(each)[-1]) for each in demonstrations.batch(0, 6))


def test_mean_ranks_answer_questions_by_what_was_read(envs: RecVectorEnv):
    pairs = pair_environment(envs)[0]
    episodes = play(pairs, Teacher(None, ["get_item_stats"], variety=0.0), range(200))
    asked = {"MORE": 0, "LESS": 0}
    for episode in episodes:
        lists = re.findall(r"^(?:Popularity|In the last).*: (.*)$", episode.turns[0].observation, re.MULTILINE)
        firsts = {found[1] for line in lists if (found := re.match(r"\[(\d)\]=", line))}
        if len(firsts) == 1:  # all lists agree
            direction = re.search(r"MORE|LESS", episode.prompt)[0]
            asked[direction] += 1
            first = (firsts == {"1"}) == (direction == "MORE")
            assert f"boxed{{{'A' if first else 'B'}}}" in episode.turns[-1].action
    assert min(asked.values()) > 20


def test_an_episode_without_an_action_is_refused(scribe: Scribe, episode: Episode):
    with pytest.raises(ValueError, match="teaches nothing"):
        scribe.transcript(replace(episode, turns=()))


def test_a_batch_depends_on_seed_and_step_alone(envs: RecVectorEnv, scribe: Scribe):
    one, two = stream(envs, scribe), stream(envs, scribe)
    later = two.batch(1, 5)
    assert same(one.batch(0, 5), two.batch(0, 5))
    assert same(one.batch(1, 5), later)
    assert not same(one.batch(0, 5), later)
    assert not same(later, stream(envs, scribe, seed=1).batch(1, 5))


def test_tasks_come_once_a_pass_and_candidates_are_fresh(envs: RecVectorEnv, scribe: Scribe):
    demonstrations = stream(envs, scribe)
    steps = envs.num_tasks // 10 + 1
    tasks = [episode.task_index for step in range(steps) for episode in demonstrations.episodes(step, 10)]
    assert sorted(tasks[: envs.num_tasks]) == list(range(envs.num_tasks))
    again = Demonstrations(envs, make("popularity"), scribe, seed=0)
    pools: dict[int, set[tuple[int, ...]]] = {}
    for step in range(2 * steps):
        for episode in again.episodes(step, 10):
            pools.setdefault(episode.task_index, set()).add(episode.candidates)
    assert {len(found) for found in pools.values() if len(found) > 1} <= {2, 3}
    assert sum(len(found) > 1 for found in pools.values()) > 0.8 * len(pools)


def test_the_truth_can_be_put_first(envs: RecVectorEnv, scribe: Scribe):
    plain = stream(envs, scribe).episodes(0, 12)
    told = stream(envs, scribe, truth=1.0).episodes(0, 12)
    assert all(episode.ranking[0] == episode.target for episode in told)
    for before, after in zip(plain, told, strict=True):
        rest = [item for item in before.ranking if item != before.target][:9]
        assert list(after.ranking[1:]) == rest
        number = after.candidates.index(after.target) + 1
        assert after.turns[-1].action.startswith(f"<answer>\\boxed{{[{number}, ")
        assert after.turns[:-1] == before.turns[:-1] or [t.action for t in after.turns[:-1]] == [
            t.action for t in before.turns[:-1]
        ]
    half = stream(envs, scribe, truth=0.5).episodes(0, 60)
    assert 15 < sum(episode.ranking[0] == episode.target for episode in half) < 50


def test_prompts_can_be_shortened(envs: RecVectorEnv, scribe: Scribe):
    rules = envs.scenario.rules.text
    whole = stream(envs, scribe).episodes(0, 3)
    numbers = stream(envs, scribe, prompt="numbers").episodes(0, 3)
    for before, after in zip(whole, numbers, strict=True):
        assert after.prompt.endswith(rules)
        body = after.prompt.removesuffix(rules)
        assert "\n1.\n2.\n3." in body
        assert "\n-\n" in body
        assert len(body) < 0.5 * len(before.prompt.removesuffix(rules))
        assert [turn.observation for turn in after.turns] == [turn.observation for turn in before.turns]
    pairs = pair_environment(envs)[0]
    for asked in stream(pairs, scribe, prompt="numbers").episodes(0, 3):
        assert "\nA.\nB.\n" in asked.prompt.removesuffix(pairs.scenario.rules.text)
    none = stream(envs, scribe, prompt="none")
    assert {episode.prompt for episode in none.episodes(0, 3)} == {""}
    figures = overview(none.batch(0, 3))
    assert figures["prompt_tokens"] < 0.1 * overview(stream(envs, scribe).batch(0, 3))["prompt_tokens"]


def test_names_can_be_foreign(envs: RecVectorEnv, scribe: Scribe):
    rules = envs.scenario.rules.text
    plain = stream(envs, scribe).episodes(0, 40)
    foreign = stream(envs, scribe, foreign=1.0).episodes(0, 40)
    half = stream(envs, scribe, foreign=0.5).episodes(0, 40)
    assert 8 < sum(one.prompt != other.prompt for one, other in zip(plain, half, strict=True)) < 32
    assert len({episode.prompt for episode in foreign}) == 40
    words = re.compile(r"(\d+\.|-)( [A-Za-z]{1,9}){1,10}( \(rated [\d.]+ of 5\))?")
    for before, after in zip(plain, foreign, strict=True):
        assert after.prompt.endswith(rules)
        lines = [episode.prompt.removesuffix(rules).splitlines() for episode in (before, after)]
        for line, other in zip(*lines, strict=True):
            if words.match(line):
                assert words.fullmatch(other)
                assert line.split()[0] == other.split()[0]
                assert line.partition(" (rated ")[2] == other.partition(" (rated ")[2]
            else:
                assert line == other
        assert [turn.observation for turn in after.turns] == [turn.observation for turn in before.turns]
    again = stream(envs, scribe, foreign=1.0).episodes(0, 40)
    assert [episode.prompt for episode in again] == [episode.prompt for episode in foreign]


def test_signs_can_be_unknown(envs: RecVectorEnv, scribe: Scribe):
    def episodes(**lessons) -> list[Episode]:
        teacher = Teacher("popularity", ["compare_candidates", "get_item_stats"], variety=0.0)
        return Demonstrations(envs, teacher, scribe, Lessons(**lessons)).episodes(0, 60)

    hidden = []
    for before, after in zip(episodes(), episodes(unknown=("title", "brand")), strict=True):
        assert after.prompt == before.prompt
        assert after.ranking == before.ranking
        assert after.turns[1].observation == before.turns[1].observation
        told = before.turns[0].observation, after.turns[0].observation
        gone = tuple(sign for sign in ("title", "brand") if not re.search(rf"^.*{sign}:\d.*\[", told[1], re.MULTILINE))
        hidden.append(gone)
        legend = told[0].splitlines()[0]
        assert told[1].startswith(legend)
        rows = told[0].removeprefix(legend)
        for sign in gone:
            rows = re.sub(rf"{sign}:\d", f"{sign}:?", rows)
        assert told[1] == legend + rows
    assert {(), ("title",), ("brand",), ("title", "brand")} == set(hidden)
    assert 10 < sum("title" in gone for gone in hidden) < 32


def test_early_answers_come_beside_the_whole_episode(envs: RecVectorEnv, scribe: Scribe):
    episodes = stream(envs, scribe).episodes(0, 6)
    batch = stream(envs, scribe, early=2).batch(0, 6)
    assert len(batch) == sum(1 + 2 * episode.calls for episode in episodes)
    assert same(batch, stream(envs, scribe, early=2).batch(0, 6))
    for transcript in batch:
        text = TOKENIZER.decode(transcript.ids)
        numbers = re.findall(r"\d+", text[text.rindex("[") :])
        assert len(set(numbers)) == len(numbers) == 10


class Erratic:
    """Ranks well, badly, or not at all, as its seed has it; `luck` is the share of valid answers."""

    def __init__(self, luck: float) -> None:
        self.luck = luck

    def reset(self, num_envs: int, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def act(self, observations: list[Observation], rows: list[int]) -> list[str]:
        answers = []
        for _ in rows:
            order = (self.generator.permutation(20) + 1)[:10].tolist()
            answers.append(f"<answer>{order}</answer>" if self.generator.random() < self.luck else "I do not know")
        return answers


def test_only_valid_and_well_paid_episodes_are_kept(envs: RecVectorEnv, scribe: Scribe):
    kept = Demonstrations(envs, Erratic(0.5), scribe).episodes(0, 20)
    assert {episode.stop for episode in kept} == {StopReason.ANSWERED}
    paid = Demonstrations(envs, Erratic(0.8), scribe, Lessons(above=0.3)).episodes(0, 20)
    assert min(episode.reward for episode in paid) > 0.3
    best = Demonstrations(envs, Erratic(0.8), scribe, Lessons(best_of=6)).episodes(0, 40)
    once = Demonstrations(envs, Erratic(0.8), scribe).episodes(0, 40)
    assert np.mean([e.reward for e in best]) > np.mean([e.reward for e in once]) + 0.2


def test_a_hopeless_teacher_is_given_up(envs: RecVectorEnv, scribe: Scribe):
    with pytest.raises(RuntimeError, match=r"0 of 4 episodes.*ended as invalid.*another teacher"):
        Demonstrations(envs, Erratic(0.0), scribe).batch(0, 4)


@pytest.mark.parametrize("bad", [{"best_of": 0}, {"truth": 1.5}, {"foreign": -0.1}, {"unknown": ("titles",)}])
def test_bad_lessons_are_refused(bad):
    with pytest.raises(ValueError, match="got"):
        Lessons(**bad)
