"""Interactions and items of one's own, from CSV or Parquet.

The columns are found by name under the usual spellings, times by their size, and rows that cannot be used are counted
like bad lines. polars does the reading and is imported only here and in the cache.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.amazon import Reviews, repeated, valid_id
from agentrec_env.data.lines import LineStream, check_kind, expanded_chunks
from agentrec_env.data.metadata import Metadata, clean_brand, clean_text, clean_title, description_of, parse_price
from agentrec_env.data.report import DataError, Limits, Tally

if TYPE_CHECKING:
    import polars as pl

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "reviewerid", "customer_id", "uid"),
    "item": ("item", "item_id", "itemid", "parent_asin", "asin", "product_id", "productid", "movieid", "iid"),
    "rating": ("rating", "overall", "stars", "score"),
    "timestamp": ("timestamp", "time", "unixreviewtime", "datetime", "date"),
    "order": ("order",),
    "title": ("title", "name"),
    "brand": ("brand", "store"),
    "category": ("category", "categories", "genres", "main_category"),
    "price": ("price",),
    "description": ("description",),
}
"""Names under which a column is found, whatever the case; the first that exists counts."""

_INTERACTION = ("user", "item", "rating", "timestamp", "order")
_ITEM = ("item", "title", "brand", "category", "price", "description")
_NULLS = ("", "null", "none", "nan", "na", "n/a")
_LATEST_MS = 7_258_118_400_000  # 2200
_LINE = "\0line"
_PART = 100_000


def is_items_table(path: Path | str, format: str) -> bool:
    """Whether a table describes items (an item column and no user column) rather than interactions."""
    names = _names(Path(path), format)
    return _find(names, "user") is None and _find(names, "item") is not None


def read_table(path: Path | str, format: str, limits: Limits | None = None) -> Reviews:
    """Read interactions from a CSV ("csv", gzip or plain, with a header) or a Parquet file ("parquet").

    Columns: user and item; rating, timestamp and order where there are any (spellings: `SPELLINGS`).
    Timestamps are numbers (seconds, milliseconds, micro- or nanoseconds since 1970, told by the size of their median)
    or dates and times as polars reads them; without a zone they are UTC. Where some rows have a time, rows without
    are dropped and counted. A row that equals an earlier one in user, item, rating, time and order is dropped and
    counted where there are times; where there are none it may be a second purchase and stays.

    Bad rows, counted with the number of their line (in Parquet: row): no user or item, an id with white space inside
    or over 128 characters, a rating or time that is no number, too many fields.

    Raises `DataError`: no user or item column, unreadable file, too many bad rows, nothing left.
    """
    path = Path(path)
    limits = limits or Limits()
    tally = Tally(str(path), limits)
    frame = _frame(path, format, tally, _INTERACTION)
    for needed in ("user", "item"):
        if needed not in frame.columns:
            raise DataError(
                f"{path} has no {needed} column. Its columns: {', '.join(_names(path, format))}. Name one of them"
                f" {needed!r} (also understood: {', '.join(SPELLINGS[needed][1:])})."
            )
    faults: dict[str, pl.Series] = {}
    for name in ("user", "item"):
        ids = _as_ids(frame[name], path)
        frame = frame.with_columns(ids.alias(name))
        distinct = ids.unique().drop_nulls()
        unusable = [text for text in distinct if not valid_id(text) or "\ufffd" in text]
        faults[f"no usable {name} id"] = ids.is_null() | ids.is_in(unusable)
    rating = _as_number(frame, "rating", faults)
    time = _as_time(frame, faults, path)
    order = _as_number(frame, "order", faults)
    bad = np.zeros(frame.height, bool)
    line = frame[_LINE].to_numpy()
    for fault, series in faults.items():
        where = series.fill_null(False).to_numpy()
        for row in np.flatnonzero(where & ~bad):
            tally.reject(int(line[row]), fault, str(frame.row(int(row))[1:]))
        bad |= where
    keep = ~bad
    user, user_ids = _numbered(frame["user"])
    item, item_ids = _numbered(frame["item"])
    columns: dict[str, NDArray[Any]] = {"user": user, "item": item, "rating": rating.astype(np.float32)}
    ordered = not np.isnan(order[keep]).any()
    if ordered:
        columns["order"] = order
    dated = ~np.isnan(time)
    has_times = bool(dated[keep].any())
    if has_times:
        tally.drop("without a timestamp in a file that has them", int((keep & ~dated).sum()))
        keep &= dated
        columns["time"] = time
    columns = {name: column[keep] for name, column in columns.items()}
    if has_times:
        again = repeated(columns)
        tally.drop("exact repeats of an earlier row", int(again.sum()))
        columns = {name: column[~again] for name, column in columns.items()}
    if not len(columns["user"]):
        tally.finish(format, 0)
        raise DataError(f"{path}: not one usable interaction in {tally.lines:,} rows")
    user, user_ids = _first_use(columns["user"], user_ids)
    item, item_ids = _first_use(columns["item"], item_ids)
    return Reviews(
        user_ids,
        item_ids,
        user,
        item,
        columns["rating"],
        columns["time"].astype(np.int64) if has_times else None,
        columns["order"].astype(np.int64) if ordered else None,
        tally.finish(format, len(user)),
    )


def read_items_table(
    path: Path | str, format: str, keep: Collection[str] | None = None, limits: Limits | None = None
) -> Metadata:
    """Read items from a CSV or Parquet file: item, and title, brand, category, price, description where there are any.

    A category path is a list, or a string whose parts are separated by "|" or " > ". `keep` as in `read_metadata`.
    """
    path = Path(path)
    limits = limits or Limits()
    tally = Tally(str(path), limits)
    rows: dict[str, tuple[str | None, str | None, tuple[str, ...], float, str]] = {}
    unwanted = repeats = 0
    frame = _frame(path, format, tally, _ITEM)
    if "item" not in frame.columns:
        raise DataError(f"{path} has no item column. Its columns: {', '.join(_names(path, format))}")
    frame = frame.with_columns(_as_ids(frame["item"], path).alias("item"))
    for row in frame.iter_rows(named=True):
        item = row["item"]
        if item is None or not valid_id(item):
            tally.reject(row[_LINE], "no usable item id", str(item))
        elif keep is not None and item not in keep:
            unwanted += 1
        elif item in rows:
            repeats += 1
        else:
            rows[item] = (
                clean_title(row.get("title")),
                clean_brand(row.get("brand")),
                _path(row.get("category")),
                parse_price(row.get("price")),
                description_of(row.get("description")),
            )
    tally.drop("on items that no one reviewed", unwanted)
    tally.drop("on an item described before", repeats)
    titles, brands, categories, prices, texts = zip(*rows.values(), strict=True) if rows else ((),) * 5
    report = tally.finish(format, len(rows))
    return Metadata(list(rows), titles, brands, categories, np.array(prices, np.float64), texts, report)


def _path(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split("|") if "|" in value else value.split(" > ")
    names = (clean_text(name, 200) for name in value) if isinstance(value, (list, tuple)) else ()
    return tuple(name for name in names if name)


def _find(names: Collection[str], column: str) -> str | None:
    lower = {name.strip().lower(): name for name in reversed(list(names))}
    return next((lower[spelling] for spelling in SPELLINGS[column] if spelling in lower), None)


def _names(path: Path, format: str) -> list[str]:
    if format == "parquet":
        import polars as pl

        try:
            return pl.scan_parquet(path, glob=False).collect_schema().names()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is no readable Parquet file: {_first_line(error)}") from None
    return _header(path)[0]


def _header(path: Path) -> tuple[list[str], str]:
    """The names in a CSV's first line, and its separator."""
    head = b""
    for chunk in expanded_chunks(path, Limits(), 1 << 16):
        head += chunk
        if b"\n" in head or len(head) > 1 << 20:
            break
    line = check_kind(path, head).split(b"\n", 1)[0].decode("utf-8", "replace").strip("\r")
    separator = max(",\t;|", key=line.count)
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=separator, strict=True), [])]
    except csv.Error as error:
        raise DataError(f"{path}: the header is no line of a CSV ({error}): {line[:80]!r}") from None
    if len(set(names)) != len(names):
        raise DataError(f"{path}: the header names a column twice: {', '.join(names)}")
    return names, separator


def _frame(path: Path, format: str, tally: Tally, wanted: tuple[str, ...]) -> pl.DataFrame:
    """The wanted columns that exist, under our names, and `_LINE`, the number of each row in the file.

    The columns of a CSV are text. Rows that are no rows are rejected in `tally`, which counts all.
    """
    import polars as pl

    try:
        if format == "parquet":
            lazy = pl.scan_parquet(path, glob=False)
            names = lazy.collect_schema().names()
            picked = [pl.col(name).alias(column) for column, name in _columns(names, wanted).items()]
            frame = lazy.select(picked).collect().with_row_index(_LINE, offset=1)
            tally.lines = frame.height
            return frame
        names, separator = _header(path)
        columns = _columns(names, wanted)
        schema = {_LINE: pl.UInt32, **dict.fromkeys(columns, pl.String)}
        parts = [pl.DataFrame(schema=schema)]
        places = [names.index(name) for name in columns.values()]
        rows = _csv_rows(path, separator, len(names), tally)
        while part := list(islice(rows, _PART)):
            data: dict[str, list[Any]] = {_LINE: [line for line, _ in part]}
            for column, place in zip(columns, places, strict=True):
                data[column] = [row[place] if place < len(row) else None for _, row in part]
            parts.append(pl.DataFrame(data, schema=schema))
        return pl.concat(parts)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read as {format}: {_first_line(error)}") from None


def _columns(names: list[str], wanted: tuple[str, ...]) -> dict[str, str]:
    return {column: name for column in wanted if (name := _find(names, column)) is not None}


def _csv_rows(path: Path, separator: str, width: int, tally: Tally) -> Iterator[tuple[int, list[str]]]:
    """The rows after the header, each with the number of its first line. Quoted fields may hold line breaks."""
    number = 0

    def texts() -> Iterator[str]:
        nonlocal number
        for number, line in LineStream(path, tally.limits, tally).lines(strip=False):  # noqa: B007 (read outside)
            yield line.decode("utf-8", "replace")

    lines = texts()
    next(lines, None)  # the header
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        before = number
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(f"{path}: a quote opened after line {before} never closes; mend that line") from None
            tally.lines += number - before
            for line in range(before + 1, number + 1):
                tally.reject(line, f"no row: {error}")
            continue
        if not row:
            continue
        tally.lines += 1
        if len(row) > width:
            tally.reject(number, f"{len(row)} fields where the header names {width}", separator.join(row))
        else:
            yield number, row


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


def _as_ids(series: pl.Series, path: Path) -> pl.Series:
    import polars as pl

    if series.dtype.is_float():
        whole = series.cast(pl.Int64, strict=False)
        series = whole.set(whole.cast(series.dtype) != series, None)
    elif series.dtype.is_nested() or series.dtype == pl.Binary:
        raise DataError(f"{path}: ids must be text or whole numbers, not {series.dtype}")
    text = series.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _as_number(frame: pl.DataFrame, name: str, faults: dict[str, pl.Series]) -> NDArray[np.float64]:
    """float64[N], nan where null; what is no finite number is a fault."""
    import polars as pl

    if name not in frame.columns:
        return np.full(frame.height, np.nan)
    series = _without_null_words(frame[name])
    number = series.cast(pl.Float64, strict=False)
    finite = number.is_finite() if number.len() else number.is_not_null()
    wrong = series.is_not_null() & ~finite.fill_null(False)
    if not series.dtype.is_float():
        faults[f"{name} is no number"] = wrong
    else:  # in a Parquet column nan means null
        faults[f"{name} is no number"] = wrong & ~series.is_nan()
    return number.fill_null(float("nan")).to_numpy().astype(np.float64)


def _as_time(frame: pl.DataFrame, faults: dict[str, pl.Series], path: Path) -> NDArray[np.float64]:
    """float64[N]: milliseconds since the epoch, nan where null."""
    import polars as pl

    if "timestamp" not in frame.columns:
        return np.full(frame.height, np.nan)
    series = _without_null_words(frame["timestamp"])
    written = series.dtype == pl.String and series.cast(pl.Float64, strict=False).null_count() == series.len()
    if written and series.null_count() < series.len():
        try:
            parsed = series.str.to_datetime(strict=False, time_unit="ms", time_zone="UTC")
        except pl.exceptions.PolarsError:
            parsed = series.clear(series.len())
        if parsed.null_count() == series.len():
            raise DataError(
                f"{path}: timestamps such as {series.drop_nulls()[0]!r} are not understood. Write numbers (seconds or"
                " milliseconds since 1970) or ISO dates (2020-12-31, 2020-12-31T23:59:59)."
            )
        series = parsed
    if series.dtype.is_temporal():
        faults["timestamp is no date"] = series.is_null() & _without_null_words(frame["timestamp"]).is_not_null()
        milliseconds = series.cast(pl.Datetime("ms")).cast(pl.Int64).cast(pl.Float64)
    else:
        values = _as_number(frame, "timestamp", faults)
        finite = values[np.isfinite(values)]
        factor = _to_milliseconds(float(np.median(finite)) if len(finite) else 0.0)
        milliseconds = pl.Series(np.rint(values * factor)).fill_nan(None)
    faults["timestamp outside 1970..2200"] = ~milliseconds.is_between(0, _LATEST_MS)
    return milliseconds.fill_null(float("nan")).to_numpy().astype(np.float64)


def _to_milliseconds(typical: float) -> float:
    for limit, factor in ((1e11, 1000.0), (1e14, 1.0), (1e17, 1e-3)):
        if typical < limit:
            return factor
    return 1e-6


def _without_null_words(series: pl.Series) -> pl.Series:
    import polars as pl

    if series.dtype != pl.String:
        return series
    text = series.str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(list(_NULLS)), None)


def _numbered(series: pl.Series) -> tuple[NDArray[np.int32], list[str]]:
    """int32[N] numbers of the texts in the order of first use, and the texts."""
    import polars as pl

    texts = series.fill_null("").unique(maintain_order=True)
    numbers = pl.DataFrame({"id": texts, "number": np.arange(len(texts), dtype=np.int32)})
    joined = series.fill_null("").to_frame("id").join(numbers, on="id", how="left", maintain_order="left")
    return joined["number"].to_numpy().astype(np.int32), texts.to_list()


def _first_use(index: NDArray[np.int32], ids: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Renumber so that ids are used, and stand in the order of their first use."""
    used, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    place = np.argsort(first)
    rank = np.empty(len(used), np.int32)
    rank[place] = np.arange(len(used), dtype=np.int32)
    return rank[inverse], [ids[int(used[at])] for at in place]
