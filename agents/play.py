"""The one loop in which agents and environments meet: benchmarks, tests and training data all come through here.

Rows never wait for one another: a row whose episode ends takes the next task while others go on. Nobody's exception
ends a run: the episode is marked with it. What comes back does not depend on the number of rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agentrec_env.session import METRICS
from agentrec_env.text import clip
from agentrec_env.types import Episode, StopReason
from agentrec_env.vector import RecVectorEnv, rows_of
from agents.protocol import Agent, Observation, Overflow, StreamingAgent, make

ERROR_LIMIT = 500
"""Characters of an exception that an episode keeps."""

_log = logging.getLogger(__name__)


def play(
    envs: RecVectorEnv,
    agent: Agent | str | Callable[..., Any],
    tasks: Iterable[int] | None = None,
    seed: int = 0,
    on_episode: Callable[[Episode], None] | None = None,
    seeds: Sequence[int | None] | None = None,
    options: Mapping[str, Sequence[Any]] | None = None,
) -> list[Episode]:
    """Play tasks of the environment's task split, by default each with its fixed evaluation pool.

    Args:
        envs: a ``RecVectorEnv``; its number of rows says how many episodes run at once.
        agent: an agent, or anything that ``make`` takes. Its ``bind``, where it has one, and ``reset`` are called.
        tasks: indices of tasks; None: all of the task split.
        seed: of the agent.
        on_episode: called with each episode as it ends, in order of ending.
        seeds: one for each of ``tasks``: of fresh negatives and a fresh order of the candidates (None: the fixed pool).
            A GRPO group is one task with one seed, repeated.
        options: further options of the environment's reset by name, one value for each of ``tasks``.

    Raises:
        IndexError: a task that the task split does not have.
        ValueError: not one seed, or not one value of an option, for each task.

    Returns:
        Episodes in the order of ``tasks``. One whose agent raised has stop AGENT_ERROR and is paid as invalid; one
        whose tool or environment raised has ENVIRONMENT_ERROR; both hold the error's text. One whose agent ran out of
        tokens has OVERFLOW.
    """
    envs = envs.unwrapped
    player = make(agent)
    queue = list(range(envs.num_tasks) if tasks is None else tasks)
    for task in queue:
        if not 0 <= task < envs.num_tasks:
            raise IndexError(f"task {task}: the environment has tasks 0..{envs.num_tasks - 1}")
    if seeds is not None and len(seeds) != len(queue):
        raise ValueError(f"seeds holds one seed for each of the {len(queue)} tasks; got {len(seeds)}")
    for name, values in (options or {}).items():
        if len(values) != len(queue):
            raise ValueError(f"option {name!r} has one value for each of the {len(queue)} tasks; got {len(values)}")
    if hasattr(player, "bind"):
        player.bind(envs)
    player.reset(envs.num_envs, seed)
    return _Run(envs, player, queue, seeds or [None] * len(queue), seed, on_episode, options or {}).episodes()


class _Together:
    """A plain agent as one that streams: everything sent is answered at the next ``recv``.

    Where a batch fails, each row is tried alone, so that only the guilty one pays.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._asked: dict[int, Observation] = {}

    def send(self, observations: Sequence[Observation], rows: Sequence[int], episodes: Sequence[int]) -> None:
        self._asked.update(zip(rows, observations, strict=True))

    def recv(self) -> tuple[list[str | Exception], list[int]]:
        rows = sorted(self._asked)
        actions = self._act(rows)
        self._asked = {}
        return actions, rows

    def _act(self, rows: Sequence[int]) -> list[str | Exception]:
        try:
            return list(self._ask(rows))
        except Exception as error:  # noqa: BLE001 - an agent may raise anything; the run goes on
            return [error] if len(rows) == 1 else [action for row in rows for action in self._act([row])]

    def _ask(self, rows: Sequence[int]) -> Sequence[str]:
        actions = self._agent.act([self._asked[row] for row in rows], list(rows))
        if not isinstance(actions, list | tuple) or len(actions) != len(rows):
            raise TypeError(f"act() must return one text for each of {len(rows)} observations; got {actions!r:.100}")
        for action in actions:
            if not isinstance(action, str):
                raise TypeError(f"act() must return texts; got {action!r:.100} ({type(action).__name__})")
        return actions


class _Run:
    """One call of :func:`play`."""

    def __init__(
        self,
        envs: RecVectorEnv,
        agent: Agent,
        tasks: Sequence[int],
        seeds: Sequence[int | None],
        seed: int,
        on_episode: Callable[[Episode], None] | None,
        options: Mapping[str, Sequence[Any]],
    ) -> None:
        self._envs = envs
        self._agent = agent
        self._player = agent if isinstance(agent, StreamingAgent) else _Together(agent)
        self._tasks = tasks
        self._seeds = seeds
        self._seed = seed
        self._on_episode = on_episode
        self._options = options
        self._results: list[Episode | None] = [None] * len(tasks)
        self._next = 0
        self._place: dict[int, int] = {}
        """Row -> place in the list of tasks, for rows that play."""
        self._seconds: dict[int, list[float]] = {}
        self._observations: dict[int, Observation] = {}
        """What rows wait to be told."""
        self._asked: dict[int, float] = {}
        """Rows that the agent has been asked for -> its time spent on them, shared evenly by all that it works on."""

    def episodes(self) -> list[Episode]:
        """Play until no task is left."""
        self._assign(range(self._envs.num_envs))
        while self._place:
            actions = self._actions()
            failed = {row: action for row, action in actions.items() if isinstance(action, Exception)}
            for row, error in failed.items():
                stop = StopReason.OVERFLOW if isinstance(error, Overflow) else StopReason.AGENT_ERROR
                self._envs.abort(row, str(error) if isinstance(error, Overflow) else _describe(error), stop)
                self._end(row)
            acting = [row for row in actions if row not in failed]
            if acting:
                self._envs.send([str(actions[row]) for row in acting], acting)
                self._receive()
            self._assign(row for row in actions if row not in self._place)
        return [episode for episode in self._results if episode is not None]

    def _actions(self) -> dict[int, str | Exception]:
        """What the agent answers next, by row, in order of rows; everybody in its hands is answered where it raises."""
        rows = sorted(self._observations)
        observations = [self._observations[row] for row in rows]
        self._observations = {}
        self._asked.update(dict.fromkeys(rows, 0.0))
        begin = time.perf_counter()
        try:
            if rows:
                self._player.send(observations, rows, [self._place[row] for row in rows])
            actions, answered = self._player.recv()
            _check(actions, answered, self._asked)
            replies = dict(sorted(zip(answered, actions, strict=True)))
        except Exception as error:  # noqa: BLE001 - an agent may raise anything; the run goes on
            replies = dict.fromkeys(sorted(self._asked), error)
            self._agent.reset(self._envs.num_envs, self._seed)
        share = (time.perf_counter() - begin) / len(self._asked)
        for row in self._asked:
            self._asked[row] += share
        for row, reply in replies.items():
            spent = self._asked.pop(row)
            if not isinstance(reply, Exception):
                self._seconds[row].append(spent)
        return replies

    def _assign(self, rows: Iterable[int]) -> None:
        """Give each free row the next task."""
        free = list(rows)
        while free and self._next < len(self._tasks):
            chosen = {row: self._next + offset for offset, row in enumerate(free[: len(self._tasks) - self._next])}
            self._next += len(chosen)
            self._begin(chosen)
            free = [row for row in free if row not in self._place]

    def _begin(self, chosen: Mapping[int, int]) -> None:
        """Reset rows to their places in the list of tasks; a task that cannot be made is marked, alone."""
        mask = np.zeros(self._envs.num_envs, dtype=bool)
        mask[list(chosen)] = True
        rows = range(self._envs.num_envs)
        seeds = [self._seeds[chosen[row]] if row in chosen else None for row in rows]
        options: dict[str, Any] = {
            name: [values[chosen[row]] if row in chosen else None for row in rows]
            for name, values in {**self._options, "task": self._tasks}.items()
        }
        try:
            observations, _ = self._envs.reset(seed=seeds, options={**options, "reset_mask": mask})
        except Exception as error:  # noqa: BLE001 - one user with too few free items must not end the run
            if len(chosen) == 1:
                self._finish(next(iter(chosen.values())), self._impossible(next(iter(chosen.values())), error))
            else:
                for row, place in chosen.items():
                    self._begin({row: place})
            return
        singles = rows_of(observations)
        for row, place in chosen.items():
            self._place[row] = place
            self._seconds[row] = []
            self._observations[row] = singles[row]

    def _impossible(self, place: int, error: Exception) -> Episode:
        """The record of a task that could not be made."""
        index = int(self._tasks[place])
        world, split = self._envs.world, self._envs.scenario.config.task_split
        user, position = (int(x) for x in world.positions(split)[index])
        return Episode(
            task_split=split,
            task_index=index,
            user_id=world.dataset.user_ids[user],
            seed=self._seeds[place],
            prompt="",
            turns=(),
            candidates=(),
            ranking=(),
            target=int(world.dataset.item[world.dataset.indptr[user] + position]),
            reward=0.0,
            terms={},
            metrics=dict.fromkeys(METRICS, 0.0),
            stop=StopReason.ENVIRONMENT_ERROR,
            error=_describe(error),
        )

    def _receive(self) -> None:
        observations, _, terminations, truncations, _, rows = self._envs.recv()
        over = terminations | truncations
        for row, observation, done in zip(rows.tolist(), rows_of(observations), over.tolist(), strict=True):
            if done:
                self._end(row)
            else:
                self._observations[row] = observation

    def _end(self, row: int) -> None:
        place = self._place.pop(row)
        session = self._envs.session(row)
        self._finish(place, session.episode(self._seeds[place], self._seconds[row], self._record(row)))

    def _record(self, row: int) -> Mapping[str, Any]:
        """What the agent wants kept of the episode."""
        if not hasattr(self._agent, "record"):
            return {}
        try:
            return dict(self._agent.record(row))
        except Exception:  # noqa: BLE001 - a lost record must not lose the run
            _log.exception("the agent's record of row %d failed; its episode goes without", row)
            return {}

    def _finish(self, place: int, episode: Episode) -> None:
        self._results[place] = episode
        if self._on_episode is not None:
            self._on_episode(episode)


def _check(actions: Sequence[str | Exception], rows: Sequence[int], asked: Mapping[int, float]) -> None:
    """Refuse what is no answer of a streaming agent."""
    if len(actions) != len(rows) or not rows or len(set(rows)) < len(rows) or not all(row in asked for row in rows):
        raise TypeError(f"recv() must answer rows that were sent, each once; got {len(actions)} for rows {rows!r:.100}")
    for action in actions:
        if not isinstance(action, str | Exception):
            raise TypeError(f"recv() must return texts or exceptions; got {action!r:.100} ({type(action).__name__})")


def _describe(error: Exception) -> str:
    return clip(f"{type(error).__name__}: {error}", ERROR_LIMIT)
