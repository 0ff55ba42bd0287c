"""The dialogue as one state machine with two seats: what the PettingZoo views and the single-agent view all run.

It is a `Session` in which one tool call, `ask_user`, waits for somebody: the episode stands still until the user has
replied, and the reply is what the tool returns. Budgets, judging and the record are those of the session.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from agentrec_env import metrics
from agentrec_env.actions import Action, render
from agentrec_env.dialogue import prompts
from agentrec_env.dialogue.redaction import Names, has_words, redact
from agentrec_env.dialogue.replies import Verdict, read_reply
from agentrec_env.env import padded
from agentrec_env.prompts import Direction
from agentrec_env.session import Rules, Session, Step
from agentrec_env.tools import ToolError, call_tool
from agentrec_env.types import Episode, Invalid, StopReason, Task, ToolCall

Seat: TypeAlias = Literal["recommender", "user"]
SEATS: tuple[Seat, Seat] = ("recommender", "user")
ASK = prompts.ask_user

WRONG_ITEM = -0.5
"""Utility of taking an item from a list without the wanted one."""
ANNOYANCE = 0.1
"""Cost to the user of each question past its patience."""
UNDECIDED = 1
"""Messages at the list that decide nothing and are forgiven; one more counts as leaving."""


@dataclass(frozen=True, eq=False)
class DialogueRules(Rules):
    """`Rules` and what a question costs."""

    max_questions: int = 5
    """Questions that reach the user; each is one of `max_calls` as well."""
    question_cost: float = 0.02
    """Taken from the recommender's reward and from the user's utility for each question."""
    patience: int = 4
    """Questions that the user answers gladly: known to the user alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("max_questions", self.max_questions), ("patience", self.patience)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number, at least 0; got {value!r}")
        if not (isinstance(self.question_cost, int | float) and 0 <= self.question_cost < math.inf):
            raise ValueError(f"question_cost must be a number, at least 0; got {self.question_cost!r}")
        if self.mode != "rank":
            raise ValueError("a dialogue needs a pool to talk about: num_candidates is a number and mode is 'rank'")


class Dialogue(Session):
    """One row: an episode with two seats at a time.

    Attributes beside those of `Session`:
        seat: Whose turn it is; None when the dialogue is over.
        questions: How many reached the user.
        said: What passed between the seats, redacted: (question, reply) of each question that was answered.
        accepted: Whether the user took the list; None where it was shown none, or did not decide.
        user_turns: Actions of the user.
    """

    rules: DialogueRules

    def __init__(self, rules: DialogueRules) -> None:
        super().__init__(rules)
        self.seat: Seat | None = None
        self.questions = self.user_turns = 0
        self.said: list[tuple[str, str]] = []
        self.accepted: bool | None = None
        self._new: dict[Seat, list[str]] = {seat: [] for seat in SEATS}
        self._waiting: tuple[ToolCall, str, str] | None = None
        """The call that waits for the user, the text it was written in, and the question as the user reads it."""
        self._reply: str | None = None
        self._names: Names | None = None
        self._undecided = 0

    def reset(self, task: Task, direction: Direction | None = None) -> str:
        """Begin an episode; the recommender's prompt."""
        prompt = super().reset(task, direction)
        self.seat = "recommender"
        self.questions = self.user_turns = self._undecided = 0
        self.said, self.accepted = [], None
        self._waiting = self._reply = self._names = None
        self._new = {
            "recommender": [prompt],
            "user": [prompts.user_prompt(self.view, task.target, self.rules.patience)],
        }
        return prompt

    def act(self, action: Action, text: str | None = None) -> Step:
        """The recommender's action. Where it is the user's turn afterwards, nothing is new until `reply`.

        Raises:
            RuntimeError: It is the user's turn, or the episode is over.
        """
        if self.seat == "user":
            raise RuntimeError("it is the user's turn; give its action to reply")
        if text is None:
            text = action.message if isinstance(action, Invalid) else render(action)
        self._new["recommender"] = []
        if self.stop is None and isinstance(action, list) and any(call.name == ASK.name for call in action):
            if len(action) > 1:
                action = prompts.QUESTION_ALONE
            elif (question := self._question(action[0])) is not None:
                self._waiting = (action[0], text, question)
                self.seat = "user"
                self.questions += 1
                self._new["user"].append(prompts.question(question))
                return self._result("", None)
        return self._noted(super().act(action, text))

    def reply(self, text: str) -> Step:
        """The user's action: an answer, `<accept/>` or `<leave/>`. No text raises.

        Returns:
            What follows for the recommender, as from `step`; it is the user's turn again where `seat` says so.

        Raises:
            RuntimeError: It is not the user's turn.
        """
        if self.seat != "user":
            raise RuntimeError(f"it is not the user's turn but {self.seat or 'over'}")
        reply = read_reply(text)
        self.user_turns += 1
        self._new["user"] = []
        if self._waiting is None:
            return self._decided(reply)
        call, asked, question = self._waiting
        self._waiting = None
        if reply is Verdict.LEAVE:
            self.turns.append((asked, (call,), ""))
            self.calls += 1
            return self.abort(StopReason.LEFT, "the user left instead of answering")
        self.seat = "recommender"
        said = redact(reply, self.names) if isinstance(reply, str) else ""
        said = said if has_words(said) else prompts.SILENCE
        self.said.append((question, said))
        self._reply = prompts.reply(said)
        return self._noted(super().act([call], asked))

    def abort(self, stop: StopReason, error: str) -> Step:
        """End the episode; a list that the user has not decided on keeps its worth."""
        super().abort(stop, error)
        self.seat = self._waiting = None
        return self._result("", None)

    @property
    def names(self) -> Names:
        """What may not pass between the seats."""
        if self._names is None:
            self._names = Names.of(self.view.items, self.task.candidates.tolist())
        return self._names

    @property
    def utility(self) -> Mapping[str, float]:
        """The user's terms, which sum to its reward; empty while the dialogue runs.

        taken: NDCG@10 of the list where it was accepted and holds the wanted item (a place far down costs effort to
        find), `WRONG_ITEM` where it was accepted and does not, 0 where the user left. effort: `question_cost` for each
        question, and `ANNOYANCE` more for each past the patience.
        """
        if self.seat is not None or self.stop is None:
            return {}
        found = metrics.value("ndcg@10", self.rank) if self.rank else WRONG_ITEM
        rules = self.rules
        effort = rules.question_cost * self.questions + ANNOYANCE * max(self.questions - rules.patience, 0)
        return {"taken": found if self.accepted else 0.0, "effort": -effort}

    def observe(self, seat: Seat) -> dict[str, Any]:
        """The observation of a seat, fresh arrays each time; `text` is what is new since its last action."""
        pool = np.full(len(self.task.candidates), -1, np.int64)
        if seat == "recommender":
            pool[:] = self.task.candidates
        elif self.stop is StopReason.ANSWERED:
            pool[: len(self.ranking)] = self.ranking
        observation: dict[str, Any] = {
            "text": "\n\n".join(self._new[seat]),
            "history": padded(self.task.history, self.rules.world.history_length),
            "candidates": pool,
            "turn": len(self.turns) if seat == "recommender" else self.user_turns,
            "active": int(self.seat == seat),
        }
        if seat == "user":
            observation["target"] = np.array([self.task.target], np.int64)
        return observation

    def episode(
        self, seed: int | None = None, seconds: Sequence[float] = (), info: Mapping[str, Any] | None = None
    ) -> Episode:
        """The record; `info["dialogue"]` holds what was said, whether the list was taken, and the user's utility."""
        dialogue = {
            "questions": self.questions,
            "said": [list(pair) for pair in self.said],
            "accepted": self.accepted,
            "utility": dict(self.utility),
        }
        return super().episode(seed, seconds, {**(info or {}), "dialogue": dialogue})

    def _question(self, call: ToolCall) -> str | None:
        """What the user is asked; None where the call never reaches it: no question left, or none that can be read."""
        rules = self.rules
        over = self.calls >= rules.max_calls or len(self.turns) + 1 >= rules.turns_allowed
        if over or self.questions >= rules.max_questions:
            return None
        try:
            question = redact(call_tool(ASK, self.view, call.arguments), self.names)
        except ToolError:
            return None
        return question if has_words(question) else None

    def _call(self, call: ToolCall) -> str:
        if call.name != ASK.name:
            return super()._call(call)
        reply, self._reply = self._reply, None
        if reply is None:
            call_tool(ASK, self.view, call.arguments)  # says what is wrong with the question
            raise ToolError(prompts.NO_QUESTIONS if self.questions >= self.rules.max_questions else prompts.NO_WORDS)
        return reply

    def _decided(self, reply: Verdict | str) -> Step:
        """The user's word on the list."""
        if not isinstance(reply, Verdict) and self._undecided < UNDECIDED:
            self._undecided += 1
            self._new["user"].append(prompts.DECIDE)
            return self._result("", None)
        self.accepted = reply is Verdict.ACCEPT
        self.seat = None
        return self._result("", None)

    def _noted(self, step: Step) -> Step:
        """`step`, kept as what is new for the recommender."""
        if step[0]:
            self._new["recommender"].append(step[0])
        return step

    def _end(self, stop: StopReason, error: str | None = None) -> None:
        super()._end(stop, error)
        terms = {**self.terms, "questions": -self.rules.question_cost * self.questions}
        if stop is StopReason.ENVIRONMENT_ERROR:
            terms["questions"] = 0.0
        self.terms, self.reward = terms, math.fsum(terms.values())
        self.seat = None
        if stop is StopReason.ANSWERED:
            self.seat = "user"
            self._new["user"].append(prompts.offer(self.view.items, self.ranking))

    def _result(self, observation: str, code: str | None) -> Step:
        if self.seat == "user":
            return observation, 0.0, False, False, {"calls": self.calls, "questions": self.questions}
        observation, reward, terminated, truncated, info = super()._result(observation, code)
        info["questions"] = self.questions
        if self.accepted is not None:
            info["accepted"] = self.accepted
        info.update((f"utility/{name}", value) for name, value in self.utility.items())
        return observation, reward, terminated, truncated, info
