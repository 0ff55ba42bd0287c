"""RecVectorEnv: many episodes in one process over one shared world, each row at its own pace.

Rows are plain sessions; observations live in batch arrays that are written in place and handed out as copies, which is
where it gains over a `SyncVectorEnv` of single environments. Semantics are Gymnasium's with autoreset DISABLED, plus
EnvPool's `send` / `recv` for stepping some rows while others wait for their model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import EzPickle, seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.prompts import Direction
from agentrec_env.scenario import Config, Played, Scenario
from agentrec_env.session import Session, Step
from agentrec_env.transcript import transcript
from agentrec_env.types import StopReason

logger = logging.getLogger(__name__)

Observations = dict[str, Any]
"""{"text": tuple of M str, "history": int64 [M, H], "candidates": int64 [M, C], "turn": int64 [M]}."""
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class RecVectorEnv(Played, VectorEnv[Observations, Sequence[str], Any], EzPickle):
    """`num_envs` rows of `RecEnv`, whose docstring is the specification; here is what differs.

    Row i after `reset(seed=s)` is a `RecEnv` after `reset(seed=s + i)`; a list gives each row its own, so a GRPO
    group is `seed=[s] * G`. A finished episode holds: `step` leaves its row as it is (reward 0, flags still up, no
    info) until `reset(options={"reset_mask": mask})` with a bool [N]. `options["task"]` (and "negative", "direction",
    "letter") is one value for all rows, or a list with one for each row.

    `send(actions, rows)` steps some rows at once; `recv()` hands out every result since the last `recv`. Nobody
    waits: rows may be sent in any order, as often as they are received.

    A tool that raises anything but `ToolError` is a bug. `RecEnv` raises it; here it would take every other row with
    it, so the row ends truncated with `stop` "environment_error", reward 0 and `error` in its info, and the trace is
    logged.

    Args:
        num_envs: Rows, at least 1.
        render_mode: None or "ansi".
        world: A world in memory instead of the arguments on data and pool.
        kwargs: Fields of `agentrec_env.scenario.Config`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - as Gymnasium types it
        "render_modes": ["ansi"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self, num_envs: int = 1, render_mode: str | None = None, world: World | None = None, **kwargs: Any
    ) -> None:
        EzPickle.__init__(self, num_envs=num_envs, render_mode=render_mode, world=world, **kwargs)
        if num_envs < 1:
            raise ValueError(f"num_envs is at least 1; got {num_envs}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is None or 'ansi'; got {render_mode!r}")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.scenario = self._make_scenario(kwargs, world)
        self.single_observation_space = self.scenario.observation_space
        self.single_action_space = self.scenario.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._sessions = [self.scenario.session() for _ in range(num_envs)]
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._text = [""] * num_envs
        self._history = np.full((num_envs, self.world.history_length), -1, np.int64)
        self._candidates = np.zeros((num_envs, self.scenario.rules.num_candidates), np.int64)
        self._turn = np.zeros(num_envs, np.int64)
        self._terminated = np.zeros(num_envs, np.bool_)
        self._truncated = np.zeros(num_envs, np.bool_)
        self._begun = np.zeros(num_envs, np.bool_)
        self._ready: dict[int, Step] = {}

    def session(self, row: int) -> Session:
        """The session of a row: its transcript, and (for judges only) its task with the target."""
        return self._sessions[row]

    def views(self, rows: Iterable[int]) -> list[View]:
        """What the agents of `rows` may know now."""
        return [self._sessions[row].view for row in rows]

    def directions(self, rows: Iterable[int]) -> list[Direction | None]:
        """Pair mode: whether each of `rows` asks for the more or the less likely item."""
        return [self._sessions[row].direction for row in rows]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin an episode in every row, or in those of `options["reset_mask"]`.

        Returns:
            Observations of all rows, and the infos of those that were reset.
        """
        options = dict(options or {})
        mask = self._mask(options.pop("reset_mask", None))
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed lists one seed for each of the {self.num_envs} rows; got {len(seeds)}")
        rows = np.flatnonzero(mask).tolist()
        draws = [(row, seeds[row], self._row_options(options, row)) for row in rows]
        infos: list[dict[str, Any]] = []
        for row, row_seed, row_options in draws:
            generator = self._generators[row]
            if row_seed is not None or generator is None:
                generator = self._generators[row] = seeding.np_random(row_seed)[0]
            task, direction = self.scenario.draw(generator, row_seed is not None, row_options)
            self._ready.pop(row, None)
            self._text[row] = self._sessions[row].reset(task, direction)
            self._history[row] = -1
            self._history[row, : len(task.history)] = task.history
            self._candidates[row] = task.candidates
            infos.append({"task": task.index, "calls": 0})
        self._turn[rows] = 0
        self._terminated[rows] = self._truncated[rows] = False
        self._begun[rows] = True
        return self._observations(), batch_infos(infos, rows, self.num_envs)

    def step(self, actions: Sequence[str]) -> tuple[Observations, Floats, Bools, Bools, dict[str, Any]]:
        """Take one action in every row that still runs; the actions of finished rows are ignored."""
        if len(actions) != self.num_envs:
            raise ValueError(f"one action for each of the {self.num_envs} rows; got {len(actions)}. See send")
        self._check_begun(range(self.num_envs))
        if self._ready:
            raise RuntimeError(f"rows {sorted(self._ready)} were sent; recv their results before step")
        rewards = np.zeros(self.num_envs)
        rows, infos = [], []
        for row, action in enumerate(actions):
            if self._sessions[row].stop is None:
                _, rewards[row], _, _, info = self._advance(row, action)
                rows.append(row)
                infos.append(info)
        return (
            self._observations(),
            rewards,
            self._terminated.copy(),
            self._truncated.copy(),
            batch_infos(infos, rows, self.num_envs),
        )

    def send(self, actions: Sequence[str], rows: Sequence[int]) -> None:
        """Take an action in each of `rows`; results wait for `recv`.

        Raises:
            ValueError: A row that is finished, unknown, given twice, or has a result waiting. Nothing was stepped then.
        """
        rows = [int(row) for row in rows]
        if len(actions) != len(rows):
            raise ValueError(f"{len(actions)} actions for {len(rows)} rows; give one action for each row")
        if len(set(rows)) < len(rows) or not all(0 <= row < self.num_envs for row in rows):
            raise ValueError(f"rows are different numbers 0..{self.num_envs - 1}; got {rows}")
        self._check_begun(rows)
        finished = [row for row in rows if self._sessions[row].stop is not None]
        waiting = [row for row in rows if row in self._ready]
        if waiting:
            raise ValueError(f"rows {waiting} have results waiting; recv them before sending again")
        if finished:
            raise ValueError(f'rows {finished} are finished; reset them with options={{"reset_mask": …}} first')
        for row, action in zip(rows, actions, strict=True):
            self._ready[row] = self._advance(row, action)

    def recv(self) -> tuple[Observations, Floats, Bools, Bools, dict[str, Any], NDArray[np.int64]]:
        """Everything that finished since the last `recv`.

        Returns:
            Observations, rewards, terminations, truncations and infos of M rows, and the rows, int64 [M], in the order
            in which they were sent.

        Raises:
            RuntimeError: Nothing was sent.
        """
        if not self._ready:
            raise RuntimeError("nothing to receive: send actions first")
        rows = np.fromiter(self._ready, np.int64)
        steps = list(self._ready.values())
        self._ready = {}
        return (
            self._observations(rows),
            np.array([step[1] for step in steps]),
            np.array([step[2] for step in steps]),
            np.array([step[3] for step in steps]),
            batch_infos([step[4] for step in steps], range(len(steps)), len(steps)),
            rows,
        )

    def abort(self, row: int, error: str, stop: StopReason = StopReason.AGENT_ERROR) -> None:
        """End the episode of a row whose agent failed or overflowed; it is paid as an invalid one."""
        self._check_begun([row])
        self._finish(row, self._sessions[row].abort(stop, error))

    def render(self) -> tuple[str, ...] | None:
        """The transcript of each row, with render_mode "ansi"."""
        if self.render_mode is None:
            return None
        return tuple(transcript(s) if b else "" for s, b in zip(self._sessions, self._begun, strict=True))

    def _make_scenario(self, kwargs: Mapping[str, Any], world: World | None) -> Scenario:
        """What the keyword arguments mean; other environments on these rows take others."""
        return Scenario(Config.from_kwargs(kwargs), world)

    def _advance(self, row: int, action: str) -> Step:
        session = self._sessions[row]
        try:
            step = session.step(action)
        except Exception as error:
            logger.exception("row %d: a tool failed; its episode ends", row)
            step = session.abort(StopReason.ENVIRONMENT_ERROR, f"{type(error).__name__}: {error}")
        self._finish(row, step)
        return step

    def _finish(self, row: int, step: Step) -> None:
        self._text[row] = step[0]
        self._turn[row] = len(self._sessions[row].turns)
        if step[2] or step[3]:
            self._terminated[row], self._truncated[row] = step[2], step[3]

    def _observations(self, rows: NDArray[np.int64] | None = None) -> Observations:
        if rows is None:
            return {
                "text": tuple(self._text),
                "history": self._history.copy(),
                "candidates": self._candidates.copy(),
                "turn": self._turn.copy(),
            }
        return {
            "text": tuple(self._text[row] for row in rows),
            "history": self._history[rows],
            "candidates": self._candidates[rows],
            "turn": self._turn[rows],
        }

    def _check_begun(self, rows: Iterable[int]) -> None:
        if not self._begun.all():
            missing = [row for row in rows if not self._begun[row]]
            if missing:
                raise RuntimeError(f"rows {missing} were never reset; call reset first")

    def _mask(self, mask: object) -> Bools:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f'options["reset_mask"] is a numpy bool array of shape ({self.num_envs},); got {mask!r}')
        if not mask.any():
            raise ValueError('options["reset_mask"] marks no row; mark at least one')
        return mask

    def _row_options(self, options: Mapping[str, Any], row: int) -> dict[str, Any]:
        chosen = {}
        for name, value in options.items():
            if isinstance(value, list | tuple | np.ndarray):
                if len(value) != self.num_envs:
                    raise ValueError(
                        f'options["{name}"] lists one value for each of the {self.num_envs} rows, reset or not; '
                        f"got {len(value)}"
                    )
                value = value[row]
            chosen[name] = value
        return chosen


def rows_of(observations: Observations) -> list[dict[str, Any]]:
    """The observations of a batch one by one, as `RecEnv` gives them and agents take them."""
    return [
        {"text": text, "history": history, "candidates": candidates, "turn": turn}
        for text, history, candidates, turn in zip(
            observations["text"],
            observations["history"],
            observations["candidates"],
            observations["turn"].tolist(),
            strict=True,
        )
    ]


def batch_infos(infos: Sequence[Mapping[str, Any]], places: Iterable[int], size: int) -> dict[str, Any]:
    """Infos of single rows as Gymnasium's vector environments give them: an array and a mask `_key` for each key.

    Args:
        infos: One for each of `places`, with scalar values.
        places: Where in the batch each belongs.
        size: M, length of the arrays.
    """
    columns: dict[str, tuple[list[int], list[Any]]] = {}
    for place, info in zip(places, infos, strict=True):
        for key, value in info.items():
            column = columns.get(key)
            if column is None:
                columns[key] = ([place], [value])
            else:
                column[0].append(place)
                column[1].append(value)
    batch: dict[str, Any] = {}
    for key, (at, values) in columns.items():
        kind = type(values[0])
        array = np.zeros(size, kind) if kind in (int, float, bool) else np.full(size, None, object)
        mask = np.zeros(size, np.bool_)
        array[at] = values
        mask[at] = True
        batch[key], batch[f"_{key}"] = array, mask
    return batch
