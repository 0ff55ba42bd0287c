"""A scripted recommender that asks before it ranks: what the user's answers are worth to a reader with no judgement.

It is the scripted ReAct agent with questions in front, so the difference between the two is the value of asking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentrec_env.types import ToolCall
from agents.scripted import DEFAULT_TOOLS, Episode, ScriptedAgent, strengths

QUESTIONS = (
    "What kind of thing are you looking for?",
    "Which brand do you want?",
    "Should it be cheap, mid-priced or expensive?",
)
CLEAR = 0.6
"""Share of the pool's best search score from which on an item counts as what the user spoke of."""

_REPLY = re.compile(r"<observation>The user says: (.*)</observation>")
_NOTHING = re.compile(r"cannot say|not sure|don't know|nothing that may be passed on|^(?:yes|no)\b", re.IGNORECASE)
_PRICES = re.compile(r"^By price: (.*)$", re.MULTILINE)
_MARK = re.compile(r"\[(\d+)\]")
_CALLED = re.compile(r'<tool_call>\{"name": "(\w+)"')
_BANDS = ("cheap", "mid-priced", "expensive")


@dataclass
class _Dialogue:
    """What one row's user said."""

    last: str = ""
    """The tool called last."""
    band: int | None = None
    """Place in `_BANDS`."""
    heard: list[dict[str, float]] = field(default_factory=list)
    """Strength by mark, one dict an answer."""


class AskingAgent(ScriptedAgent):
    """Asks ``questions``, searches the pool for what the user said, and ranks by that, ties by the tools' lists.

    An answer about the price is held against the price groups of ``candidates_analyze``; any other is searched for with
    ``search_items``. Where the environment has no ``ask_user``, it is the scripted agent.

    Args:
        questions: asked in this order, one at a time.
        tools: as of ``ScriptedAgent``, called after the questions.
        seed: of ties.
    """

    def __init__(
        self, questions: Sequence[str] = QUESTIONS, tools: Sequence[str] = DEFAULT_TOOLS, seed: int = 0
    ) -> None:
        if isinstance(questions, str):
            raise TypeError(f"questions is a list; got the string {questions!r}: write [{questions!r}]")
        super().__init__(tools, seed)
        self.questions = tuple(questions)
        self._dialogues: dict[int, _Dialogue] = {}

    def _act(self, text: str, turn: int, row: int) -> str:
        if turn == 0:
            self._dialogues[row] = _Dialogue()
        else:
            self._listen(text, row)
        dialogue = self._dialogues[row]
        if turn and not self._episodes[row].plan:
            self._episodes[row].lists += dialogue.heard * (len(self._episodes[row].lists) + 1)
        action = super()._act(text, turn, row)
        call = _CALLED.search(action)
        dialogue.last = call[1] if call else ""
        return action

    def _begin(self, prompt: str) -> Episode:
        episode = super()._begin(prompt)
        if "\n- ask_user(" in prompt:
            episode.plan[:0] = [ToolCall("ask_user", {"question": question}) for question in self.questions]
        return episode

    def _listen(self, text: str, row: int) -> None:
        """Learn from what the last call brought, where the user's answers make more of it than the tools' text."""
        dialogue, episode = self._dialogues[row], self._episodes[row]
        said = _REPLY.search(text)
        if dialogue.last == "ask_user" and said and not _NOTHING.search(said[1]):
            if said[1] in _BANDS:
                dialogue.band = _BANDS.index(said[1])
            elif "\n- search_items(" in episode.prompt:
                episode.plan.insert(0, ToolCall("search_items", {"query": said[1]}))
        elif dialogue.last == "search_items":
            dialogue.heard += [spoken_of(scores) for scores in strengths(text)]
        elif dialogue.last == "candidates_analyze" and dialogue.band is not None:
            dialogue.heard.append(nearness(text, dialogue.band))


def spoken_of(scores: Mapping[str, float]) -> dict[str, float]:
    """1 for each mark that a search found clearly. An answer names a group; within it only the tools tell apart."""
    best = max(scores.values())
    return {mark: 1.0 for mark, score in scores.items() if score >= CLEAR * best}


def nearness(text: str, band: int) -> dict[str, float]:
    """Strength by mark from the price groups in ``text``: 2 for the group of ``band``, 1 beside it, 0 for the rest."""
    prices = _PRICES.search(text)
    groups = prices[1].split("; ") if prices else []
    known = [_MARK.findall(group) for group in groups if not group.startswith("unknown")]
    if len(known) != len(_BANDS):
        return {}
    return {mark: 2.0 - abs(place - band) for place, marks in enumerate(known) for mark in marks}
