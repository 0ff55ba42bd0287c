"""What an agent is, and the adapters that make anything sensible one.

An agent reads observations and writes text, as a language model would. One that ranks by numbers instead of words
subclasses ``ScoringAgent`` and gives scores; the base turns them into the environment's answer.
"""

from __future__ import annotations

import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from agentrec_env.actions import render
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.registry import Registry
from agentrec_env.types import Choice, FloatArray, IntArray, Ranking

TOP = 10
"""Length of a final list (AgenticRec, arXiv:2603.21613, sec. 3)."""

Observation = Mapping[str, Any]
"""{"text": str, "history": int64[H] padded with -1, "candidates": int64[C], "turn": int}."""


class Environments(Protocol):
    """What ``bind`` gets: the vector environment, of which an agent may read the world's evidence and the views."""

    @property
    def world(self) -> World: ...

    def views(self, rows: Sequence[int]) -> Sequence[View]: ...

    def directions(self, rows: Sequence[int]) -> Sequence[Literal["more", "less"] | None]: ...


@runtime_checkable
class Agent(Protocol):
    """Plays any number of episodes at once, one a row.

    Optional beside these: ``bind(envs)``, called before anything else and perhaps again with the same, for agents that
    read numbers instead of text or that must be fitted; ``metrics``, a mapping of figures to report with the results
    (seconds of training, say); and ``record(row)``, a mapping that an episode keeps in its ``info`` when it ends.
    """

    def reset(self, num_envs: int, seed: int) -> None:
        """Forget all episodes; rows will be 0..num_envs-1. Equal seeds give equal episodes, whatever ``num_envs``."""

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        """One action for each observation; ``rows`` says whose turn it is. ``turn`` 0 starts a row's new episode.

        Where it raises, it is asked again for each row alone: raise before anything that an episode depends on changes.
        """


@runtime_checkable
class StreamingAgent(Agent, Protocol):
    """An agent that answers each row when it is ready: the mirror of ``RecVectorEnv.send`` and ``recv``.

    For agents whose rows take different times (a language model that writes, an endpoint that is asked): ``play`` uses
    these two in place of ``act``.
    """

    def send(self, observations: Sequence[Observation], rows: Sequence[int], episodes: Sequence[int]) -> None:
        """Take observations of some rows; ``turn`` 0 begins a new episode in its row, whatever was there.

        Args:
            observations: one a row.
            rows: whose they are.
            episodes: number of each row's episode in the run, 0, 1, …: the same whatever the number of rows, so what
                is drawn at random must come from the seed and this.
        """

    def recv(self) -> tuple[Sequence[str | Exception], Sequence[int]]:
        """Wait until at least one row is answered: the actions, and whose they are.

        An exception in place of an action marks that row's episode, which ends; :class:`Overflow` where a budget of
        the agent's own ran out.
        """


class Overflow(Exception):
    """An agent ran out of tokens or another budget of its own; the episode ends with stop "overflow"."""


class FunctionAgent:
    """A plain function of one observation, ``f({"text": …, "candidates": …, …}) -> str``, as an agent."""

    def __init__(self, function: Callable[..., str], **kwargs: Any) -> None:
        self.function = function
        self.kwargs = kwargs

    def reset(self, num_envs: int, seed: int) -> None:
        """Nothing to forget."""

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        return [self.function(observation, **self.kwargs) for observation in observations]


AGENTS: Registry[Any] = Registry("agent")


def make(source: str | type | Callable[..., Any] | Agent, **kwargs: Any) -> Agent:
    """An agent from a registered name, ``"module:attr"``, a class, an instance, or a function of one observation.

    Args:
        source: which agent.
        kwargs: for the constructor of a class; for a function, passed with every observation.

    Raises:
        UnknownNameError: a name that nobody registered, with the nearest one.
        TypeError: not something that acts, or arguments that the constructor does not take.
    """
    thing = AGENTS.get(source) if isinstance(source, str) else source
    label = source if isinstance(source, str) else getattr(source, "__qualname__", repr(source))
    if inspect.isclass(thing):
        try:
            inspect.signature(thing).bind(**kwargs)
        except TypeError as error:
            allowed = ", ".join(inspect.signature(thing).parameters) or "none"
            raise TypeError(f"agent {label!r}: {error}. Its arguments: {allowed}.") from None
        thing = thing(**kwargs)
    elif isinstance(thing, Agent):
        if kwargs:
            raise TypeError(f"agent {label!r} is made already and takes no arguments; got {', '.join(kwargs)}")
    elif callable(thing):
        return FunctionAgent(thing, **kwargs)
    if not isinstance(thing, Agent):
        raise TypeError(
            f"{label!r} is no agent: it needs reset(num_envs, seed) and act(observations, rows) -> list[str], or must "
            "be a function of one observation that returns the text of an action"
        )
    return thing


class ScoringAgent(ABC):
    """Ranks the candidates by a number each, in one turn and without tools.

    Subclasses give :meth:`scores`. Unknown scores (nan) rank last. Ties are broken at random by the seed and the
    request, never by the order in which candidates are listed.
    """

    _envs: Environments | None = None
    _seed: int = 0

    def bind(self, envs: Environments) -> None:
        """Fit to the world of ``envs``; binding again to the same costs nothing."""
        if self._envs is not envs:
            self.fit(envs.world)
            self._envs = envs

    def fit(self, world: World) -> None:  # noqa: B027 - most need none
        """Prepare what needs the world's evidence; by default nothing."""

    def reset(self, num_envs: int, seed: int) -> None:
        self._seed = seed

    @abstractmethod
    def scores(self, view: View, items: IntArray) -> FloatArray:
        """float64 [M]: how much the user of ``view`` would like each of ``items`` (int64 [M]); higher is better."""

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        if self._envs is None:
            raise RuntimeError(
                f"{type(self).__name__} reads the data behind the text: call bind(envs) with the vector environment "
                "first, as agents.play does"
            )
        views = self._envs.views(rows)
        pools = [view.candidates if len(view.candidates) else unknown_items(view) for view in views]
        scores = self.score_many(views, pools)
        directions = self._envs.directions(rows)
        return [self._answer(*request) for request in zip(views, pools, scores, directions, strict=True)]

    def score_many(self, views: Sequence[View], pools: Sequence[IntArray]) -> list[FloatArray]:
        """:meth:`scores` for many requests; for subclasses that save time by doing them together."""
        return [self.scores(view, pool) for view, pool in zip(views, pools, strict=True)]

    def _answer(self, view: View, pool: IntArray, scores: FloatArray, direction: Literal["more", "less"] | None) -> str:
        """The text of the final list for one request, or of the choice where a pair is asked about."""
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != pool.shape:
            raise ValueError(f"{type(self).__name__}.scores gave shape {scores.shape} for {len(pool)} items")
        best = top(scores, pool, self._generator(view), TOP)
        if direction is not None:
            return render(Choice("A" if (best[0] == 0) == (direction == "more") else "B"))
        if len(view.candidates) == 0:
            return render(Ranking(tuple(view.items.ids[i] for i in pool[best])))
        return render(Ranking(tuple(int(place) + 1 for place in best)))

    def _generator(self, view: View) -> np.random.Generator:
        return np.random.default_rng([self._seed, request_key(view)])


def request_key(view: View) -> int:
    """A number that names the request itself, and so is the same whatever the row and the order of the list."""
    return zlib.crc32(np.append(view.known, [view.user, view.time or 0]).tobytes())


def unknown_items(view: View) -> IntArray:
    """int64 [M]: all items that the user is not known to have taken, the candidates of catalogue mode."""
    free = np.ones(len(view.items), dtype=bool)
    free[view.known] = False
    return np.flatnonzero(free)


def top(scores: FloatArray, items: IntArray, generator: np.random.Generator, count: int) -> IntArray:
    """int64 [min(count, M)]: places of the best scores, ties at random but the same for any order of ``items``."""
    chance = np.empty(len(items))
    chance[np.argsort(items)] = generator.random(len(items))
    return np.lexsort((chance, -np.nan_to_num(scores, nan=-np.inf)))[:count]
