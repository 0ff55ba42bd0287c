"""Per-task results on disk: blocks of JSON lines, each written whole, so that a run killed at any instant goes on.

A folder holds `settings.json` (what must not change between the runs that share it) and `units/`, one sub-folder for
each dataset, track, row, seed and candidate order. Finished blocks are never rewritten; tables are made from them
alone. Beside them lie whole episodes, for people to read; `benchmarks.runner.KEPT` says of how many blocks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentrec_env.episodes import Header
from agentrec_env.episodes import write as write_episodes
from agentrec_env.types import Episode, StopReason
from benchmarks.suite import slug


class SettingsMismatchError(ValueError):
    """The folder holds results of other settings; the message says which and how to go on."""


class Record(msgspec.Struct, frozen=True):
    """One judged episode."""

    task: int
    user: str
    target: int
    place: int
    """Place of the target in the pool, 0-based; -1 in catalogue mode."""
    ranking: tuple[int, ...]
    rank: int
    """Place of the target in the list, 1 = first; 0 where it is missed."""
    metrics: dict[str, float]
    """As the environment judged it; tables recompute theirs from `rank`."""
    calls: dict[str, int]
    stop: str
    turns: int
    seconds: float
    """Time the agent took."""
    reward: float
    terms: dict[str, float]
    error: str | None = None
    read: int | None = None
    """Tokens that the agent was shown: each once for a local model, as the server counts them for an endpoint; None
    where it counts none."""
    written: int | None = None
    """Tokens that the agent wrote; likewise."""

    @classmethod
    def of(cls, episode: Episode) -> Record:
        """What tables are made from; texts are not among it."""
        calls = Counter(call.name for turn in episode.turns for call in turn.calls)
        pool = list(episode.candidates)
        read, written = _tokens(episode)
        return cls(
            task=episode.task_index,
            user=episode.user_id,
            target=episode.target,
            place=pool.index(episode.target) if episode.target in pool else -1,
            ranking=tuple(episode.ranking),
            rank=episode.rank or 0,
            metrics=dict(episode.metrics),
            calls=dict(sorted(calls.items())),
            stop=str(episode.stop),
            turns=len(episode.turns),
            seconds=sum(turn.seconds for turn in episode.turns),
            reward=episode.reward,
            terms=dict(episode.terms),
            error=episode.error,
            read=read,
            written=written,
        )

    @property
    def answered(self) -> bool:
        """Whether it ended with a valid list."""
        return self.stop == StopReason.ANSWERED


class Block(msgspec.Struct, frozen=True):
    """Some tasks of a unit, played together."""

    tasks: tuple[int, ...]
    seconds: float
    """Wall time of the block, tools and environment included, preparation left out."""
    prepare_seconds: float
    """Time to make and fit the agent, on the first block that a process plays; else 0."""
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Place:
    """Where a unit's blocks lie: dataset, track, row key, seed and candidate order (0 = the fixed pool's)."""

    dataset: str
    track: str
    row: str
    seed: int
    order: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Folder names under `units/`."""
        last = f"seed{self.seed}" + (f"-order{self.order}" if self.order else "")
        return (slug(self.dataset), slug(self.track), self.row, last)


class Folder:
    """The results of one or more runs with the same settings."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Take the folder for a run with these settings, {"run": {…}, "tracks": {name: {…}}}.

        A folder that holds results goes on where the settings agree; tracks that it does not hold yet are added.
        Raises SettingsMismatchError where they differ, and FileExistsError for a folder that holds something else.
        """
        path = self.path / "settings.json"
        held: dict[str, Any] = {"run": settings["run"], "tracks": {}}
        if path.exists():
            held = _read_json(path)
        elif self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(f"{self.path} holds files but no results of this program; give another --out folder")
        differences = [
            f"{scope}{name}: the folder has {old[name]!r}, this run {new.get(name)!r}"
            for scope, old, new in [
                ("", held["run"], settings["run"]),
                *((f"{t} ", held["tracks"].get(t, {}), track) for t, track in settings["tracks"].items()),
            ]
            for name in old
            if old[name] != new.get(name)
        ]
        if differences:
            raise SettingsMismatchError(
                f"{self.path} holds results of other settings:\n  "
                + "\n  ".join(differences)
                + "\nRun with the folder's settings to go on, or give another --out folder to start anew."
            )
        tracks = held["tracks"] | dict(settings["tracks"])
        write_text(path, json.dumps({"run": held["run"], "tracks": tracks}, indent=2) + "\n")

    def finished(self, place: Place, blocks: Sequence[Sequence[int]]) -> list[Block | None]:
        """The unit's blocks in order, None where one is missing, damaged or of other tasks."""
        return [self._read(self._path(place, i), tuple(tasks)) for i, tasks in enumerate(blocks)]

    def write(self, place: Place, number: int, block: Block) -> None:
        """Keep a finished block."""
        header = {"tasks": block.tasks, "seconds": block.seconds, "prepare_seconds": block.prepare_seconds}
        lines: Iterable[Any] = (header, *block.records)
        write_text(self._path(place, number), "".join(msgspec.json.encode(line).decode() + "\n" for line in lines))

    def keep(self, place: Place, number: int, episodes: Sequence[Episode], header: Header) -> None:
        """Keep the whole episodes of a block beside it."""
        write_episodes(self.episodes(place, number), episodes, header)

    def episodes(self, place: Place, number: int) -> Path:
        """Where the whole episodes of a block are kept, if they are."""
        return self._path(place, number).with_name(f"episodes-{number:04}.jsonl.gz")

    def forget(self, place: Place) -> None:
        """Delete the blocks of a unit."""
        shutil.rmtree(self.path.joinpath("units", *place.parts), ignore_errors=True)

    def _path(self, place: Place, number: int) -> Path:
        return self.path.joinpath("units", *place.parts, f"block-{number:04}.jsonl")

    def _read(self, path: Path, tasks: tuple[int, ...]) -> Block | None:
        try:
            first, *lines = path.read_bytes().splitlines()
            header = msgspec.json.decode(first)
            records = tuple(msgspec.json.decode(line, type=Record) for line in lines)
            block = Block(tuple(header["tasks"]), header["seconds"], header["prepare_seconds"], records)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        complete = block.tasks == tasks == tuple(record.task for record in records)
        return block if complete else None


def _tokens(episode: Episode) -> tuple[int | None, int | None]:
    """Tokens read and written, as the agent's record tells."""
    transcript = episode.info.get("transcript")
    if transcript is not None:
        written = int(transcript.mask.sum())
        return len(transcript) - written, written
    read = episode.info.get("prompt_tokens")
    return (int(read), int(episode.info.get("completion_tokens", 0))) if read else (None, None)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(held, dict) and {"run", "tracks"} <= held.keys():
            return held
    except ValueError:
        pass
    raise SettingsMismatchError(f"{path} is damaged; give another --out folder, or delete this one")
