"""What is compared, as data: the rows (agents), the tracks (environments) and the sizes of a run.

A track fixes the pool, so that its numbers stand under one protocol sentence; a row is an agent with its arguments and
the seeds it is trained and run with. Nothing here runs anything.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from agentrec_env.registry import did_you_mean

Role = Literal["control", "baseline", "agent"]

METRICS = ("hit@1", "hit@5", "ndcg@5", "ndcg@10", "mrr")
"""Columns of the tables. Lists hold at most ten items, so mrr is cut at ten as well."""
PRIMARY = "ndcg@10"
"""The metric that tables are sorted by and differences are shown in."""

WORLD = ("num_candidates", "negatives", "history_length")
"""Arguments of the environment that decide pools and histories; tracks set the first two."""
RULES = ("tools", "max_calls", "max_turns", "retries", "reward")
"""Arguments of the environment that --env may give, beside history_length."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    agent: str
    """A registered agent, or "module:attribute"."""
    role: Role = "agent"
    """"control" rows bound the scale, "baseline" rows are what an agent has to beat."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the agent; JSON values."""
    seeds: int = 1
    """How many seeds it is run with; each is also its `seed_argument`."""
    seed_argument: str | None = None
    """Constructor argument that takes the seed, for agents that are trained."""
    content: str = ""
    """Stands for what `kwargs` only name, the files of a model, so that results of others are not mixed in."""
    neutral: tuple[str, ...] = ()
    """Arguments that change no result, and so may be others when a run goes on."""
    lane: str = ""
    """Rows of one lane are played one after another by one process: they share a device or a server."""
    num_envs: int = 64
    """Episodes played at once; changes no result."""
    env: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment for this row alone, such as the tools on offer; the pool is the track's."""
    permuted: tuple[str, ...] = ()
    """Tools on offer that answer this row for another task (`benchmarks.permuted`)."""
    tracks: tuple[str, ...] = ()
    """Tracks that it plays; empty: all."""
    stage: str = ""
    """Stage of the experiment whose policy plays it; empty: nothing is trained for it (see `benchmarks.presets`)."""
    folders: Mapping[int, str] = field(default_factory=dict)
    """That policy by seed, for the argument `model`; empty until it is trained."""
    ablation: str = ""
    """Heading of the table of ablations that it stands in; empty: it stands in the main table."""
    reference: str = ""
    """The row that an ablation is compared with."""

    def arguments(self, seed: int) -> dict[str, Any]:
        """Constructor arguments for one seed."""
        return dict(self.kwargs) | ({self.seed_argument: seed} if self.seed_argument else {})

    def at(self, seed: int) -> Row:
        """The row with its policy of a seed, known by what the folder holds; others as they are."""
        if not self.folders:
            return self
        content = f"{self.content} {files_digest(Path(self.folders[seed]))}"
        return replace(self, kwargs={**self.kwargs, "model": self.folders[seed]}, content=content, folders={})

    @property
    def key(self) -> str:
        """Name of the row's results on disk: changes with anything that changes the agent, its own source included."""
        kwargs = {name: value for name, value in self.kwargs.items() if name not in self.neutral}
        content: list[Any] = [self.agent, kwargs, self.seed_argument, _source_digest(self.agent)]
        content += [self.content] if self.content else []
        content += [dict(self.env)] if self.env else []
        content += [list(self.permuted)] if self.permuted else []
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        return f"{slug(self.name)}-{digest}"


@dataclass(frozen=True)
class Track:
    """One environment that all rows play."""

    name: str
    title: str
    env: Mapping[str, Any]
    """Arguments of the environment beside dataset, split and seed; a row's own stand before them."""
    share: float = 1.0
    """Share of the run's tasks that this track plays, for tracks whose tasks cost more."""
    reorders: int = 0
    """How many other orders of the candidates are played, for the permutation robustness."""

    @property
    def pool(self) -> int | None:
        """Pool size; None for the whole catalogue."""
        size = self.env["num_candidates"]
        return None if size == "catalog" else int(size)

    @property
    def world(self) -> dict[str, Any]:
        """Of its arguments, those of `World`: pools and histories."""
        return {name: value for name, value in self.env.items() if name in WORLD}

    @property
    def rules(self) -> dict[str, Any]:
        """The others: what an agent may do, and what it is paid."""
        return {name: value for name, value in self.env.items() if name not in WORLD}


@dataclass(frozen=True)
class Size:
    """How much is played."""

    name: str
    tasks: int | None
    """Test tasks a row and track; None: all of them."""
    reorder_tasks: int
    """Of these, how many are played again in other orders."""
    seeds: int
    """At most this many seeds a row."""
    tracks: tuple[str, ...] = ()
    """Tracks that are played unless others are asked for by name; empty: all."""
    trains: bool = False
    """Whether rows are trained for it, and parts left out of them, without being asked for by name."""


@dataclass(frozen=True)
class Suite:
    """Rows and tracks of a run."""

    rows: tuple[Row, ...]
    tracks: tuple[Track, ...]

    def with_agents(self, sources: Sequence[str]) -> Suite:
        """The suite with one more row for each agent; a name that is a row already is taken once."""
        taken = {row.name for row in self.rows}
        added = [Row(source, source) for source in dict.fromkeys(sources) if source not in taken]
        return self.with_rows(added)

    def with_rows(self, rows: Sequence[Row]) -> Suite:
        """The suite with more rows.

        Raises:
            ValueError: a name that another row has.
        """
        names = [row.name for row in (*self.rows, *rows)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two rows have the name {twice!r}; give each model once")
        return replace(self, rows=(*self.rows, *rows))

    def with_env(self, arguments: Mapping[str, Any]) -> Suite:
        """The suite in environments with these arguments.

        Raises:
            ValueError: One that is unknown, or that dataset, split and track fix.
        """
        allowed = ("history_length", *RULES)
        for name in arguments:
            if name not in allowed:
                hint = "The rest is set by --dataset, --split, --seed and the tracks."
                raise ValueError(did_you_mean("argument for --env", name, allowed, hint))
        if isinstance(arguments.get("tools"), str):
            raise ValueError(f'--env: tools is a list of names; write {{"tools": ["{arguments["tools"]}"]}}')
        return replace(self, tracks=tuple(replace(track, env={**track.env, **arguments}) for track in self.tracks))

    def only(self, names: Sequence[str]) -> Suite:
        """The rows and tracks among `names`; rows (or tracks) stay whole where none of theirs is named.

        Raises ValueError for a name that is neither.
        """
        rows, tracks = [row.name for row in self.rows], [track.name for track in self.tracks]
        for name in names:
            if name not in rows and name not in tracks:
                raise ValueError(did_you_mean("row or track", name, rows + tracks, "See --list."))
        return Suite(
            tuple(row for row in self.rows if row.name in names) or self.rows,
            tuple(track for track in self.tracks if track.name in names) or self.tracks,
        )


SIZES = {
    "quick": Size("quick", tasks=200, reorder_tasks=100, seeds=1, tracks=("pool-20",)),
    "default": Size("default", tasks=1_000, reorder_tasks=200, seeds=3),
    "full": Size("full", tasks=None, reorder_tasks=1_000, seeds=5, trains=True),
}

TRACKS = (
    Track("pool-20", "1 positive and 19 uniform negatives", {"num_candidates": 20, "negatives": "uniform"}, reorders=1),
    Track("pool-100", "1 positive and 99 popular negatives", {"num_candidates": 100, "negatives": "popularity"}, 0.5),
    Track("catalogue", "the whole catalogue", {"num_candidates": "catalog"}, 0.5),
)

ROWS = (
    Row("random", "random", "control", seeds=3),
    Row("identity", "identity", "control"),
    Row("reversed", "reversed", "control"),
    Row("oracle", "oracle", "control"),
    Row("popularity", "popularity", "baseline"),
    Row("bm25", "bm25", "baseline"),
    Row("item_knn", "item_knn", "baseline"),
    Row("ease", "ease", "baseline"),
    Row("sasrec", "sasrec", "baseline", seeds=5, seed_argument="seed"),
    Row("fusion", "fusion", "baseline", seeds=5, seed_argument="seed"),
    Row("scripted", "scripted"),
)

DEFAULT = Suite(ROWS, TRACKS)

TINY = Path(__file__).resolve().parents[1] / "agents" / "llm" / "tiny"
"""The embedded language model."""


def model_rows(models: Sequence[str], arguments: Mapping[str, Any], num_envs: int) -> list[Row]:
    """A row for each local language model: "tiny" (the embedded one), a folder, or a hub id.

    A folder counts as another model when a byte of its files changes; a hub id is trusted to name one model.
    """
    return [
        Row(
            f"llm:{model}",
            "llm",
            kwargs={"model": model, **arguments},
            content=content_of(model),
            neutral=("rows",),
            lane="llm",
            num_envs=num_envs,
        )
        for model in models
    ]


def content_of(model: str) -> str:
    """What results of a model depend on beside its arguments: its files, where they lie here."""
    folder = TINY if model == "tiny" else Path(model)
    return f"{_version('transformers')} {files_digest(folder) if folder.is_dir() else ''}"


def endpoint_rows(url: str, models: Sequence[str], arguments: Mapping[str, Any], num_envs: int) -> list[Row]:
    """A row for each model of an OpenAI-compatible server."""
    return [
        Row(
            f"endpoint:{model}",
            "endpoint",
            kwargs={"url": url, "model": model, **arguments},
            neutral=("key_env", "concurrency", "timeout", "retries", "max_requests", "max_total_tokens"),
            lane="endpoint",
            num_envs=num_envs,
        )
        for model in models
    ]


def slug(name: str) -> str:
    """`name` as a safe folder name; where characters had to go, a hash keeps different names apart."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name).strip(".") or "_"
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@cache
def _source_digest(agent: str) -> str | None:
    """Hash of the file in which a "module:attribute" agent is written, so that its edits are not mixed up."""
    module, colon, _ = agent.partition(":")
    if not colon:
        return None
    try:
        spec = importlib.util.find_spec(module)
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest() if spec and spec.origin else None
    except (ImportError, ValueError, OSError):
        return None


def files_digest(folder: Path) -> str:
    """Hash of the names and contents of a folder's files, hidden ones left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            with path.open("rb") as file:
                digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""
