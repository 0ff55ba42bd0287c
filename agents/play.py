"""The one loop in which agents and environments meet: benchmarks, tests and training data all come through here.

Rows never wait for one another: a row whose episode ends takes the next task while others go on. Nobody's exception
ends a run: the episode is marked with it. What comes back does not depend on the number of rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agentrec_env.session import METRICS
from agentrec_env.text import clip
from agentrec_env.types import Episode, StopReason
from agentrec_env.vector import RecVectorEnv, rows_of
from agents.protocol import Agent, Observation, make

ERROR_LIMIT = 500
"""Characters of an exception that an episode keeps."""


def play(
    envs: RecVectorEnv,
    agent: Agent | str | Callable[..., Any],
    tasks: Iterable[int] | None = None,
    seed: int = 0,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play tasks of the environment's task split, each once, with its fixed evaluation pool.

    Args:
        envs: a ``RecVectorEnv``; its number of rows says how many episodes run at once.
        agent: an agent, or anything that ``make`` takes. Its ``bind``, where it has one, and ``reset`` are called.
        tasks: indices of tasks; None: all of the task split.
        seed: of the agent.
        on_episode: called with each episode as it ends, in order of ending.

    Raises:
        IndexError: a task that the task split does not have.

    Returns:
        Episodes in the order of ``tasks``. One whose agent raised has stop AGENT_ERROR and is paid as invalid; one
        whose tool or environment raised has ENVIRONMENT_ERROR; both hold the error's text.
    """
    envs = envs.unwrapped
    player = make(agent)
    queue = list(range(envs.num_tasks) if tasks is None else tasks)
    for task in queue:
        if not 0 <= task < envs.num_tasks:
            raise IndexError(f"task {task}: the environment has tasks 0..{envs.num_tasks - 1}")
    if hasattr(player, "bind"):
        player.bind(envs)
    player.reset(envs.num_envs, seed)
    return _Run(envs, player, queue, on_episode).episodes()


class _Run:
    """One call of :func:`play`."""

    def __init__(
        self, envs: RecVectorEnv, agent: Agent, tasks: Sequence[int], on_episode: Callable[[Episode], None] | None
    ) -> None:
        self._envs = envs
        self._agent = agent
        self._tasks = tasks
        self._on_episode = on_episode
        self._results: list[Episode | None] = [None] * len(tasks)
        self._next = 0
        self._place: dict[int, int] = {}
        """Row -> place in the list of tasks, for rows that play."""
        self._seconds: dict[int, list[float]] = {}
        self._observations: dict[int, Observation] = {}

    def episodes(self) -> list[Episode]:
        """Play until no task is left."""
        self._assign(range(self._envs.num_envs))
        while self._place:
            rows = sorted(self._place)
            actions, errors = self._act(rows)
            for row, error in errors.items():
                self._envs.abort(row, error)
                self._end(row)
            acting = list(actions)
            if acting:
                self._envs.send([actions[row] for row in acting], acting)
                self._receive()
            self._assign(row for row in rows if row not in self._place)
        return [episode for episode in self._results if episode is not None]

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
        tasks = [0] * self._envs.num_envs
        for row, place in chosen.items():
            tasks[row] = int(self._tasks[place])
        try:
            observations, _ = self._envs.reset(options={"task": tasks, "reset_mask": mask})
        except Exception as error:  # noqa: BLE001 - one user with too few free items must not end the run
            if len(chosen) == 1:
                self._finish(next(iter(chosen.values())), self._impossible(tasks[next(iter(chosen))], error))
            else:
                for row, place in chosen.items():
                    self._begin({row: place})
            return
        singles = rows_of(observations)
        for row, place in chosen.items():
            self._place[row] = place
            self._seconds[row] = []
            self._observations[row] = singles[row]

    def _impossible(self, index: int, error: Exception) -> Episode:
        """The record of a task that could not be made."""
        world, split = self._envs.world, self._envs.scenario.config.task_split
        user, position = (int(x) for x in world.positions(split)[index])
        return Episode(
            task_split=split,
            task_index=index,
            user_id=world.dataset.user_ids[user],
            seed=None,
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

    def _act(self, rows: Sequence[int]) -> tuple[dict[int, str], dict[int, str]]:
        """Actions by row, and for rows whose agent failed what it raised.

        Where a batch fails, each row is tried alone, so that only the guilty one pays.
        """
        begin = time.perf_counter()
        try:
            actions = self._ask(rows)
        except Exception as error:  # noqa: BLE001 - an agent may raise anything; the run goes on
            if len(rows) == 1:
                return {}, {rows[0]: _describe(error)}
            good: dict[int, str] = {}
            bad: dict[int, str] = {}
            for row in rows:
                one, failed = self._act([row])
                good |= one
                bad |= failed
            return good, bad
        share = (time.perf_counter() - begin) / len(rows)
        for row in rows:
            self._seconds[row].append(share)
        return dict(zip(rows, actions, strict=True)), {}

    def _ask(self, rows: Sequence[int]) -> list[str]:
        actions = self._agent.act([self._observations[row] for row in rows], list(rows))
        if not isinstance(actions, list | tuple) or len(actions) != len(rows):
            raise TypeError(f"act() must return one text for each of {len(rows)} observations; got {actions!r:.100}")
        for action in actions:
            if not isinstance(action, str):
                raise TypeError(f"act() must return texts; got {action!r:.100} ({type(action).__name__})")
        return list(actions)

    def _receive(self) -> None:
        observations, _, terminations, truncations, _, rows = self._envs.recv()
        over = terminations | truncations
        for row, observation, done in zip(rows.tolist(), rows_of(observations), over.tolist(), strict=True):
            if done:
                self._end(row)
            else:
                self._observations[row] = observation

    def _end(self, row: int) -> None:
        self._finish(self._place.pop(row), self._envs.session(row).episode(seconds=self._seconds[row]))

    def _finish(self, place: int, episode: Episode) -> None:
        self._results[place] = episode
        if self._on_episode is not None:
            self._on_episode(episode)


def _describe(error: Exception) -> str:
    return clip(f"{type(error).__name__}: {error}", ERROR_LIMIT)
