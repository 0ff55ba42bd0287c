"""Episodes on disk, without loss: JSON lines that say who played what, and hold each episode whole.

The first line is a header: format, version, what was played by whom, and what a reader of the episodes wants to know
beside them (names of the ranked items, what kind of user asked). Each other line is one `Episode`. A file is written
whole or not at all; one that was damaged later is read as far as it goes, and each bad line is reported by its number.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, cast

from agentrec_env.data.world import World
from agentrec_env.prompts import item_name
from agentrec_env.types import Episode, StopReason, ToolCall, Turn

FORMAT = "agentrec-episodes"
VERSION = 1
SUFFIXES = (".jsonl", ".jsonl.gz")


class EpisodeFileError(ValueError):
    """A file that is no file of episodes, or a line of one that is damaged; the message says which."""


@dataclass(frozen=True)
class Asker:
    """What kind of user asked a task."""

    known: int
    """Interactions of the user before the task."""
    kind: str | None = None
    """What moves the user most, where the world tells: "taste", "brand", "crowd", "complement" or "style"."""


@dataclass(frozen=True)
class Header:
    """What a file of episodes says of itself."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """Who played what, as JSON values: agent, dataset, track, seed, step, …"""
    items: Mapping[int, str] = field(default_factory=dict)
    """Item index -> name, of the positives and of all items that were ranked."""
    askers: Mapping[int, Asker] = field(default_factory=dict)
    """Task index -> who asked."""


@dataclass(frozen=True)
class EpisodeFile:
    """What a file holds."""

    header: Header
    episodes: tuple[Episode, ...]
    damaged: tuple[str, ...] = ()
    """One message for each line that could not be read."""


def describe(episodes: Sequence[Episode], about: Mapping[str, Any], world: World | None) -> Header:
    """The header for episodes of one world; without one it holds neither names nor users."""
    if world is None:
        return Header(about)
    items, data = world.dataset.items, world.dataset
    shown = sorted({item for episode in episodes for item in (*episode.ranking, episode.target)})
    tells = getattr(data.choice_model, "mover", None)
    askers = {}
    for episode in episodes:
        user, position = (int(x) for x in world.positions(episode.task_split)[episode.task_index])
        kind = tells(int(data.indptr[user]) + position) if tells else None
        askers[episode.task_index] = Asker(position, kind)
    return Header(about, {item: item_name(items, item) for item in shown}, askers)


def storable(info: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an episode's `info` that JSON holds exactly; a token record, say, is not among them."""
    return {name: value for name, value in info.items() if type(name) is str and _is_exact(value)}


def write(path: Path, episodes: Iterable[Episode], header: Header | None = None) -> None:
    """Write a file of episodes, whole or not at all; compressed where the name ends in .gz.

    All is kept to the bit but those entries of `info` that JSON cannot hold (see `storable`), whose names are noted.
    Numbers that are not finite are written NaN and Infinity, as Python's `json` reads them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", 6, fileobj=file, mtime=0) as packed:  # equal episodes, equal bytes
                    packed.writelines(_lines(episodes, header or Header()))
            else:
                file.writelines(_lines(episodes, header or Header()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, strict: bool = True) -> EpisodeFile:
    """Read a file of episodes.

    Args:
        path: A file that `write` made.
        strict: Raise where a line is damaged; else go on, and report it in `damaged`.

    Raises:
        EpisodeFileError: No file of episodes, one of a later version, or (strict) a damaged line.
        OSError: It cannot be opened.
    """
    episodes: list[Episode] = []
    damaged: list[str] = []
    header: Header | None = None
    with path.open("rb") as file:
        for number, line in _numbered(file, path.name.endswith(".gz")):
            try:
                if isinstance(line, Exception):
                    raise line
                if number == 1:
                    header = _header(line)
                elif line.strip():
                    episodes.append(decode(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError, OSError) as error:
                message = f"{path}, line {number}: {_reason(error)}"
                if number == 1 or strict:
                    raise EpisodeFileError(message) from error
                damaged.append(message)
    if header is None:
        raise EpisodeFileError(f"{path} is empty; a file of episodes begins with its header")
    return EpisodeFile(header, tuple(episodes), tuple(damaged))


def encode(episode: Episode) -> str:
    """An episode as one line of JSON, without the line break."""
    info = storable(episode.info)
    record: dict[str, Any] = {entry.name: getattr(episode, entry.name) for entry in fields(Episode)}
    record["turns"] = [
        {
            "action": turn.action,
            "calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.calls],
            "observation": turn.observation,
            "seconds": turn.seconds,
        }
        for turn in episode.turns
    ]
    record |= {"terms": dict(episode.terms), "metrics": dict(episode.metrics), "info": info, "stop": str(episode.stop)}
    if len(info) < len(episode.info):
        record["left_out"] = sorted(str(name) for name in episode.info if name not in info)
    return json.dumps(record, separators=(",", ":"))


def decode(line: str | bytes) -> Episode:
    """The episode of a line.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It is no episode.
    """
    record = json.loads(line)
    record.pop("left_out", None)
    turns = tuple(
        Turn(
            _text(turn["action"]),
            tuple(ToolCall(_text(call["name"]), dict(call["arguments"])) for call in turn["calls"]),
            _text(turn["observation"]),
            turn["seconds"],
        )
        for turn in record.pop("turns")
    )
    for name in ("candidates", "ranking"):
        record[name] = tuple(record[name])
    return Episode(**{**record, "turns": turns, "stop": StopReason(record["stop"])})


def _lines(episodes: Iterable[Episode], header: Header) -> Iterator[bytes]:
    first = {
        "format": FORMAT,
        "version": VERSION,
        "about": dict(header.about),
        "items": {str(item): name for item, name in header.items.items()},
        "askers": {str(task): asdict(asker) for task, asker in header.askers.items()},
    }
    yield json.dumps(first, separators=(",", ":")).encode() + b"\n"
    for episode in episodes:
        yield encode(episode).encode() + b"\n"


def _numbered(file: BinaryIO, packed: bool) -> Iterator[tuple[int, bytes | Exception]]:
    """Lines with their numbers; where the compressed stream ends too early or is broken, the error in their place."""
    source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
    number = 0
    try:
        for line in source:
            number += 1
            yield number, line
    except (EOFError, OSError, zlib.error) as error:
        yield (
            number + 1,
            EOFError(f"the compressed data end too early or are broken ({error}); nothing after it is read"),
        )


def _header(line: bytes) -> Header:
    record = json.loads(line)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f'no file of episodes: the first line must be its header, {{"format": "{FORMAT}", …}}')
    if record["version"] != VERSION:
        raise ValueError(f"version {record['version']!r} of the format; this program reads version {VERSION}")
    return Header(
        record["about"],
        {int(item): _text(name) for item, name in record["items"].items()},
        {int(task): Asker(**asker) for task, asker in record["askers"].items()},
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is needed; got {value!r:.50}")
    return value


def _is_exact(value: object) -> bool:
    """Whether a value comes back from JSON as it was."""
    rest = [value]
    while rest:
        part = rest.pop()
        if type(part) is dict:
            if not all(type(key) is str for key in part):
                return False
            rest += part.values()
        elif type(part) is list:
            rest += part
        elif part is not None and type(part) not in (str, int, float, bool):
            return False
    return True


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
