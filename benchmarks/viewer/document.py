"""The page as one HTML document: its sources inlined, the episodes embedded as data, nothing loaded from anywhere.

What was played is untrusted text. It is embedded as JSON in a script element that no browser runs, with every "<"
escaped, and the texts beside it as packed base64; the page's own script puts them into the document as text nodes
alone. The content security policy allows this page's one script and one style sheet by their hashes, and no request.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from agentrec_env.types import Episode
from benchmarks.viewer.collection import Collection, Played, Player

SCRIPTS = ("data.js", "filters.js", "list.js", "episode.js", "charts.js", "app.js")
CHUNK = 200_000
"""Characters of texts that are packed together: small enough to open at once, large enough to pack well."""

_HOST = """
html, body { margin: 0; height: 100% }
body { background: #fbfaf8 }
@media (prefers-color-scheme: dark) { body { background: #141619 } }
#agentrec-viewer { height: 100% }
#agentrec-viewer > noscript { padding: 2rem; display: block }
"""


@dataclass(frozen=True)
class Embedding:
    """The viewer as part of a document: its markup, and the hashes that the document's policy has to allow."""

    markup: str
    scripts: tuple[str, ...]
    styles: tuple[str, ...]


def document(collection: Collection) -> str:
    """The whole page."""
    inner = embed(collection, alone=True)
    policy = policy_of(inner.scripts, (digest(_HOST), *inner.styles))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(collection.title)} · episodes</title>\n<style>{_HOST}</style></head>\n<body>\n"
        f"{inner.markup}\n</body></html>\n"
    )


def embed(collection: Collection, alone: bool = False) -> Embedding:
    """The viewer for a place in another document; its styles stay in its own shadow tree.

    Args:
        collection: What is shown.
        alone: Whether the page is the viewer's own: it then takes all keys, and keeps what is open in the address.
    """
    style, markup, script = _source("viewer.css"), _source("viewer.html"), _script()
    index, chunks = _data(collection)
    parts = [
        f'<div id="agentrec-viewer"{" class=alone" if alone else ""}>',
        f'<template shadowrootmode="open"><style>{style}</style>{markup}</template>',
        "<noscript>The episodes are drawn by a script of this page, which this browser does not run.</noscript></div>",
        *(f'<script type="text/plain" id="agentrec-chunk-{i}">{chunk}</script>' for i, chunk in enumerate(chunks)),
        f'<script type="application/json" id="agentrec-data">{index}</script>',
        f"<script>{script}</script>",
    ]
    return Embedding("\n".join(parts), (digest(script),), (digest(style),))


def policy_of(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A content security policy that allows scripts and styles of these hashes, and nothing else."""
    allowed = {"script-src": scripts, "style-src": styles}
    parts = [" ".join([name, *(f"'{value}'" for value in values)]) for name, values in allowed.items() if values]
    return "; ".join(["default-src 'none'", *parts, "base-uri 'none'", "form-action 'none'"])


def digest(text: str) -> str:
    """The hash of an inline script or style sheet, as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _source(name: str) -> str:
    return (files("benchmarks.viewer") / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return "(() => {\n" + "\n".join(map(_source, SCRIPTS)) + "})();\n"


def _data(collection: Collection) -> tuple[str, list[str]]:
    """The index as JSON that is safe in HTML, and the packed texts."""
    tasks, tools, sets, stops, players = _Table(), _Table(), _Table(), _Table(), _players(collection.players)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("player", "task", "reward", "rank", "stop", "calls", "seconds", "toolset", "tokens")
    }
    chunks: list[str] = []
    starts: list[int] = []
    open_chunk = _Chunk()
    for number, one in enumerate(collection.played):
        episode = one.episode
        used = sorted({tools[call.name] for turn in episode.turns for call in turn.calls})
        for name, value in {
            "player": one.player,
            "task": tasks[_task(one, players[one.player]["place"])],
            "reward": round(episode.reward, 6) if math.isfinite(episode.reward) else None,
            "rank": episode.rank or 0,
            "stop": stops[str(episode.stop)],
            "calls": episode.calls,
            "seconds": _seconds(episode),
            "toolset": sets[tuple(used)],
            "tokens": episode.info.get("tokens") if isinstance(episode.info.get("tokens"), int) else None,
        }.items():
            columns[name].append(value)
        if not starts or open_chunk.size >= CHUNK:
            if starts:
                chunks.append(open_chunk.packed())
            open_chunk = _Chunk()
            starts.append(number)
        open_chunk.add(one)
    if starts:
        chunks.append(open_chunk.packed())
    names = ("split", "index", "user", "known", "kind", "positive")
    index = {
        "title": collection.title,
        "notes": list(collection.notes),
        "players": players,
        "tasks": [dict(zip(names, task[1:], strict=True)) for task in tasks.values],
        "tools": tools.values,
        "toolsets": [list(tools) for tools in sets.values],
        "stops": stops.values,
        "columns": columns,
        "starts": starts,
        "curves": collection.curves,
    }
    return json.dumps(index, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"), chunks


class _Table:
    """Values that occur again and again, each kept once: value -> its number."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def __getitem__(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def values(self) -> list[Any]:
        return list(self._numbers)


class _Chunk:
    """Texts of neighbouring episodes; those who played the same task share its prompt."""

    def __init__(self) -> None:
        self._prompts = _Table()
        self._names: dict[str, str] = {}
        self._episodes: list[Any] = []
        self.size = 0

    def add(self, one: Played) -> None:
        episode = one.episode
        before = len(self._prompts)
        number = self._prompts[episode.prompt]
        if number == before:
            self.size += len(episode.prompt)
        for item in (*episode.ranking, episode.target):
            if item in one.names:
                self._names[str(item)] = one.names[item]
        turns = [
            [turn.action, [[call.name, _pretty(call.arguments)] for call in turn.calls], turn.observation, turn.seconds]
            for turn in episode.turns
        ]
        self.size += sum(len(turn.action) + len(turn.observation) for turn in episode.turns) + 500
        self._episodes.append(
            [
                number,
                turns,
                list(episode.candidates),
                list(episode.ranking),
                episode.target,
                [[name, _shown(value)] for name, value in episode.terms.items()],
                [[name, _shown(value)] for name, value in episode.metrics.items()],
                episode.error,
                _pretty(episode.info),
                episode.seed,
            ]
        )

    def packed(self) -> str:
        record = {"prompts": self._prompts.values, "names": self._names, "episodes": self._episodes}
        text = json.dumps(record, separators=(",", ":")).encode()
        return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()


def _players(players: tuple[Player, ...]) -> list[dict[str, Any]]:
    """Players with the shortest label that tells them apart."""
    places, labels = _Table(), [player.name for player in players]
    known = [player.about for player in players]

    def differing(name: str) -> bool:
        return len({repr(about.get(name)) for about in known}) > 1

    several = len({player.name for player in players}) > 1
    for number, about in enumerate(known):
        if "step" in about and differing("step"):
            labels[number] = f"{labels[number]}, step {about['step']}" if several else f"step {about['step']}"
        if any(about != other and _without_seed(about) == _without_seed(other) for other in known):
            labels[number] += f", seed {about.get('seed')}"
    where = [
        " · ".join(str(about[name]) for name in ("dataset", "track") if name in about and differing(name))
        for about in known
    ]
    return [
        {
            "label": label,
            "agent": player.name if differing("agent") or "step" not in player.about else None,
            "step": player.about.get("step"),
            "track": player.about.get("track"),
            "dataset": player.about.get("dataset"),
            "seed": player.about.get("seed"),
            "place": places[player.place],
            "where": found,
            "note": player.about.get("role", ""),
        }
        for label, player, found in zip(labels, players, where, strict=True)
    ]


def _without_seed(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name != "seed"}


def _task(one: Played, place: int) -> tuple[Any, ...]:
    episode, asker = one.episode, one.asker
    positive = one.names.get(episode.target, f"item {episode.target}")
    known, kind = (asker.known, asker.kind) if asker else (None, None)
    return (place, episode.task_split, episode.task_index, episode.user_id, known, kind, positive)


def _seconds(episode: Episode) -> float:
    total = sum(turn.seconds for turn in episode.turns)
    return round(total, 4) if math.isfinite(total) else 0.0


def _pretty(value: Mapping[str, Any]) -> str:
    """JSON for people; numbers that JSON does not know become their names."""
    return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return _shown(value) if isinstance(value, float) else value


def _shown(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
