"""Reviews of the three McAuley releases (2014, 2018, 2023), sniffed from their content and read as a stream.

Only who, what, when and how many stars are read. What the dumps add about a review's later life (helpful votes) is
left out, because it was counted at dump time and so looks into the future of every interaction.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.lines import LineStream
from agentrec_env.data.report import DataError, Limits, ReadReport, Tally

TIME_RANGE_MS = (631_152_000_000, 4_102_444_800_000)  # 1990 to 2100
RATING_RANGE = (0.0, 5.0)
_MAX_ID = 128
_EMPTY = msgspec.Raw(b"")


def _record(**names: str) -> type[msgspec.Struct]:
    """The type of one line, its fields under the names that a release gives them.

    Title and text stay raw: they serve only to tell repeated lines from different reviews.
    """
    fields: list[Any] = [
        ("user", str),
        ("item", str),
        ("rating", float | None, None),
        ("time", float | None, None),
        ("order", float | None, None),
        ("title", msgspec.Raw, _EMPTY),
        ("text", msgspec.Raw, _EMPTY),
    ]
    return msgspec.defstruct("Review", fields, rename=names, gc=False)


_2014 = _record(
    user="reviewerID", item="asin", rating="overall", time="unixReviewTime", title="summary", text="reviewText"
)
_2023 = _record(user="user_id", item="parent_asin", time="timestamp")
_2023_BY_ASIN = _record(user="user_id", item="asin", time="timestamp")


@dataclass(frozen=True)
class _Layout:
    struct: type[msgspec.Struct]
    milliseconds: int


LAYOUTS = {
    "amazon-2014-reviews": _Layout(_2014, 1000),
    "amazon-2018-reviews": _Layout(_2014, 1000),
    "amazon-2023-reviews": _Layout(_2023, 1),
    "amazon-2023-reviews-by-asin": _Layout(_2023_BY_ASIN, 1),
}


@dataclass(frozen=True, eq=False)
class Reviews:
    """Interactions as columns in file order, with ids numbered in the order of their first use.

    user, item: int32[N] indices into `user_ids`, `item_ids`; rating: float32[N], nan where null; time: int64[N] in
    milliseconds since the epoch, or None where the file has none; order: int64[N] place in the user's history, or
    None where the file does not state it on every line.
    """

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    time: NDArray[np.int64] | None
    order: NDArray[np.int64] | None
    report: ReadReport


def read_reviews(path: Path | str, format: str, limits: Limits | None = None) -> Reviews:
    """Read a review file of a known format (see `agentrec_env.data.sniff`).

    - 2014 and 2018 times are seconds and become milliseconds; 2023 items are `parent_asin`, on which its metadata joins
      (`asin` only in files that lack it).
    - A line repeated exactly is dropped and counted: the same user, item, rating, time, order, title and text. Two
      different reviews of one item by one user are both kept.
    - Ratings may be null (nan). Where no line has a time there are no times; where some have one, the lines without
      are dropped and counted, because they cannot be placed in a history.
    - A line that is no JSON object of the format, an id that is empty, over 128 characters or holds white space or
      control characters, a rating outside 0..5, a time outside 1990..2100: a bad line, counted with its number.

    Raises `DataError` when more lines are bad than `limits` allow, when nothing is left, or for a damaged file.
    """
    path = Path(path)
    limits = limits or Limits()
    layout = LAYOUTS[format]
    tally = Tally(str(path), limits)
    parser = _Parser(layout, tally)
    for number, block in LineStream(path, limits, tally).blocks():
        parser.feed(number, block)
    if not parser.rows:
        tally.finish(format, 0)
        raise DataError(f"{path}: not one review in {tally.lines:,} lines of format {format}")
    return parser.finish(format)


class _Ids(dict[str, int]):
    """Numbers ids in the order of their first use; an id that is no id gets -1."""

    def __missing__(self, key: str) -> int:
        if not valid_id(key):
            return -1
        self[key] = index = len(self)
        return index


def valid_id(key: str) -> bool:
    """Whether a user or item id is non-empty, at most 128 characters, and free of white space and control characters."""
    return 0 < len(key) <= _MAX_ID and key.isprintable() and " " not in key


class _Parser:
    """Turns blocks of lines into columns. Whole blocks are decoded in C; a block with a bad line, line by line."""

    def __init__(self, layout: _Layout, tally: Tally) -> None:
        self.layout = layout
        self.tally = tally
        self.decoder = msgspec.json.Decoder(layout.struct)
        self.users = _Ids()
        self.items = _Ids()
        self.rows = 0
        self.ordered = True  # until a line without an order is met
        self.columns: dict[str, list[NDArray[Any]]] = {
            name: [] for name in ("user", "item", "rating", "time", "order", "digest")
        }

    def feed(self, number: int, block: bytes) -> None:
        """Parse one block of whole lines whose first has this number."""
        try:
            records = self.decoder.decode_lines(block)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            records = []
        if len(records) == block.count(b"\n"):
            self.tally.lines += len(records)
            self._append(records, range(number, number + len(records)))
            return
        records, numbers = [], []
        for offset, record in self._one_by_one(number, block):
            records.append(record)
            numbers.append(offset)
        if records:
            self._append(records, numbers)

    def _one_by_one(self, number: int, block: bytes) -> Iterator[tuple[int, Any]]:
        for offset, line in enumerate(block.split(b"\n")):
            if not (line := line.strip()):
                continue
            self.tally.lines += 1
            try:
                record = self.decoder.decode(line)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                self.tally.reject(number + offset, reason(error), line)
            else:
                yield number + offset, record

    def _append(self, records: list[Any], numbers: Sequence[int]) -> None:
        users, items, crc = self.users, self.items, zlib.crc32
        rating = np.array([r.rating for r in records], np.float64)
        time = np.array([r.time for r in records], np.float64)
        order = np.array([r.order for r in records], np.float64)
        with np.errstate(over="ignore"):  # an absurd number becomes inf, and the line is rejected below
            time *= self.layout.milliseconds
            stars = rating.astype(np.float32)
        columns: dict[str, NDArray[Any]] = {
            "user": np.array([users[r.user] for r in records], np.int32),
            "item": np.array([items[r.item] for r in records], np.int32),
            "rating": stars,
            "time": time,
            "order": order,
            "digest": np.array([crc(r.text, crc(r.title)) for r in records], np.uint32),
        }
        faults = {
            "user id is empty, too long or holds white space or control characters": columns["user"] < 0,
            "item id is empty, too long or holds white space or control characters": columns["item"] < 0,
            f"rating outside {RATING_RANGE}": _outside(rating, *RATING_RANGE),
            "time outside 1990..2100 (2014 and 2018 files count seconds, 2023 files milliseconds)": _outside(
                time, *TIME_RANGE_MS
            ),
            "order is no small whole number": _outside(order, 0, 2**31) | (order != np.floor(order)) & ~np.isnan(order),
        }
        bad = np.zeros(len(records), bool)
        for fault, where in faults.items():
            for row in np.flatnonzero(where & ~bad):
                self.tally.reject(numbers[row], fault, repr(records[row]))
            bad |= where
        if bad.any():
            columns = {name: column[~bad] for name, column in columns.items()}
        if self.ordered and np.isnan(columns["order"]).any():
            self.ordered = False
            self.columns["order"].clear()
        if not self.ordered:
            del columns["order"]
        for name, column in columns.items():
            self.columns[name].append(column)
        self.rows += len(columns["user"])

    def finish(self, format: str) -> Reviews:
        """The columns joined, repeats and undated lines dropped, ids without interactions gone."""
        joined: dict[str, NDArray[Any]] = {}
        if not self.ordered:
            del self.columns["order"]
        for name in list(self.columns):
            joined[name] = np.concatenate(self.columns.pop(name))
        keep = ~repeated(joined)
        self.tally.drop("exact repeats of an earlier line", int((~keep).sum()))
        dated = ~np.isnan(joined["time"])
        if dated.any():
            self.tally.drop("without a timestamp in a file that has them", int((keep & ~dated).sum()))
            keep &= dated
        if not keep.all():
            joined = {name: column[keep] for name, column in joined.items()}
        user, user_ids = compact(joined["user"], list(self.users))
        item, item_ids = compact(joined["item"], list(self.items))
        time = joined["time"].astype(np.int64) if dated.any() else None
        order = joined["order"].astype(np.int64) if self.ordered else None
        report = self.tally.finish(format, len(user))
        return Reviews(user_ids, item_ids, user, item, joined["rating"], time, order, report)


def _outside(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    return (values < low) | (values > high)


def reason(error: Exception) -> str:
    """Why a line could not be parsed, in one short line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start} of a string)"
    return str(error).split("\n")[0][:160] or type(error).__name__


def repeated(columns: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """bool[N]: the row equals an earlier one in every column (nan equals nan). 16 bytes a row, no Python objects."""
    key = np.zeros(len(next(iter(columns.values()))), np.uint64)
    for column in columns.values():
        bits = np.nan_to_num(column, nan=-1.0) if column.dtype.kind == "f" else column
        key ^= bits.astype(np.int64).view(np.uint64)
        key *= np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    ranked = np.sort(key)
    result = np.zeros(len(key), bool)
    if not (ranked[1:] == ranked[:-1]).any():
        return result
    del ranked
    place = np.argsort(key, kind="stable")
    later, earlier = place[1:], place[:-1]
    same = key[later] == key[earlier]
    later, earlier = later[same], earlier[same]
    equal = np.ones(len(later), bool)
    for column in columns.values():
        a, b = column[later], column[earlier]
        equal &= (a == b) | ((a != a) & (b != b))
    result[later[equal]] = True
    return result


def compact(index: NDArray[np.int32], ids: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Renumber so that every id is used, the order of the ids unchanged."""
    used = np.zeros(len(ids), bool)
    used[index] = True
    if used.all():
        return index, ids
    renumbered = (np.cumsum(used) - 1).astype(np.int32)
    return renumbered[index], [name for name, keep in zip(ids, used, strict=True) if keep]
