"""What the evidence as written still holds: readers of the very texts that a policy reads.

A policy that calls these tools and ranks by what they wrote cannot pass the best reader of that text; boosting over its
graded lists comes close to one. The gap to `fusion`, which has the raw numbers of all tools, is lost in writing; the
gap from a policy to that reader is its reading. A second reader, which only adds signs up, says how much of the text
wants no more than that.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import logsumexp

from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.tools import Tool, ToolError, call_tool, resolve_tools
from agentrec_env.tools.wording import LEVELS
from agentrec_env.types import FloatArray, IntArray
from agents.protocol import ScoringAgent
from agents.teacher import PLAN

_LINE = re.compile(r"^(.+?): (?=.*\[\d+\]=\d)(.*)$", re.MULTILINE)
_SIGN = re.compile(r"\[(\d+)\]=(\d+)")
_ROW = re.compile(r"^((?:[a-z]+:[\d?] )+)\[(\d+)\]$", re.MULTILINE)
MAX_POOLS = 5_000
"""Pools learnt from."""


@dataclass(frozen=True)
class Sign:
    """What a list says of a candidate."""

    strength: int
    place: int
    """1 for the first of the list."""


class Reader(ScoringAgent):
    """Scores each candidate by what tools write of it; learns on valid tasks, as `fusion` does.

    Args:
        tools: Names of tools; one that wants an item is asked about the first candidate, as its lists are of all.
        draws: Pools drawn for each valid task.
        seed: Of everything drawn.

    Raises:
        ValueError: On binding, for a catalogue without pools, or where tools write no lists.
    """

    def __init__(self, tools: Sequence[str] = PLAN, draws: int = 2, seed: int = 0) -> None:
        self.tools = tuple(tools)
        self.draws = draws
        self.seed = seed
        self._tools: list[Tool] = []
        self._columns: list[str] = []

    def fit(self, world: World) -> None:
        """Read the pools of valid tasks and learn from them."""
        if world.catalog:
            raise ValueError("lists are written of pools, and this track has none; use a track with candidates")
        self._tools = list(resolve_tools(self.tools).values())
        tasks = [(index, draw) for draw in range(self.draws) for index in range(world.num_tasks("valid"))]
        order = np.random.default_rng([self.seed, 4]).permutation(len(tasks))[:MAX_POOLS]
        chosen = [world.task("valid", index, draw or None) for index, draw in (tasks[i] for i in order)]
        texts = [self._read(world.view(task)) for task in chosen]
        self._columns = sorted({what for lists in texts for what in lists})
        if not self._columns:
            raise ValueError(f"the tools {', '.join(self.tools)} write no lists of candidates")
        features = np.stack([self._features(lists, int(world.num_candidates)) for lists in texts])
        taken = np.stack([task.candidates == task.target for task in chosen])
        self._learn(features, taken, np.array([task.user for task in chosen]))

    def scores(self, view: View, items: IntArray) -> FloatArray:
        """By the text alone; `items` are the candidates."""
        return self._scores(self._features(self._read(view), len(items)))

    @abstractmethod
    def _learn(self, features: NDArray[np.float32], taken: NDArray[np.bool_], users: IntArray) -> None:
        """Learn from G pools of C candidates: [G, C, 2 L], as of :meth:`_features`; [G, C]; [G]."""

    @abstractmethod
    def _scores(self, rows: NDArray[np.float32]) -> FloatArray:
        """float64 [C] of [C, 2 L]."""

    def _read(self, view: View) -> dict[str, dict[int, Sign]]:
        """Signs by list and candidate number."""
        return {
            f"{tool.name}, {what}": signs
            for tool in self._tools
            for what, signs in graded_lists(_output(tool, view)).items()
        }

    def _features(self, lists: dict[str, dict[int, Sign]], size: int) -> NDArray[np.float32]:
        """float32 [C, 2 L]: strength (0 where a list does not name the candidate) and place (nan there)."""
        table = np.zeros((size, 2 * len(self._columns)), np.float32)
        table[:, len(self._columns) :] = np.nan
        for column, what in enumerate(self._columns):
            for number, sign in lists.get(what, {}).items():
                table[number - 1, [column, len(self._columns) + column]] = sign.strength, sign.place
        return table


class Written(Reader):
    """The best reader that we have: LightGBM lambdarank over strengths and places.

    Raises:
        ImportError: LightGBM is not installed.
    """

    _members: Sequence[Any] = ()

    def _learn(self, features: NDArray[np.float32], taken: NDArray[np.bool_], users: IntArray) -> None:
        import lightgbm

        count = int(users.max()) + 1
        part = np.random.default_rng([self.seed, 3]).integers(5, size=count)[users]
        parameters = {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "learning_rate": 0.1,
            "num_leaves": 15,
            "min_data_in_leaf": 100,
            "lambda_l2": 5.0,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "seed": self.seed,
            "verbose": -1,
        }
        members = []
        for member in range(5):
            if not 0 < int((part == member).sum()) < len(part):
                continue  # so few users that one part has none, or all
            sets: list[Any] = []
            for mask in (part != member, part == member):
                rows = features[mask].reshape(-1, features.shape[2])
                labels, groups = taken[mask].ravel().astype(np.int8), np.full(int(mask.sum()), taken.shape[1])
                sets.append(lightgbm.Dataset(rows, labels, group=groups, reference=sets[0] if sets else None))
            stop = lightgbm.early_stopping(30, verbose=False)
            members.append(lightgbm.train(parameters, sets[0], 500, valid_sets=[sets[1]], callbacks=[stop]))
        self._members = members

    def _scores(self, rows: NDArray[np.float32]) -> FloatArray:
        found = [np.asarray(member.predict(rows, num_threads=1)) for member in self._members]
        return np.sum(found, axis=0, dtype=np.float64) if found else np.zeros(len(rows))


class Additive(Reader):
    """The simplest reader: a weight for each strength of each list, and for not being named in it, summed; no sign
    changes what another says.

    See :func:`conditional_logit`.
    """

    def _learn(self, features: NDArray[np.float32], taken: NDArray[np.bool_], users: IntArray) -> None:
        cells = self._cells(features)
        self._weights = conditional_logit(cells, taken, cells.shape[2] * (LEVELS + 2))

    def _scores(self, rows: NDArray[np.float32]) -> FloatArray:
        found: FloatArray = self._weights[self._cells(rows)].sum(axis=-1)
        return found

    def _cells(self, features: NDArray[np.float32]) -> IntArray:
        """int64 [..., L]: which weight is that of a candidate's strength in each list, or of not being named in it."""
        lists = features.shape[-1] // 2
        strengths = 1 + np.minimum(features[..., :lists], LEVELS).astype(np.int64)
        named = ~np.isnan(features[..., lists:])
        cells: IntArray = np.where(named, strengths, 0) + (LEVELS + 2) * np.arange(lists)
        return cells


def conditional_logit(cells: IntArray, taken: NDArray[np.bool_], count: int, ridge: float = 1e-4) -> FloatArray:
    """float64 [count]: weights by maximum likelihood of p(candidate) = softmax(sum of its weights) (McFadden, 1974).

    Args:
        cells: int64 [G, C, L], which L weights each of C candidates of G pools has.
        taken: [G, C], one true in each pool.
        count: of weights.
        ridge: of the squared weights, against the mean log-likelihood of a pool.
    """
    pools, candidates, lists = cells.shape
    ends = np.arange(0, cells.size + 1, lists)
    one_hot = csr_array((np.ones(cells.size), cells.ravel(), ends), shape=(pools * candidates, count))
    transposed = one_hot.T.tocsr()

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        logits = (one_hot @ weights).reshape(pools, candidates)
        logits -= logsumexp(logits, axis=1, keepdims=True)
        gradient = transposed @ (np.exp(logits) - taken).ravel() / pools + 2 * ridge * weights
        return float(ridge * weights @ weights - logits[taken].mean()), gradient

    found: FloatArray = minimize(loss, np.zeros(count), jac=True, method="L-BFGS-B").x
    return found


def graded_lists(text: str) -> dict[str, dict[int, Sign]]:
    """What each line `what: [3]=8 [12]=5; others 0` says, by candidate number, and each column of a table of rows
    `what:8 other:? [3]`, where what is unknown is not named and equal strengths share a place."""
    found: dict[str, dict[int, Sign]] = {}
    for what, rest in _LINE.findall(text):
        signs = _SIGN.findall(rest)
        found[what] = {int(number): Sign(int(level), place) for place, (number, level) in enumerate(signs, 1)}
    columns: dict[str, dict[int, int]] = {}
    for signs, number in _ROW.findall(text):
        for sign in signs.split():
            word, _, level = sign.partition(":")
            column = columns.setdefault(word, {})
            if level != "?":
                column[int(number)] = int(level)
    for word, column in columns.items():
        ranked = sorted(column.values(), reverse=True)
        found[word] = {number: Sign(level, ranked.index(level) + 1) for number, level in column.items()}
    return found


def _output(tool: Tool, view: View) -> str:
    required = tool.schema["function"]["parameters"].get("required", [])
    try:
        return call_tool(tool, view, dict.fromkeys(required, "[1]"))
    except ToolError:
        return ""
