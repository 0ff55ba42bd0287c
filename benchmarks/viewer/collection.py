"""What a run has to show: its episodes, who played them, and its curves.

A run is a results folder of `benchmarks/run_all.py`, the folder of a training run, or one file of episodes. Of each
agent only the first tasks are taken where all would be too many, the same tasks for all, so that they can be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from agentrec_env.episodes import SUFFIXES, Asker, EpisodeFile, EpisodeFileError, read
from agentrec_env.types import Episode

LIMIT = 10_000
"""Episodes of a page, unless another number is asked for."""
METRICS = "metrics.jsonl"


class NoRunError(ValueError):
    """What was given holds nothing to show; the message says what can be."""


@dataclass(frozen=True)
class Player:
    """One agent as it played in one place: a row of a comparison, or a policy after some steps."""

    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The agent's, or of the run that trains it."""
        return str(self.about.get("agent", self.about.get("run", "agent")))

    @property
    def place(self) -> tuple[str, str, str]:
        """Where it played: dataset, track, protocol. Tasks of the same number are the same there."""
        return tuple(str(self.about.get(name, "")) for name in ("dataset", "track", "protocol"))  # type: ignore[return-value]


@dataclass(frozen=True)
class Played:
    """An episode, and who played it."""

    player: int
    episode: Episode
    asker: Asker | None
    names: Mapping[int, str] = field(repr=False)
    """Item index -> name."""


@dataclass(frozen=True)
class Collection:
    """All that a page shows."""

    title: str
    players: tuple[Player, ...]
    played: tuple[Played, ...]
    """In the order of places and tasks, so that those who played the same task stand together."""
    curves: Mapping[str, Sequence[tuple[int, float]]]
    """Figure -> (step, value)."""
    notes: tuple[str, ...] = ()
    """What a reader should know: what was left out, what was damaged."""


def collect(run: Path, limit: int = LIMIT) -> Collection:
    """Read a run.

    Args:
        run: A results folder, the folder of a training run, or a file of episodes.
        limit: Episodes taken, shared evenly by the agents.

    Raises:
        NoRunError: There is nothing to show; says what can be given.
        EpisodeFileError: A file of episodes without a readable header.
    """
    if limit < 1:
        raise NoRunError(f"--limit {limit}: at least one episode is needed")
    if not run.exists():
        raise NoRunError(f"{run} does not exist; {_WANTED}")
    curves = _curves(run / METRICS) if run.is_dir() else {}
    groups: dict[str, list[Path]] = {}
    for path in _files(run):
        group = str(path.parent) if path.name.startswith("episodes-") else str(path)
        groups.setdefault(group, []).append(path)
    if not groups and not curves:
        raise NoRunError(f"{run} holds no episodes; {_WANTED}")
    share = max(1, limit // max(1, len(groups)))
    players: dict[str, int] = {}
    notes: list[str] = []
    played: list[Played] = []
    cut = False
    for paths in groups.values():
        found = list(islice(_episodes(paths, players, notes), share + 1))
        cut |= len(found) > share
        played += found[:share]
    if cut:
        notes.insert(
            0, f"The first {share:,} episodes of each agent are shown, {len(played):,} in all; --limit shows more."
        )
    made = tuple(Player(json.loads(about)) for about in players)
    played.sort(key=lambda one: (made[one.player].place, one.episode.task_split, one.episode.task_index, one.player))
    return Collection(run.resolve().name or str(run), made, tuple(played), curves, tuple(notes))


_WANTED = (
    "give the results folder of benchmarks/run_all.py, the folder of a training run, or a file of episodes "
    f"({' or '.join(SUFFIXES)})"
)


def _files(run: Path) -> list[Path]:
    """Files of episodes, in the order in which they were played."""
    if run.is_file():
        if not run.name.endswith(SUFFIXES):
            raise NoRunError(f"{run} is no file of episodes; {_WANTED}")
        return [run]
    found = [*(run / "units").rglob("episodes-*.jsonl.gz"), *(run / "episodes").glob("*.jsonl*")]
    return sorted(path for path in found if path.name.endswith(SUFFIXES) and not path.name.startswith("."))


def _episodes(paths: Sequence[Path], players: dict[str, int], notes: list[str]) -> Iterator[Played]:
    for path in paths:
        try:
            file: EpisodeFile = read(path, strict=False)
        except EpisodeFileError as error:
            notes.append(f"Left out: {error}")
            continue
        notes += [f"Left out: {message}" for message in file.damaged]
        about = json.dumps(file.header.about, sort_keys=True)
        player = players.setdefault(about, len(players))
        for episode in file.episodes:
            yield Played(player, episode, file.header.askers.get(episode.task_index), file.header.items)


def _curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The figures of a training run over its steps; lines cut off by a kill are passed over."""
    curves: dict[str, list[tuple[int, float]]] = {}
    if not path.is_file():
        return curves
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            step = int(record.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
    return {name: sorted(points) for name, points in curves.items()}
