"""The agent that language models learn from: it calls tools as a script would and answers with the list of a ranker.

A model that has never called a tool cannot be rewarded for it, so its first lessons come from episodes of this agent:
what it calls is what a reader needs. Its answer is the best list that anyone has for the request, or, for the very
first lessons, one that follows from the lists that were read and from nothing else.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentrec_env.actions import render
from agentrec_env.types import Choice, Ranking, ToolCall
from agentrec_env.vector import RecVectorEnv
from agents.protocol import TOP, Agent, Observation, make
from agents.scripted import mean_rank, strengths

PLAN = ("compare_candidates",)
"""The call whose text holds about all that the tools know of a pool, in a form that a small model learns to read."""
LISTS = ("score_candidates", "candidates_analyze", "get_item_stats")
"""Three calls that say about as much, where that one is not on offer."""
_MARK = re.compile(r"\[([^\]]+)\]=\d")
_ITEM_ARGUMENTS = ("item_name", "item_title")


class Teacher:
    """Calls a plan of tools one by one, then answers as another agent does.

    Args:
        ranker: whose answer it gives: an agent that answers in its first turn, such as "fusion", or its name; None: the
            candidates by mean rank over the lists that the tools wrote, ties at random.
        plan: tools to call, in order; those that the environment does not offer, or that need a text of one's own,
            are left out. None: ``PLAN`` where it is on offer, else ``LISTS``.
        variety: share of episodes in which other tools are called: a random choice of them, in a random order, so that
            whoever learns from it has seen, and may later choose, other ways.
        others: tools of such episodes; None: all that can be called without a text of one's own.
        most: most calls of such an episode; None: as many as there are tools.
        seed: of the choice, beside the seed of ``reset``.
        **settings: for the ranker's constructor.

    Raises:
        ValueError: a share outside 0..1.
    """

    def __init__(
        self,
        ranker: str | type | Callable[..., Any] | Agent | None = "fusion",
        plan: Sequence[str] | None = None,
        variety: float = 0.25,
        others: Sequence[str] | None = None,
        most: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        for name, tools in (("plan", plan), ("others", others)):
            if isinstance(tools, str):
                raise TypeError(f"{name} is a list of tools; got the string {tools!r}: write [{tools!r}]")
        if most is not None and most < 1:
            raise ValueError(f"most is a number of calls, at least 1, or None; got {most}")
        if not 0 <= variety <= 1:
            raise ValueError(f"variety is a share of the episodes, 0 to 1; got {variety}")
        self.ranker = None if ranker is None else make(ranker, **settings)
        self.plan = None if plan is None else tuple(plan)
        self.variety = variety
        self.others = None if others is None else tuple(others)
        self.most = most
        self._seed = [seed, 0]
        self._tools: dict[str, str | None] = {}
        """Callable tools: the name of the argument that wants an item, or None where there is none."""
        self._max_calls = 0
        self._envs: Any = None
        self._left: dict[int, list[str]] = {}
        self._mark: dict[int, str] = {}
        self._lists: dict[int, list[dict[str, float]]] = {}

    def bind(self, envs: RecVectorEnv) -> None:
        """Learn which tools there are, and bind the ranker."""
        self._envs = envs
        bind = getattr(self.ranker, "bind", None)
        if bind is not None:
            bind(envs)
        self._max_calls = envs.scenario.rules.max_calls
        self._tools = {}
        for schema in envs.tool_schemas:
            function = schema["function"]
            needed = function["parameters"].get("required", [])
            if not needed:
                self._tools[function["name"]] = None
            elif len(needed) == 1 and needed[0] in _ITEM_ARGUMENTS and not envs.world.catalog:
                self._tools[function["name"]] = needed[0]

    def reset(self, num_envs: int, seed: int) -> None:
        self._seed[1] = seed
        self._left, self._mark, self._lists = {}, {}, {}
        if self.ranker is not None:
            self.ranker.reset(num_envs, seed)

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        answering = []
        actions = [""] * len(rows)
        for place, (observation, row) in enumerate(zip(observations, rows, strict=True)):
            text = str(observation["text"])
            if observation["turn"] == 0:
                self._left[row], self._mark[row], self._lists[row] = self._choose(text), "1", []
            else:
                self._lists[row] += strengths(text)
                if found := _MARK.search(text):
                    self._mark[row] = found[1]
            if self._left[row]:
                name = self._left[row].pop(0)
                argument = self._tools[name]
                arguments = {} if argument is None else {argument: f"[{self._mark[row]}]"}
                actions[place] = render([ToolCall(name, arguments)])
            else:
                answering.append(place)
        if answering:
            asked = [{**observations[place], "turn": 0} for place in answering]
            answers = self._answers(asked, [rows[place] for place in answering])
            for place, answer in zip(answering, answers, strict=True):
                actions[place] = answer
        return actions

    def _answers(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        if self.ranker is not None:
            return self.ranker.act(observations, rows)
        answers = []
        directions: Sequence[str | None] = self._envs.directions(rows)
        for observation, row, direction in zip(observations, rows, directions, strict=True):
            items = observation["candidates"]
            if not len(items):
                raise ValueError("mean ranks order a pool of candidates; give a ranker for a whole catalogue")
            marks = [str(number) for number in range(1, len(items) + 1)]
            chance = np.random.default_rng([*self._seed, zlib.crc32(items.tobytes())]).random(len(marks))
            order = np.lexsort((chance, mean_rank(marks, self._lists[row])))
            if direction is None:
                answers.append(render(Ranking(tuple(int(place) + 1 for place in order[:TOP]))))
            else:
                answers.append(render(Choice("A" if (order[0] == 0) == (direction == "more") else "B")))
        return answers

    def _choose(self, prompt: str) -> list[str]:
        """The tools to call in the episode that begins with ``prompt``."""
        generator = np.random.default_rng([*self._seed, zlib.crc32(prompt.encode())])
        others = sorted(self._tools if self.others is None else self._tools.keys() & set(self.others))
        most = min(len(others), self._max_calls, self.most or len(others))
        if most and generator.random() < self.variety:
            count = int(generator.integers(1, most + 1))
            return [str(name) for name in generator.permutation(others)[:count]]
        plan = self.plan if self.plan is not None else PLAN if self._tools.keys() & set(PLAN) else LISTS
        return [name for name in plan if name in self._tools][: self._max_calls]
