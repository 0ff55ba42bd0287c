"""The scripted user: it wants one item, answers what it is asked in a few true words, and takes a list that holds it.

It reads the same text as a language model in its seat, so what it may say passes the same filter. What it says is true
and never all: a level of the category that is not the last, a brand, a third of the prices; now and then nothing.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentrec_env.data.world import World
from agentrec_env.registry import Registry

NOT_SAID = "I cannot say."
"""What it answers where it does not know, or would rather not tell."""

_FACT = re.compile(r"^- (title|category|brand|price): (.*)$", re.MULTILINE)
_QUESTION = re.compile(r"^The recommender asks: (.*)$", re.MULTILINE)
_OFFERED = re.compile(r"^- (.*)$", re.MULTILINE)
_PATIENCE = re.compile(r"up to (\d+) questions gladly")
_TOPICS = {
    "price": re.compile(r"\b(?:price|priced|cost|costs|cheap|expensive|spend|budget|afford)\b", re.IGNORECASE),
    "brand": re.compile(r"\b(?:brand|brands|maker|manufacturer|label|author|artist)\b", re.IGNORECASE),
    "category": re.compile(r"\b(?:kind|kinds|category|categories|type|sort|department|genre|what)\b", re.IGNORECASE),
}
"""What a question is about: the first that fits."""


@dataclass
class Taste:
    """What one row's user wants, as its prompt said."""

    key: int
    facts: Mapping[str, str]
    patience: int
    asked: int = 0
    told: dict[str, int] = field(default_factory=dict)
    """Topic -> how often it was asked about."""


class ScriptedUser:
    """Answers by keyword: category, brand and price of what it wants, and yes or no to a question that names one.

    - Category: the second level of the path, and one level deeper each time it is asked again, but never the last of a
      path of three or more.
    - Price: cheap, mid-priced or expensive. Never a number, which would not get through.
    - It leaves when it is asked more often than its patience lasts, takes a list that holds what it wants, and leaves
      any other.

    Args:
        vagueness: chance of answering a topic with "I cannot say."; drawn for each task and topic, so that asking again
            does not help.
        seed: of that, beside the seed of ``reset``.
    """

    def __init__(self, vagueness: float = 0.2, seed: int = 0) -> None:
        if not 0 <= vagueness <= 1:
            raise ValueError(f"vagueness is a chance, 0 to 1; got {vagueness!r}")
        self.vagueness = vagueness
        self._seed = [seed, 0]
        self._rows: dict[int, Taste] = {}

    def reset(self, num_envs: int, seed: int) -> None:
        """Forget all dialogues."""
        self._seed[1] = seed
        self._rows = {}

    def act(self, observations: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> list[str]:
        """One answer or verdict for each observation of the user's seat."""
        return [self._act(str(o["text"]), int(o["turn"]), row) for o, row in zip(observations, rows, strict=True)]

    def _act(self, text: str, turn: int, row: int) -> str:
        if turn == 0:
            self._rows[row] = _taste(text)
        taste = self._rows[row]
        asked = _QUESTION.search(text)
        if asked is None:
            offered = text.partition("The recommender shows you this list")[2]
            return "<accept/>" if taste.facts["title"] in _OFFERED.findall(offered) else "<leave/>"
        taste.asked += 1
        return "<leave/>" if taste.asked > taste.patience else self.answer(taste, asked[1])

    def answer(self, taste: Taste, question: str) -> str:
        """What it says to a question; for users that answer otherwise."""
        named = question.casefold()
        levels = [level for level in taste.facts["category"].split(" > ") if level != "unknown"]
        if any(name.casefold() in named for name in (taste.facts["brand"], *levels) if name != "unknown"):
            return "Yes."
        topic = next((topic for topic, pattern in _TOPICS.items() if pattern.search(question)), None)
        if topic is None or self._vague(taste, topic):
            return NOT_SAID
        again = taste.told[topic] = taste.told.get(topic, 0) + 1
        if topic == "category":
            last = len(levels) - (2 if len(levels) > 2 else 1)
            return levels[min(again, last)] if levels else NOT_SAID
        fact = taste.facts[topic]
        if topic == "price":
            fact = fact.rpartition("(")[2].rstrip(")")
        return fact if fact != "unknown" else NOT_SAID

    def _vague(self, taste: Taste, topic: str) -> bool:
        generator = np.random.default_rng([*self._seed, taste.key, *topic.encode()])
        return bool(generator.random() < self.vagueness)


def _taste(text: str) -> Taste:
    patience = _PATIENCE.search(text)
    facts = dict(reversed(_FACT.findall(text)))  # what it wants stands above all else
    unknown = dict.fromkeys(("title", *_TOPICS), "unknown")
    key = zlib.crc32(text.partition("\n\nThe recommender asks: ")[0].encode())
    return Taste(key, unknown | facts, int(patience[1]) if patience else 0)


@dataclass(frozen=True)
class UserRules:
    """What language-model agents read of the rules when they bind: the user's prompt says all, and it has no tools."""

    text: str = ""
    max_calls: int = 0


@dataclass(frozen=True)
class UserSeat:
    """What an agent in the user's seat binds to, where a recommender binds to the environment."""

    world: World
    rules: UserRules = UserRules()
    tool_schemas: Sequence[Mapping[str, Any]] = ()

    @property
    def scenario(self) -> UserSeat:
        """Itself: where agents look for `rules`."""
        return self


USERS: Registry[Any] = Registry("user")
USERS.register("scripted", ScriptedUser)


def make_user(source: Any) -> Any:
    """An agent for the user's seat, from a name in `USERS`, "module:attribute", a class, or an agent itself.

    Raises:
        UnknownNameError: A name that nobody registered.
        TypeError: Not something with `reset` and `act`.
    """
    made = USERS.get(source) if isinstance(source, str) else source
    if isinstance(made, type):
        made = made()
    if not (callable(getattr(made, "act", None)) and callable(getattr(made, "reset", None))):
        raise TypeError(f"user {source!r} needs reset(num_envs, seed) and act(observations, rows); see ScriptedUser")
    return made
