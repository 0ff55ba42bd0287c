"""Reviews of the three McAuley releases (2014, 2018, 2023), sniffed from their content and read as a stream.

Only who, what, when and how many stars are read. What the dumps add about a review's later life (helpful votes) is
left out, because it was counted at dump time and so looks into the future of every interaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from agentrec_env.data.lines import LineStream
from agentrec_env.data.report import DataError, Limits, ReadReport, Tally

TIME_RANGE_MS = (631_152_000_000, 4_102_444_800_000)  # 1990 to 2100
RATING_RANGE = (0.0, 5.0)
_MAX_ID = 128
_USER, _ITEM, _RATING, _TIME, _ORDER = map(attrgetter, ("user", "item", "rating", "time", "order"))


def _record(**names: str) -> type[msgspec.Struct]:
    """The type of one line, its fields under the names that a release gives them; the rest is skipped unparsed."""
    fields: list[Any] = [
        ("user", str),
        ("item", str),
        ("rating", float | None, None),
        ("time", float | None, None),
        ("order", float | None, None),
    ]
    return msgspec.defstruct("Review", fields, rename=names, gc=False)


_2014 = _record(user="reviewerID", item="asin", rating="overall", time="unixReviewTime")
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
    - A line that repeats an earlier one byte for byte is dropped and counted. Two different reviews of one item by
      one user are both kept (`Dataset.drop_repeats` is for these).
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
    for number, lines, block in LineStream(path, limits, tally).blocks():
        parser.feed(number, lines, block)
    if not parser.rows:
        tally.finish(format, 0)
        raise DataError(f"{path}: not one review in {tally.lines:,} lines of format {format}")
    return parser.finish(format)


class _Ids:
    """Numbers ids in the order of their first use, and remembers which of them are no ids."""

    def __init__(self) -> None:
        self.index: defaultdict[str, int] = defaultdict(count().__next__)
        self.invalid: list[int] = []

    def number(self, names: Iterable[str], length: int) -> NDArray[np.int32]:
        """int32[length]: the number of each name."""
        before = len(self.index)
        numbers = np.fromiter(map(self.index.__getitem__, names), np.int32, length)
        if new := list(islice(reversed(self.index), len(self.index) - before)):
            joined = "".join(new)
            sound = joined.isprintable() and " " not in joined and len(max(new, key=len)) <= _MAX_ID and all(new)
            if not sound:
                self.invalid += [self.index[name] for name in new if not valid_id(name)]
        return numbers

    def faulty(self, numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
        """bool[N]: which of these numbers stand for something that is no id."""
        return np.isin(numbers, self.invalid) if self.invalid else np.zeros(len(numbers), bool)


def valid_id(key: str) -> bool:
    """Whether an id is non-empty, at most 128 characters, and free of white space and control characters."""
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

    def feed(self, number: int, lines: list[bytes], block: bytes) -> None:
        """Parse one block of whole lines, given whole and split, the first of which has this number."""
        try:
            records = self.decoder.decode_lines(block)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            records = []
        if len(records) == len(lines):
            self.tally.lines += len(lines)
            self._append(records, range(number, number + len(lines)), lines)
            return
        good = list(self._one_by_one(number, lines))
        if good:
            numbers, records, raw = map(list, zip(*good, strict=True))
            self._append(records, numbers, raw)

    def _one_by_one(self, number: int, lines: list[bytes]) -> Iterator[tuple[int, Any, bytes]]:
        for offset, line in enumerate(lines):
            if not line or line.isspace():
                continue
            self.tally.lines += 1
            try:
                record = self.decoder.decode(line)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                self.tally.reject(number + offset, reason(error), line)
            else:
                yield number + offset, record, line

    def _append(self, records: list[Any], numbers: Sequence[int], raw: list[bytes]) -> None:
        length = len(records)
        rating = np.array([*map(_RATING, records)], np.float64)
        time = np.array([*map(_TIME, records)], np.float64)
        with np.errstate(over="ignore"):  # an absurd number becomes inf, and the line is rejected below
            time *= self.layout.milliseconds
            stars = rating.astype(np.float32)
        columns: dict[str, NDArray[Any]] = {
            "user": self.users.number(map(_USER, records), length),
            "item": self.items.number(map(_ITEM, records), length),
            "rating": stars,
            "time": time,
            "digest": np.fromiter(map(isal_zlib.crc32, raw), np.uint32, length),
        }
        faults = {
            "user id is empty, too long or holds white space or control characters": self.users.faulty(columns["user"]),
            "item id is empty, too long or holds white space or control characters": self.items.faulty(columns["item"]),
            f"rating outside {RATING_RANGE}": _outside(rating, *RATING_RANGE),
            "time outside 1990..2100 (2014 and 2018 files count seconds, 2023 files milliseconds)": _outside(
                time, *TIME_RANGE_MS
            ),
        }
        if self.ordered:
            order = np.array([*map(_ORDER, records)], np.float64)
            self.ordered = not np.isnan(order).any()
        if self.ordered:
            columns["order"] = order
            faults["order is no small whole number"] = _outside(order, 0, 2**31) | (order != np.floor(order))
        bad = np.zeros(length, bool)
        for fault, where in faults.items():
            for row in np.flatnonzero(where & ~bad):
                self.tally.reject(numbers[int(row)], fault, raw[row])
            bad |= where
        if bad.any():
            columns = {name: column[~bad] for name, column in columns.items()}
        if not self.ordered:
            self.columns["order"].clear()
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
        user, user_ids = compact(joined["user"], list(self.users.index))
        item, item_ids = compact(joined["item"], list(self.items.index))
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
