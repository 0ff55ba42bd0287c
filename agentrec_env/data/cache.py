"""What was read once, kept in columns: a second load of the same bytes takes a fraction of the time.

An entry is a folder named by the hash of the source files' content and of the reader's version, so an edited source
or a changed reader never meets an old entry. It appears whole by one rename; each of its files carries a checksum,
and an entry that fails it is thrown away and built again.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.report import SourceReport

READER_VERSION = 2
"""Raise it whenever a reader gives anything else for the same bytes."""

_log = logging.getLogger(__name__)
_TABLES = ("interactions", "users", "items")


class _Manifest(msgspec.Struct):
    name: str
    digests: dict[str, str]
    report: SourceReport


def cache_dir() -> Path:
    """The folder for everything that is kept between runs: `AGENTREC_CACHE`, else the platform's cache folder."""
    if given := os.environ.get("AGENTREC_CACHE"):
        return Path(given).expanduser()
    import pooch

    return Path(pooch.os_cache("agentrec-env"))


def content_key(files: Sequence[Path], settings: str) -> str:
    """The name of an entry: a hash of the files' bytes, the settings that steer the reading, and the reader version."""
    digest = hashlib.blake2b(f"{READER_VERSION}/{settings}".encode(), digest_size=16)
    for path in files:
        digest.update(bytes.fromhex(_digest(path)))
    return digest.hexdigest()


def load_entry(key: str) -> tuple[Dataset, SourceReport] | None:
    """The dataset and report kept under `key`; None where there are none, or where they are damaged."""
    folder = _entry(key)
    if not folder.is_dir():
        return None
    import polars as pl

    try:
        manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=_Manifest)
        frames = {}
        for table in _TABLES:
            data = (folder / f"{table}.arrow").read_bytes()
            if hashlib.blake2b(data, digest_size=16).hexdigest() != manifest.digests[table]:
                raise ValueError(f"{table}.arrow is damaged")
            frames[table] = pl.read_ipc(io.BytesIO(data))
        return _dataset(manifest.name, frames), manifest.report
    except (OSError, ValueError, KeyError, msgspec.MsgspecError, pl.exceptions.PolarsError) as error:
        _log.warning("cache entry %s is unusable (%s) and will be built again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def save_entry(key: str, dataset: Dataset, report: SourceReport) -> None:
    """Keep a dataset. A cache that cannot be written is no error: the next load reads the source again."""
    folder = _entry(key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", dir=folder.parent))
        try:
            digests = {}
            for table, frame in _frames(dataset).items():
                path = temporary / f"{table}.arrow"
                frame.write_ipc(path, compression="lz4")
                digests[table] = _digest(path)
            manifest = _Manifest(dataset.name, digests, report)
            (temporary / "manifest.json").write_bytes(msgspec.json.encode(manifest))
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            _log.warning(
                "the cache folder %s cannot be written (%s); set AGENTREC_CACHE to one that can", folder, error
            )


def _entry(key: str) -> Path:
    return cache_dir() / "datasets" / key


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for left in folder.glob(".*-*"):
        owner = left.name[1:].split("-")[0]
        if owner.isdigit() and not is_alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _frames(dataset: Dataset) -> dict[str, Any]:
    import polars as pl

    interactions: dict[str, Any] = {"user": dataset.user, "item": dataset.item, "rating": dataset.rating}
    if dataset.time is not None:
        interactions["time"] = dataset.time
    items = dataset.items
    text, paths = pl.String, pl.List(pl.String)
    return {
        "interactions": pl.DataFrame(interactions),
        "users": pl.DataFrame({"id": pl.Series(list(dataset.user_ids), dtype=text)}),
        "items": pl.DataFrame(
            {
                "id": pl.Series(list(items.ids), dtype=text),
                "title": pl.Series(list(items.titles), dtype=text),
                "brand": pl.Series(list(items.brands), dtype=text),
                "category": pl.Series([list(path) for path in items.categories], dtype=paths),
                "price": pl.Series(items.prices, dtype=pl.Float64),
                "description": pl.Series(list(items.descriptions), dtype=text),
            }
        ),
    }


def _dataset(name: str, frames: dict[str, Any]) -> Dataset:
    table, items = frames["interactions"], frames["items"]
    return Dataset.build(
        name,
        Items(
            items["id"].to_list(),
            items["title"].to_list(),
            items["brand"].to_list(),
            [tuple(path) for path in items["category"].to_list()],
            np.array(items["price"].to_numpy()),
            items["description"].to_list(),
        ),
        frames["users"]["id"].to_list(),
        table["user"].to_numpy(),
        table["item"].to_numpy(),
        table["rating"].to_numpy(),
        table["time"].to_numpy() if "time" in table.columns else None,
    )
