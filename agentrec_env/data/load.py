"""From the name of a source to a `Dataset`: find the files, tell their formats, read, join, and keep the result.

A source is a registered name such as "synthetic", "module:attribute" of a dataset of one's own, a category that was
downloaded, a folder with reviews and metadata, or one file.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from agentrec_env.data.amazon import Reviews, read_reviews
from agentrec_env.data.cache import cache_dir, content_key, load_entry, save_entry
from agentrec_env.data.categories import CATEGORIES, category_folder, find_category
from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.metadata import Metadata, read_metadata
from agentrec_env.data.report import DataError, Limits, SourceReport
from agentrec_env.data.sniff import sniff
from agentrec_env.data.table import is_items_table, read_items_table, read_table
from agentrec_env.registry import Registry, UnknownNameError, did_you_mean

_log = logging.getLogger(__name__)
_TABLES = ("csv", "parquet")
_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

DATASETS: Registry[Dataset | Callable[[], Dataset]] = Registry("dataset")
"""Datasets that are made, not read: each a `Dataset`, or a function that makes one."""


@DATASETS.register("synthetic")
def synthetic() -> Dataset:
    """The embedded world at its default size and seed, whose true choice model is known."""
    from agentrec_env.data.synthetic import make_world

    return make_world().dataset


@dataclass(frozen=True)
class Files:
    """The files of one source, with their formats (`sniff.FORMATS`)."""

    name: str
    reviews: Path
    reviews_format: str
    metadata: Path | None = None
    metadata_format: str = ""


def load(
    source: str | Path,
    *,
    k_core: int = 0,
    drop_repeats: bool = True,
    metadata: str | Path | None = None,
    cache: bool = True,
    limits: Limits | None = None,
) -> Dataset:
    """A dataset from a source.

    Args:
        source: a name in `DATASETS`, such as "synthetic"; "module:attribute" of a `Dataset` or of a function that makes
            one; a downloaded category ("Gift_Cards", or "2018/Gift_Cards" where several editions lie in the cache); a
            folder that holds one review file and at most one metadata file; a review file, whose metadata is then
            looked for beside it; a CSV or Parquet file.
        k_core: keep only users and items with at least this many interactions, repeatedly; 0, the default, keeps all
            (the 5-core files and the folders that are ready to load have been cut already).
        drop_repeats: keep each user's first interaction with an item only, so that no target was seen before. Done
            before the k-core filter.
        metadata: a metadata file or items table, where it is not found by itself.
        cache: keep what was read under `cache_dir()` and take it from there next time, keyed by the files' content.
        limits: bounds on the input.

    Items are those that were reviewed; an item without metadata has an id and nothing else. What was left out is
    logged (a warning where lines were bad); `read` returns it.

    Raises `DataError` for an unknown or missing source (with the nearest name), or files that cannot be used.
    """
    if is_made(source):
        dataset = _make(str(source))
    else:
        dataset, _ = read(source, metadata=metadata, cache=cache, limits=limits)
    if drop_repeats:
        dataset = dataset.drop_repeats()
    if k_core:
        try:
            dataset = dataset.k_core(k_core)
        except ValueError as error:
            raise DataError(str(error)) from None
    return dataset


def is_made(source: str | Path) -> bool:
    """Whether a source names a dataset that is made, a registered one or "module:attribute", and no file."""
    name = str(source)
    return name in DATASETS or (bool(_ATTRIBUTE.fullmatch(name)) and not Path(name).exists())


def _make(name: str) -> Dataset:
    try:
        thing = DATASETS.get(name)
    except UnknownNameError as error:
        raise DataError(str(error)) from error
    made: object = thing() if callable(thing) else thing
    if not isinstance(made, Dataset):
        given = f"returned a {type(made).__name__}" if callable(thing) else f"is a {type(made).__name__}"
        raise DataError(
            f"dataset {name!r} {given}; it must be an agentrec_env.data.dataset.Dataset, or a function without "
            "arguments that returns one (Dataset.build makes it from columns)"
        )
    return made


def read(
    source: str | Path, *, metadata: str | Path | None = None, cache: bool = True, limits: Limits | None = None
) -> tuple[Dataset, SourceReport]:
    """All interactions of a source on disk, repeats included, and the report of what was left out and why."""
    files = resolve(source, metadata)
    limits = limits or Limits()
    key = ""
    if cache:
        paths = [files.reviews] + ([files.metadata] if files.metadata else [])
        key = content_key(paths, f"{files.name}/{files.reviews_format}/{files.metadata_format}/{limits}")
        if (kept := load_entry(key)) is not None:
            return kept[0], _at(kept[1], files)
    if files.reviews_format in _TABLES:
        reviews = read_table(files.reviews, files.reviews_format, limits)
    else:
        reviews = read_reviews(files.reviews, files.reviews_format, limits)
    described = _read_metadata(files, reviews, limits)
    dataset, report = _join(files.name, reviews, described)
    bad = report.reviews.bad + (report.metadata.bad if report.metadata else 0)
    _log.log(logging.WARNING if bad else logging.INFO, "%s", report.summary())
    if cache:
        save_entry(key, dataset, report)
    return dataset, report


def _at(report: SourceReport, files: Files) -> SourceReport:
    """The kept report under today's paths: the cache knows content, not places."""
    metadata = replace(report.metadata, source=str(files.metadata)) if report.metadata else None
    return replace(report, reviews=replace(report.reviews, source=str(files.reviews)), metadata=metadata)


def _read_metadata(files: Files, reviews: Reviews, limits: Limits) -> Metadata | None:
    if files.metadata is None:
        return None
    keep = frozenset(reviews.item_ids)
    if files.metadata_format in _TABLES:
        return read_items_table(files.metadata, files.metadata_format, keep, limits)
    return read_metadata(files.metadata, files.metadata_format, keep, limits)


def _join(name: str, reviews: Reviews, described: Metadata | None) -> tuple[Dataset, SourceReport]:
    ids = reviews.item_ids
    report = SourceReport(reviews.report)
    if described is None:
        items = Items.bare(ids)
    else:
        place = {item: row for row, item in enumerate(described.ids)}
        rows = [place.get(item, -1) for item in ids]
        prices = np.append(described.prices, np.nan)
        items = Items(
            ids,
            [described.titles[row] if row >= 0 else None for row in rows],
            [described.brands[row] if row >= 0 else None for row in rows],
            [described.categories[row] if row >= 0 else () for row in rows],
            prices[rows],
            [described.descriptions[row] if row >= 0 else "" for row in rows],
        )
        report = SourceReport(reviews.report, described.report, rows.count(-1))
    # Files are often in order of time, and so are their first uses; an index must not tell which item came later.
    shuffled = sorted(range(len(ids)), key=lambda item: hashlib.blake2b(ids[item].encode(), digest_size=8).digest())
    order = np.array(shuffled, np.int64)
    place_of = np.empty(len(ids), np.int64)
    place_of[order] = np.arange(len(ids))
    columns = (reviews.user, place_of[reviews.item], reviews.rating, reviews.time, reviews.order)
    return Dataset.build(name, items.take(order), reviews.user_ids, *columns), report


Stamp: TypeAlias = tuple[tuple[str, int, int], ...]
"""Path, time of change (ns) and size of each file of a source."""


def stamp(source: str | Path) -> Stamp:
    """What tells in an instant whether the files of a source have changed; () for what is made, not read."""
    if is_made(source):
        return ()
    files = resolve(source)
    paths = [path.resolve() for path in (files.reviews, files.metadata) if path is not None]
    return tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths)


def resolve(source: str | Path, metadata: str | Path | None = None) -> Files:
    """The files of a source, without reading them beyond what tells their formats."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = _in_folder(path)
    elif path.is_file():
        files = _of_file(path)
    else:
        folder = _downloaded(str(source)) if isinstance(source, str) else None
        if folder is None:
            raise DataError(_no_such_source(str(source), path))
        files = replace(_in_folder(folder), name=folder.name)
    if metadata is not None:
        extra = Path(metadata).expanduser()
        files = replace(files, metadata=extra, metadata_format=_format_of_items(extra))
    return files


def _kind(path: Path) -> tuple[str, bool]:
    """A file's format, and whether it describes items."""
    format = sniff(path)
    return format, format.endswith("-metadata") or (format in _TABLES and is_items_table(path, format))


def _format_of_items(path: Path) -> str:
    format, describes = _kind(path)
    if not describes:
        raise DataError(f"{path} holds interactions ({format}), not items")
    return format


def _of_file(path: Path) -> Files:
    format, describes = _kind(path)
    if describes:
        raise DataError(f"{path} describes items ({format}). Give the review file or the folder that holds both.")
    category = _category_of(path)
    for sibling in sorted(path.parent.iterdir()):
        if sibling != path and sibling.is_file() and _is_metadata_of(sibling, category):
            return Files(category, path, format, sibling, _format_of_items(sibling))
    return Files(category, path, format)


def _category_of(path: Path) -> str:
    """ "Gift_Cards" from Gift_Cards_5.json.gz, reviews_Gift_Cards_5.json.gz or Gift_Cards.jsonl.gz."""
    stem = re.sub(r"(\.(jsonl?|csv|tsv|txt|parquet|gz))+$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"_5(\.head\d+)?$", "", stem.removeprefix("reviews_")) or path.name


def _is_metadata_of(path: Path, category: str) -> bool:
    stem = re.sub(r"(\.(jsonl?|csv|tsv|txt|parquet|gz))+$", "", path.name, flags=re.IGNORECASE)
    return stem == f"meta_{category}" or (stem in ("meta", "items") and category in ("reviews", "interactions"))


def _in_folder(folder: Path) -> Files:
    reviews: list[tuple[Path, str]] = []
    items: list[tuple[Path, str]] = []
    unknown: list[str] = []
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or not _DATA_NAME.search(path.name):
            continue
        try:
            format, describes = _kind(path)
        except DataError as error:
            unknown.append(str(error).split("\n")[0])
            continue
        (items if describes else reviews).append((path, format))
    if len(reviews) == 1 and len(items) <= 1:
        return Files(folder.resolve().name, *reviews[0], *(items[0] if items else ()))
    if not reviews:
        found = f" Found: {'; '.join(unknown)}" if unknown else ""
        raise DataError(
            f"{folder} holds no review file (a .json, .jsonl, .csv or .parquet file, gzipped or plain).{found}"
        )
    names = ", ".join(path.name for path, _ in (*reviews, *items))
    raise DataError(
        f"{folder} holds {len(reviews)} review files and {len(items)} metadata files ({names}); it must hold one review"
        f" file and at most one metadata file. Give the path of one review file, such as {reviews[0][0]}."
    )


_DATA_NAME = re.compile(r"\.(jsonl?|csv|tsv|parquet)(\.gz)?$", re.IGNORECASE)


def _downloaded(source: str) -> Path | None:
    """The cache folder of a category, its newest edition first; None where `source` names no downloaded one."""
    edition, _, category = source.rpartition("/")
    for year in (edition,) if edition else sorted(CATEGORIES, reverse=True):
        name = find_category(category, year) if year in CATEGORIES else None
        if name is not None and category_folder(year, name).is_dir():
            return category_folder(year, name)
    return None


def _no_such_source(source: str, path: Path) -> str:
    edition, _, category = source.rpartition("/")
    known = [year for year in CATEGORIES if edition in ("", year) and find_category(category, year)]
    if known:
        name = find_category(category, max(known))
        return (
            f"the category {name} has not been downloaded to {cache_dir()}. Run:"
            f" python -m agentrec_env.data download {name} --edition {max(known)}"
        )
    if edition or path.suffix:
        near = path.parent
        beside = [other.name for other in near.iterdir()] if near.is_dir() else []
        if not beside:
            return f"no such file or folder: {source}"
        return did_you_mean("file or folder", path.name, beside[:50], f"(looked in {near})")
    present = sorted(folder.name for folder in (cache_dir() / "downloads").glob("*/*") if folder.is_dir())
    return did_you_mean(
        "dataset",
        source,
        [*DATASETS.names(), *present, *sorted(set().union(*CATEGORIES.values()) - set(present))],
        "Or give the path of a folder with a review and a metadata file, of a review file, or of a CSV or Parquet; or "
        '"module:attribute" of a dataset of your own.',
    )
