"""A ReAct agent without a model: it calls tools one by one and ranks from what they wrote, by text alone.

It reads the same words as a language model and writes the same grammar, so it says what the tools' text is worth to a
reader with no judgement, and shows that the loop works. With one tool it is that tool's row in an ablation.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agentrec_env.actions import render
from agentrec_env.types import Choice, Ranking, ToolCall
from agents.protocol import TOP, Observation

DEFAULT_TOOLS = ("score_candidates", "candidates_analyze", "get_session_behavior", "get_item_stats")

_TOOL = re.compile(r"^- (\w+)\(([^)]*)\): ", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+)(\??): ")
_HISTORY = re.compile(r"^- (.+?)(?: \(rated [\d.]+ of 5\))?$", re.MULTILINE)
_CANDIDATE = re.compile(r"^(\d+|[AB])\. ", re.MULTILINE)
_SIGN = re.compile(r"\[([^\]]+)\]=(\d+)")
_ROW = re.compile(r"((?:[a-z]+:[\d?] )+)\[([^\]]+)\]")
_LISTED = re.compile(r"^\[([^\]]+)\].* = (\d+)$")
_UNRELATED = re.compile(r"^(price|How others rated)")
"""Lines that say what an item is like, not that this user would take it."""


@dataclass
class Episode:
    """What is known of one row's episode."""

    prompt: str
    candidates: list[str]
    """Marks "1".."C"; empty in catalogue mode, where items are named by id."""
    last_title: str
    plan: list[ToolCall]
    lists: list[dict[str, float]] = field(default_factory=list)
    """Strength by mark, one dict a line of tool output that orders candidates."""


class ScriptedAgent:
    """Calls each of ``tools`` once, then answers with the candidates by mean rank over the lists that came back.

    Args:
        tools: names, in order of calling; those that the prompt does not offer are left out.
        seed: of ties, beside the seed of ``reset``.
    """

    def __init__(self, tools: Sequence[str] = DEFAULT_TOOLS, seed: int = 0) -> None:
        if isinstance(tools, str):
            raise TypeError(f"tools is a list of names; got the string {tools!r}: write [{tools!r}]")
        self.tools = tuple(tools)
        self._seed = [seed, 0]
        self._episodes: dict[int, Episode] = {}

    def reset(self, num_envs: int, seed: int) -> None:
        self._seed[1] = seed
        self._episodes = {}

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        return [self._act(str(o["text"]), int(o["turn"]), row) for o, row in zip(observations, rows, strict=True)]

    def _act(self, text: str, turn: int, row: int) -> str:
        if turn == 0:
            self._episodes[row] = self._begin(text)
        else:
            self._episodes[row].lists += strengths(text)
        episode = self._episodes[row]
        if episode.plan and "No tool calls are left" not in text:
            call = episode.plan.pop(0)
            return render([call], thought=f"I need {call.name} before I can rank.")
        return self._answer(episode)

    def _begin(self, prompt: str) -> Episode:
        """Read the prompt: which tools there are, the latest item, how many candidates."""
        shown, _, rules = prompt.rpartition("\nTools:\n")
        offered = {name: _ARGUMENT.findall(arguments) for name, arguments in _TOOL.findall(rules)}
        titles = _HISTORY.findall(shown or prompt)
        candidates = [str(n) for n, _ in enumerate(_CANDIDATE.findall(shown or prompt), 1)]
        title = titles[-1] if titles else ""
        plan = []
        for name in self.tools:
            if name in offered:
                needed = {argument: title for argument, optional in offered[name] if not optional}
                if title or not needed:
                    plan.append(ToolCall(name, needed))
        return Episode(prompt, candidates, title, plan)

    def _answer(self, episode: Episode) -> str:
        marks = episode.candidates or sorted({mark for scores in episode.lists for mark in scores})
        generator = np.random.default_rng([*self._seed, zlib.crc32(episode.prompt.encode())])
        chance = generator.random(len(marks))
        order = np.lexsort((chance, mean_rank(marks, episode.lists)))
        best = [marks[place] for place in order[:TOP]]
        thought = f"Mean rank over {len(episode.lists)} lists."
        if episode.prompt.startswith("Which of the two"):
            first = (best[0] == "1") == ("MORE likely" in episode.prompt.splitlines()[0])
            return render(Choice("A" if first else "B"), thought)
        if episode.candidates:
            return render(Ranking(tuple(int(mark) for mark in best)), thought)
        # Catalogue mode without a single item found: there is nothing to name, which the environment calls invalid.
        return render(Ranking(tuple(best)), thought)


def strengths(text: str) -> list[dict[str, float]]:
    """Strength by mark for each line (``what: [3]=8 [12]=5; others 0``), run of lines (``[ID] title = 8``) or column of
    a table (``popular:5 title:? [3]``).

    Places within a line count, as they are finer than strengths: a later mark is a hair weaker.
    """
    lists: list[dict[str, float]] = []
    listed: dict[str, float] = {}
    table: dict[str, dict[str, float]] = {}
    for line in [*text.removeprefix("<observation>").splitlines(), ""]:
        found = _LISTED.match(line.removesuffix("</observation>"))
        if found:
            listed.setdefault(found[1], float(found[2]) - 1e-3 * len(listed))
            continue
        if listed:
            lists.append(listed)
            listed = {}
        if row := _ROW.fullmatch(line.removesuffix("</observation>")):
            for sign in row[1].split():
                word, _, level = sign.partition(":")
                table.setdefault(word, {})[row[2]] = 0.0 if level == "?" else float(level)
            continue
        signs = _SIGN.findall(line)
        if signs and not _UNRELATED.match(line):
            lists.append({mark: float(level) - 1e-3 * place for place, (mark, level) in enumerate(signs)})
    return [*lists, *table.values()]


def mean_rank(marks: Sequence[str], lists: Sequence[dict[str, float]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """float64 [len(marks)]: mean over lists of the rank (0 = best; what a list does not name shares its last ranks)."""
    total = np.zeros(len(marks))
    for scores in lists:
        values = np.array([scores.get(mark, 0.0) for mark in marks])
        above = (values[None] > values[:, None]).sum(axis=1)
        even = (values[None] == values[:, None]).sum(axis=1)
        total += above + (even - 1) / 2
    return total / max(len(lists), 1)
