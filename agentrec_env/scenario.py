"""From the keyword arguments of an environment id to what its rows share: world, tools, reward, spaces, task draws.

`RecEnv` and `RecVectorEnv` are two ways to run one `Scenario`. The data is loaded and split once a process for equal
arguments, so a thousand environments cost the memory of one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, Self, cast

import numpy as np
from gymnasium import spaces

from agentrec_env.actions import Mode
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.load import Stamp, load, stamp
from agentrec_env.data.splits import SPLITS, TASK_SPLITS, Split
from agentrec_env.data.world import World
from agentrec_env.prompts import Direction
from agentrec_env.registry import did_you_mean
from agentrec_env.rewards import REWARDS
from agentrec_env.session import Rules, Session
from agentrec_env.spaces import Unicode
from agentrec_env.tools import TOOLS, resolve_tools
from agentrec_env.types import Task

MAX_TEXT = 1_000_000
"""Characters in an observation or an action: a pool of 1,000 long titles, or ten full tool outputs, stay under it."""
_OPTIONS = ("task", "negative", "direction", "letter")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """The keyword arguments of `gym.make`, all of them JSON."""

    dataset: str = "synthetic"
    """What `agentrec_env.data.load` takes: "synthetic", a downloaded category, a folder with reviews, a file."""
    k_core: int = 0
    """Keep only users and items with at least this many interactions; 0 keeps all."""
    split: str = "temporal"
    """"temporal" (global time 8:1:1) or "leave_one_out"."""
    task_split: str = "train"
    """Whose tasks are asked: "train", "valid" or "test"."""
    num_candidates: int | Literal["catalog"] = 20
    """Pool size, 2..1,000; "catalog": every item is a candidate and the agent must retrieve."""
    negatives: str = "uniform"
    """How the pool is drawn: "uniform", "popularity" or "hard"."""
    history_length: int = 10
    """How many of the user's latest items a task shows."""
    tools: Sequence[str] | None = None
    """Names of the tools on offer, or "module:attribute"; None: all registered ones."""
    max_calls: int = 10
    """Tool calls allowed in an episode; one more ends it as invalid."""
    max_turns: int | None = None
    """Actions allowed; at the limit the episode is truncated. None: max_calls + retries + 1."""
    retries: int = 1
    """Invalid actions answered with an error and forgiven; 0 is the paper's rule."""
    reward: str = "agenticrec"
    """A name in `agentrec_env.rewards.REWARDS`, or "module:attribute"."""
    seed: int = 0
    """Of the fixed evaluation pools."""
    mode: Literal["rank", "pair"] = "rank"
    """"rank" a list, or choose the more or less likely of a "pair"."""

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """A config of keyword arguments; a `TypeError` names the nearest one where a name is unknown."""
        known = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in known:
                raise TypeError(did_you_mean("environment argument", name, [*known, "render_mode"]))
        return cls(**kwargs)

    def __post_init__(self) -> None:
        if self.task_split not in TASK_SPLITS:
            raise ValueError(did_you_mean("task split", self.task_split, TASK_SPLITS))
        if self.mode not in ("rank", "pair"):
            raise ValueError(did_you_mean("mode", self.mode, ("rank", "pair")))
        if isinstance(self.tools, str):
            raise TypeError(f'tools is a list of names; got the string {self.tools!r}: write ["{self.tools}"]')


class Scenario:
    """What all rows of an environment share.

    Args:
        config: The keyword arguments.
        world: A world in memory, instead of the config's dataset, split, pool, history and seed.

    Raises:
        UnknownNameError, ValueError, DataError: An argument that cannot be used; the message says what can.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.config = config
        if world is None:
            world = _world(config)
        self.world = world
        if config.mode == "pair" and world.num_candidates != 2:
            raise ValueError(f"mode 'pair' needs num_candidates=2; got {world.num_candidates!r}")
        mode: Mode = "pair" if config.mode == "pair" else "catalog" if world.catalog else "rank"
        self.rules = Rules(
            world=world,
            tools=resolve_tools(TOOLS.names() if config.tools is None else config.tools),
            reward=REWARDS.get(config.reward),
            mode=mode,
            max_calls=config.max_calls,
            max_turns=config.max_turns,
            retries=config.retries,
        )
        self._positions = world.positions(config.task_split)
        self.num_tasks = len(self._positions)
        if self.num_tasks == 0:
            raise ValueError(
                f"dataset {world.dataset.name!r} has no {config.task_split!r} tasks under split {world.split.name!r}: "
                "users need an earlier interaction; use more data, a smaller k_core or another split"
            )

    def session(self) -> Session:
        """A session for one row."""
        return Session(self.rules)

    @cached_property
    def observation_space(self) -> spaces.Dict:
        """Of one row; see `RecEnv`."""
        top = self.world.dataset.num_items - 1
        return spaces.Dict(
            {
                "text": Unicode(MAX_TEXT),
                "history": spaces.Box(-1, top, (self.world.history_length,), np.int64),
                "candidates": spaces.Box(0, max(top, 1), (self.rules.num_candidates,), np.int64),
                "turn": spaces.Discrete(self.rules.turns_allowed + 1),
            }
        )

    @cached_property
    def action_space(self) -> Unicode:
        """Any text."""
        return Unicode(MAX_TEXT)

    def draw(
        self, generator: np.random.Generator, seeded: bool, options: Mapping[str, Any] | None
    ) -> tuple[Task, Direction | None]:
        """The task of the next episode.

        Args:
            generator: Of the row.
            seeded: Whether this reset was given a seed; a task named without one has its fixed evaluation pool.
            options: "task" (index); in pair mode also "negative" (item index or id), "direction" ("more" or "less") and
                "letter" ("A" or "B": where the positive stands).
        """
        index, coin = int(generator.integers(self.num_tasks)), int(generator.integers(2))
        options = options or {}
        for name in options:
            if name not in _OPTIONS:
                raise ValueError(did_you_mean("reset option", name, _OPTIONS))
        named = options.get("task")
        if named is not None:
            if isinstance(named, bool) or not isinstance(named, int | np.integer):
                raise TypeError(f'options["task"] is a task index, 0..{self.num_tasks - 1}; got {named!r}')
            index = int(named)
            if not 0 <= index < self.num_tasks:
                raise IndexError(
                    f'options["task"]: there are {self.num_tasks} {self.config.task_split!r} tasks, '
                    f"0..{self.num_tasks - 1}; got {index}"
                )
        if named is None or seeded:
            user, position = self._positions[index].tolist()
            task = self.world.build_task(self.config.task_split, index, user, position, generator)
        else:
            task, coin = self.world.task(self.config.task_split, index), index % 2
        if self.rules.mode != "pair":
            for name in _OPTIONS[1:]:
                if options.get(name) is not None:
                    raise ValueError(f'options["{name}"] is for pair tasks; make AgentRec-AmazonPair-v0')
            return task, None
        if options.get("negative") is not None:
            task = self._with_negative(task, options["negative"])
        if options.get("letter") is not None:
            task = _with_positive_at(task, options["letter"])
        direction = options.get("direction") or ("more", "less")[coin]
        if direction not in ("more", "less"):
            raise ValueError(did_you_mean("direction", direction, ("more", "less")))
        return task, cast(Direction, direction)

    def _with_negative(self, task: Task, negative: object) -> Task:
        items = self.world.dataset.items
        if isinstance(negative, str):
            if negative not in items.index:
                raise ValueError(f'options["negative"]: {negative!r} is not an item id of this dataset')
            negative = items.index[negative]
        if isinstance(negative, bool) or not isinstance(negative, int | np.integer) or not 0 <= negative < len(items):
            raise ValueError(f'options["negative"] is an item id or an index 0..{len(items) - 1}; got {negative!r}')
        if negative == task.target:
            raise ValueError(f'options["negative"]: item {negative} is the positive of task {task.index}')
        candidates = np.where(task.candidates == task.target, task.target, int(negative))
        candidates.flags.writeable = False
        return replace(task, candidates=candidates)


def _with_positive_at(task: Task, letter: object) -> Task:
    if letter not in ("A", "B"):
        raise ValueError(did_you_mean("letter", str(letter), ("A", "B")))
    negative = int(task.candidates[task.candidates != task.target][0])
    candidates = np.array([task.target, negative] if letter == "A" else [negative, task.target])
    candidates.flags.writeable = False
    return replace(task, candidates=candidates)


_lock = threading.RLock()


@lru_cache(maxsize=4)
def _dataset(source: str, k_core: int, stamp: Stamp) -> Dataset:
    if source == "synthetic":
        logger.warning(
            "dataset 'synthetic': the embedded world, made by this project, not real reviews. "
            "Pass dataset=<category or folder> for those."
        )
    return load(source, k_core=k_core)


@lru_cache(maxsize=8)
def _split(source: str, k_core: int, stamp: Stamp, split: str) -> Split:
    return SPLITS.get(split)(_dataset(source, k_core, stamp))


@lru_cache(maxsize=16)
def _shared(
    source: str,
    k_core: int,
    stamp: Stamp,
    split: str,
    num_candidates: int | Literal["catalog"],
    negatives: str,
    history_length: int,
    seed: int,
) -> World:
    boundaries = _split(source, k_core, stamp, split)
    return World(boundaries.dataset, boundaries, num_candidates, negatives, history_length, seed)


def _world(config: Config) -> World:
    """The world of a config, the same object for the same arguments."""
    with _lock:
        return _shared(
            config.dataset,
            config.k_core,
            stamp(config.dataset),
            config.split,
            config.num_candidates,
            config.negatives,
            config.history_length,
            config.seed,
        )


class Played:
    """What every environment tells of the scenario that it plays."""

    scenario: Scenario

    @property
    def world(self) -> World:
        """The data and its tasks, shared between environments of equal arguments."""
        return self.scenario.world

    @property
    def num_tasks(self) -> int:
        """Number of tasks; `options["task"]` is below it."""
        return self.scenario.num_tasks

    @property
    def tool_schemas(self) -> list[dict[str, Any]]:
        """JSON schemas of the tools, as chat templates take them."""
        return [dict(tool.schema) for tool in self.scenario.rules.tools.values()]
