"""From episodes of any agent to transcripts that a policy learns from by imitation.

An action is turned into tokens once, as if a model had sampled it, and from there on a demonstration is a transcript
like any other. `Demonstrations` draws them without end: what it gives for a step depends on the seed and the step
alone, so a run that is resumed sees what it would have seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from agentrec_env.actions import Mode, parse, render
from agentrec_env.tools.comparison import SIGNS
from agentrec_env.types import Choice, Episode, Ranking, StopReason, Turn
from agentrec_env.vector import RecVectorEnv
from agents.llm.chat import Chat
from agents.llm.encoder import Encoder
from agents.llm.transcript import Transcript, TranscriptWriter
from agents.play import play
from agents.protocol import TOP, Agent
from algos.disguise import conceal, rename, shorten

_TAGS = tuple(f"<{slash}{tag}>" for tag in ("think", "tool_call", "answer") for slash in ("", "/"))
_NAMED = 2**32 - 2
"""Marks the random numbers of `Lessons.early`."""
_UNKNOWN = 1 / 3
"""Chance of each of `Lessons.unknown` in an episode."""
_MAX_ROUNDS = 20
"""Rounds of play without one episode worth keeping after which a teacher is given up."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lessons:
    """Which episodes of the teacher are learned from, and how they are told."""

    above: float | None = None
    """Keep only episodes with a reward above this: rejection sampling for teachers that err. None: all valid ones."""
    best_of: int = 1
    """Play each task so many times (same candidates, another seed of the agent) and keep the best-paid episode."""
    truth: float = 0.0
    """Share of episodes in which the answer names the item that was truly chosen first, then the teacher's list."""
    early: int = 0
    """Learn so many answers after each call too, as if it had been the last, each going on from a few numbers that
    somebody else might have named: many lessons for the price of little more than one, as they share their prompt.
    From its own answers alone a policy learns the k-th best candidate; from these, the best that is not named yet, and
    so to name none twice. The letter of a question is learned once after each call. Whether to answer is learned at
    the real end alone."""
    less: float = 0.5
    """Share of questions that ask for the less likely item, the others for the more likely one. The right letter is
    the exclusive or of two things, and a small model that is to learn both at once learns neither for a long time."""
    prompt: Literal["whole", "numbers", "none"] = "whole"
    """What the task shows: all; items without their names; or nothing, not even the rules. Those are most of a prompt,
    and to read the lists of tools is learned without them in a fraction of the time: for first lessons."""
    foreign: float = 0.0
    """Share of whole prompts that name items by words of random letters, for a policy that is to meet other names than
    those of its world; a small one understands none of them anyway."""
    unknown: tuple[str, ...] = ()
    """Signs in the rows of `compare_candidates`, such as "category", each of which is unknown in a third of the
    episodes, for a policy that is to meet worlds that lack them. The teacher knows them all the same."""

    def __post_init__(self) -> None:
        if self.best_of < 1:
            raise ValueError(f"best_of is how often a task is played, at least 1; got {self.best_of}")
        if self.early < 0:
            raise ValueError(f"early is a number of answers after each call, at least 0; got {self.early}")
        if not 0 <= self.less <= 1:
            raise ValueError(f"less is a share of the questions, 0 to 1; got {self.less}")
        if not 0 <= self.truth <= 1:
            raise ValueError(f"truth is a share of the episodes, 0 to 1; got {self.truth}")
        if not 0 <= self.foreign <= 1:
            raise ValueError(f"foreign is a share of the prompts, 0 to 1; got {self.foreign}")
        if strange := [sign for sign in self.unknown if sign not in SIGNS]:
            raise ValueError(f"unknown names signs of compare_candidates: {', '.join(SIGNS)}; got {', '.join(strange)}")


class Scribe:
    """Writes episodes as transcripts for one tokenizer.

    Args:
        tokenizer: of the policy.
        chat: how it holds a conversation.
        rules: `Rules.text` of the environment, the part that all prompts share.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: Chat, rules: str = "") -> None:
        self._encoder = Encoder(tokenizer)
        self._chat = chat
        self._rules = rules

    def transcript(self, episode: Episode) -> Transcript:
        """The episode with its actions as sampled tokens, their log-probabilities 0 (unknown).

        Raises:
            ValueError: an episode without turns.
        """
        if not episode.turns:
            raise ValueError(
                f"task {episode.task_index}: an episode without an action teaches nothing ({episode.error})"
            )
        writer = TranscriptWriter(self._chat.begin(episode.prompt, self._rules))
        for turn in episode.turns[:-1]:
            ids = self._turn(turn.action)
            writer.sampled(ids, [0.0] * len(ids), "stop")
            writer.observed(self._chat.observe(turn.observation, ids))
        ids = self._turn(episode.turns[-1].action)
        writer.sampled(ids, [0.0] * len(ids), "stop")
        return writer.freeze()

    def continuation(self, episode: Episode, calls: int, named: Sequence[int] = (), mode: Mode = "rank") -> Transcript:
        """The answer alone, after the first `calls` turns and as if its beginning had been shown.

        Args:
            episode: that ends with a list of candidate numbers, or the letter of a pair, which is learned alone.
            calls: how many turns come before the answer.
            named: places in the pool (0-based) that the answer names first, whatever the episode says; its own order
                goes on from there.
            mode: of the environment, "rank" or "pair".

        Raises:
            ValueError: a pair without a letter.
        """
        if mode == "pair":
            choice = parse(episode.turns[-1].action, 2, mode)
            if not isinstance(choice, Choice):
                raise ValueError(f"task {episode.task_index} ended without a letter: {choice}")
            answer = render(choice)
            at = answer.index("{") + 1
        else:
            numbers = {item: number for number, item in enumerate(episode.candidates)}
            rest = [numbers[item] for item in episode.ranking if numbers[item] not in named]
            answer = render(Ranking(tuple(place + 1 for place in [*named, *rest][: len(episode.ranking)])))
            at = answer.index("[") + 1
            for _ in named:
                at = answer.index(" ", at) + 1
        writer = TranscriptWriter(self._chat.begin(episode.prompt, self._rules))
        for turn in episode.turns[:calls]:
            ids = self._turn(turn.action)
            writer.observed([*ids, *self._chat.observe(turn.observation, ids)])
        writer.observed(self._ids(answer[:at]))
        ids = self._turn(answer[at:])
        writer.sampled(ids, [0.0] * len(ids), "stop")
        return writer.freeze()

    def _turn(self, text: str) -> list[int]:
        """An action and the end of the turn: a server that knows nothing of our tags stops there alone."""
        return self._ids(text) if self._chat.end is None else [*self._ids(text), self._chat.end]

    def _ids(self, text: str) -> list[int]:
        return self._encoder.encode(self._encoder.content(text, _TAGS))


class Demonstrations:
    """Transcripts of a teacher's episodes on tasks in a random order, with fresh candidates for each.

    Fresh negatives in a fresh order for every episode, or the policy learns numbers by heart.

    Args:
        envs: where the teacher plays; its task split is the one learned from.
        teacher: whose episodes.
        scribe: writes them.
        lessons: which of them.
        seed: of tasks, candidates and the teacher.
    """

    def __init__(
        self, envs: RecVectorEnv, teacher: Agent, scribe: Scribe, lessons: Lessons | None = None, seed: int = 0
    ) -> None:
        self._envs = envs
        self._teacher = teacher
        self._scribe = scribe
        self.lessons = lessons or Lessons()
        self._seed = seed
        self._mode = envs.scenario.config.mode
        self._order: tuple[int, np.ndarray[Any, np.dtype[np.int64]]] | None = None

    def batch(self, step: int, count: int) -> list[Transcript]:
        """Transcripts of `count` episodes, a function of the seed, `step` and `count` alone.

        Args:
            step: Number of the step, from 0; each begins where the one before ended in the order of tasks.
            count: How many.

        Raises:
            RuntimeError: the teacher gives no episode worth keeping.
        """
        generator = np.random.default_rng([self._seed, step, _NAMED])
        transcripts = []
        for episode in self.episodes(step, count):
            transcripts.append(self._scribe.transcript(episode))
            if episode.candidates and episode.ranking:
                pair = self._mode == "pair"
                transcripts += [
                    self._scribe.continuation(episode, calls, () if pair else _named(episode, generator), self._mode)
                    for calls in range(1, len(episode.turns))
                    for _ in range(min(self.lessons.early, 1) if pair else self.lessons.early)
                ]
        return transcripts

    def episodes(self, step: int, count: int) -> list[Episode]:
        """The episodes behind :meth:`batch`."""
        lessons = self.lessons
        kept: list[Episode] = []
        reasons: dict[str, int] = {}
        for attempt in range(_MAX_ROUNDS):
            generator = np.random.default_rng([self._seed, step, attempt])
            wanted = count - len(kept)
            tasks = (
                [self._task(step * count + i) for i in range(wanted)]
                if attempt == 0
                else generator.integers(self._envs.num_tasks, size=wanted).tolist()
            )
            seeds = generator.integers(2**31, size=wanted).tolist()
            options = {}
            if self._mode == "pair":
                options["direction"] = np.where(generator.random(wanted) < lessons.less, "less", "more").tolist()
            tries = [
                play(self._envs, self._teacher, tasks, int(generator.integers(2**31)), seeds=seeds, options=options)
                for _ in range(lessons.best_of)
            ]
            for tried in zip(*tries, strict=True):
                best = max(tried, key=lambda episode: episode.reward)  # the first of equals
                reason = _refused(best, lessons)
                if reason is None:
                    kept.append(self._told(best, generator))
                else:
                    reasons[reason] = reasons.get(reason, 0) + 1
            if len(kept) == count:
                return kept
            if attempt + 1 == _MAX_ROUNDS // 2 and not kept:
                break
        raise RuntimeError(
            f"the teacher gave {len(kept)} of {count} {'questions' if self._mode == 'pair' else 'episodes'} worth "
            f"learning from in step {step}; of the others: "
            f"{', '.join(f'{n} {reason}' for reason, n in reasons.items())}. Lower `above`, or use another teacher"
        )

    def _told(self, episode: Episode, generator: np.random.Generator) -> Episode:
        """The episode as it is learned from."""
        if generator.random() < self.lessons.truth and self._mode == "rank":
            episode = _corrected(episode)
        episode = conceal(episode, [sign for sign in self.lessons.unknown if generator.random() < _UNKNOWN])
        rules = self._envs.scenario.rules.text
        if self.lessons.prompt == "whole" and generator.random() < self.lessons.foreign:
            return replace(episode, prompt=rename(episode.prompt, rules, generator))
        return replace(episode, prompt=shorten(episode.prompt, rules, self.lessons.prompt))

    def _task(self, number: int) -> int:
        """Task of the `number`-th episode: a new permutation of all tasks for each pass over them."""
        turn, place = divmod(number, self._envs.num_tasks)
        if self._order is None or self._order[0] != turn:
            order = np.random.default_rng([self._seed, turn, 2**32 - 1]).permutation(self._envs.num_tasks)
            self._order = (turn, order)
        return int(self._order[1][place])


def _refused(episode: Episode, lessons: Lessons) -> str | None:
    """Why an episode is not learned from; None where it is."""
    if episode.stop is not StopReason.ANSWERED:
        return f"ended as {episode.stop}"
    if lessons.above is not None and not episode.reward > lessons.above:
        return f"paid {lessons.above:g} or less"
    return None


def _corrected(episode: Episode) -> Episode:
    """The episode with the true choice first in its answer; as it is where candidates have no numbers."""
    if not episode.candidates or not episode.ranking:
        return episode
    order = [episode.target, *(item for item in episode.ranking if item != episode.target)][:TOP]
    numbers = {item: number for number, item in enumerate(episode.candidates, 1)}
    last = episode.turns[-1]
    thought = last.action.rpartition("</think>")
    answer = thought[0] + thought[1] + render(Ranking(tuple(numbers[item] for item in order)))
    turns: Sequence[Turn] = (*episode.turns[:-1], replace(last, action=answer))
    return replace(episode, turns=tuple(turns), ranking=tuple(order))


def _named(episode: Episode, generator: np.random.Generator) -> tuple[int, ...]:
    """Places in the pool that an answer might have named first: none to all but one, better ones more often."""
    numbers = {item: number for number, item in enumerate(episode.candidates)}
    likely = np.full(len(episode.candidates), 1.5 * len(episode.ranking))
    likely[[numbers[item] for item in episode.ranking]] = np.arange(len(episode.ranking))
    order = np.argsort(likely + 6 * generator.gumbel(size=len(likely)))
    return tuple(order[: int(generator.integers(len(episode.ranking)))].tolist())


def overview(transcripts: Sequence[Transcript]) -> Mapping[str, float]:
    """What a batch is made of, on average: tokens, prompt tokens, tokens that are learned, turns."""
    count = max(len(transcripts), 1)
    return {
        "tokens": sum(map(len, transcripts)) / count,
        "prompt_tokens": sum(transcript.prompt for transcript in transcripts) / count,
        "taught_tokens": sum(int(transcript.mask.sum()) for transcript in transcripts) / count,
        "turns": sum(len(transcript.turns) for transcript in transcripts) / count,
    }
