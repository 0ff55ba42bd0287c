"""CSV and Parquet of one's own: round trips, the spellings and units that are understood, and rows that are not."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrec_env.data.report import DataError, Limits
from agentrec_env.data.sniff import sniff
from agentrec_env.data.table import is_items_table, read_items_table, read_table

_numbers = itertools.count()
NO_LIMIT = Limits(bad_lines=10**9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table")


def write(folder: Path, text: str | bytes, gz: bool = False) -> Path:
    path = folder / f"{next(_numbers)}.csv"
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if gz else data)
    return path


kinds = st.sampled_from(["csv", "csv.gz", "parquet"])
ids = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\ufffd"), min_size=1, max_size=8
)
rows = st.lists(st.tuples(ids, ids, st.none() | st.integers(1, 10).map(lambda half: half / 2)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(
    rows=rows,
    timed=st.booleans(),
    kind=kinds,
    separator=st.sampled_from(",;\t|"),
)
def test_rows_survive_the_way_through_a_file(
    folder: Path, rows: list[tuple[str, str, float | None]], timed: bool, kind: str, separator: str
) -> None:
    times = [1_600_000_000_000 + row for row in range(len(rows))]
    table: dict[str, list[Any]] = {
        name: list(column) for name, column in zip(["User_ID", "ASIN", "Rating"], zip(*rows, strict=True), strict=True)
    }
    if timed:
        table["timestamp"] = times
    path = folder / f"{next(_numbers)}.{kind}"
    if kind == "parquet":
        pl.DataFrame(table, schema_overrides={"Rating": pl.Float64}).write_parquet(path)
    else:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=separator)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
        data = text.getvalue().encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    assert sniff(path) == kind.split(".")[0]
    result = read_table(path, sniff(path))
    assert [result.user_ids[user] for user in result.user] == [row[0] for row in rows]
    assert [result.item_ids[item] for item in result.item] == [row[1] for row in rows]
    assert list(result.user_ids) == list(dict.fromkeys(row[0] for row in rows))
    expected = [math.nan if row[2] is None else row[2] for row in rows]
    np.testing.assert_array_equal(result.rating, np.array(expected, np.float32))
    assert (result.time.tolist() if result.time is not None else None) == (times if timed else None)
    assert result.order is None
    assert (result.report.lines, result.report.kept, result.report.bad) == (len(rows), len(rows), 0)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='ab1,;"\n\r\t |xé\x00', max_size=120))
def test_any_text_below_a_header_gives_rows_or_the_documented_error(folder: Path, text: str) -> None:
    path = write(folder, "user,item,rating,timestamp\n" + text)
    try:
        report = read_table(path, "csv", NO_LIMIT).report
    except DataError:
        return
    assert report.lines == report.kept + report.bad + sum(report.dropped.values())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_table_or_the_documented_error(folder: Path, data: bytes) -> None:
    path = folder / "any.bin"
    for content in (data, b"PAR1" + data + b"PAR1"):
        path.write_bytes(content)
        for format in ("csv", "parquet"):
            with pytest.raises(DataError):
                read_table(path, format)


def test_bad_rows_are_counted_with_their_line(folder: Path) -> None:
    path = write(
        folder,
        "user,item,rating,timestamp\r\n"
        "u1,i1,4,1600000000\r\n"  # 2
        "u1,i2,five,1600000001\r\n"  # 3: rating
        "u2,i1,3,1600000002,9,9\r\n"  # 4: surplus fields
        "u2\r\n"  # 5: no item
        ",i1,3,1600000003\r\n"  # 6: no user
        "u3,a b,1,1600000004\r\n"  # 7: white space inside
        "\r\n"  # 8: blank, not counted
        "u3,i3,1,yesterday\r\n"  # 9: time
        "u3,i3,inf,1600000005\r\n"  # 10: rating
        "u3,i3,NA,\r\n"  # 11: no time: dropped
        "u4,i4,null,1600000006\r\n"  # 12: unknown rating
        "u4,i4,null,1600000006\r\n"  # 13: repeat
        'u5,"i\n5",1,1600000007\r\n'  # 14-15: a line break in an id
        "u6,i6,2,-5\r\n"  # 16: time
        "u7,i\xff,2,1600000008\r\n",  # 17: fine in UTF-8
    )
    result = read_table(path, "csv", NO_LIMIT)
    report = result.report
    assert [bad.line for bad in report.bad_lines] == [3, 4, 5, 6, 7, 9, 10, 15, 16]
    assert "6 fields where the header names 4" in report.bad_lines[1].reason
    assert report.dropped == {"without a timestamp in a file that has them": 1, "exact repeats of an earlier row": 1}
    assert (report.lines, report.kept) == (14, 3)
    assert (result.user_ids, result.item_ids) == (["u1", "u4", "u7"], ["i1", "i4", "iÿ"])
    assert np.isnan(result.rating[1])


def test_ids_that_are_not_utf8_are_bad(folder: Path) -> None:
    path = write(folder, b"user,item\nu1,i1\nu\xff,i2\n")
    report = read_table(path, "csv").report
    assert (report.kept, report.bad_lines[0].line, report.bad_lines[0].reason) == (1, 3, "no usable user id")


def test_a_quote_that_never_closes_is_an_error_with_its_line(folder: Path) -> None:
    path = write(folder, 'user,item\nu1,i1\nu2,"i2\n' + "u3,i3\n" * 100)
    with pytest.raises(DataError, match="a quote opened after line 2 never closes"):
        read_table(path, "csv")


def test_too_many_bad_rows_are_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="11 of the first 31 lines are bad"):
        read_table(write(folder, "user,item\n" + "u,i\n" * 20 + ",x\n" * 11), "csv")


@pytest.mark.parametrize(
    ("times", "milliseconds"),
    [
        (["1600000000", "1600000001"], [1_600_000_000_000, 1_600_000_001_000]),
        (["1600000000000", "1600000000001"], [1_600_000_000_000, 1_600_000_000_001]),
        (["1600000000000000", "1600000000001000"], [1_600_000_000_000, 1_600_000_000_001]),
        (["1600000000000000000", "1600000000001000000"], [1_600_000_000_000, 1_600_000_000_001]),
        (["1600000000.5", "1.6e9"], [1_600_000_000_500, 1_600_000_000_000]),
        (["0", "1"], [0, 1000]),
        (["2020-09-13", "2020-09-14"], [1_599_955_200_000, 1_600_041_600_000]),
        (["2020-09-13T12:26:40", "2020-09-13T12:26:41"], [1_600_000_000_000, 1_600_000_001_000]),
        (["2020-09-13 12:26:40", "2020-09-13 12:26:41"], [1_600_000_000_000, 1_600_000_001_000]),
        (["2020-09-13T12:26:40Z", "2020-09-13T12:26:41Z"], [1_600_000_000_000, 1_600_000_001_000]),
    ],
)
def test_times_in_every_unit(folder: Path, times: list[str], milliseconds: list[int]) -> None:
    path = write(folder, "user,item,time\n" + "".join(f"u{row},i,{time}\n" for row, time in enumerate(times)))
    result = read_table(path, "csv")
    assert result.time is not None
    assert result.time.tolist() == milliseconds


def test_times_that_are_not_understood_say_what_is(folder: Path) -> None:
    with pytest.raises(DataError, match=r"such as 'yesterday' are not understood\. Write numbers"):
        read_table(write(folder, "user,item,time\nu,i,yesterday\n"), "csv")


def test_parquet_types(folder: Path) -> None:
    path = folder / "typed.parquet"
    moment = datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)
    pl.DataFrame(
        {
            "user": [1, 2, 3, None],
            "movieId": [1.0, 2.0, 2.5, 4.0],
            "date": [moment, None, moment, moment],
            "rating": [1.0, math.nan, 3.0, 1.0],
            "order": [0, 1, 2, 3],
        },
    ).write_parquet(path)
    result = read_table(path, "parquet")
    assert (result.user_ids, result.item_ids) == (["1"], ["1"])
    assert result.time is not None
    assert result.time.tolist() == [1_600_000_000_000]
    assert [bad.line for bad in result.report.bad_lines] == [3, 4]
    nested = folder / "nested.parquet"
    pl.DataFrame({"user": [["a"]], "item": ["b"]}).write_parquet(nested)
    with pytest.raises(DataError, match="text or whole numbers, not List"):
        read_table(nested, "parquet")


def test_rows_without_times_may_repeat_and_are_kept(folder: Path) -> None:
    result = read_table(write(folder, "user,item\nu,i\nu,i\n"), "csv")
    assert (len(result.user), result.time) == (2, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,rating\nu,1\n", "no item column. Its columns: user, rating. Name one of them 'item'"),
        ("customer,item\nu,1\n", "no user column"),
        ("user,item,user\nu,1,2\n", "names a column twice"),
        ("user,item\n", "not one usable interaction in 0 rows"),
    ],
)
def test_tables_that_cannot_be_used_say_what_is_missing(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(folder, text), "csv")


def test_a_gzipped_table_is_bounded_too(folder: Path) -> None:
    path = write(folder, b"user,item\n" + b"u,i\n" * 500_000, gz=True)
    with pytest.raises(DataError, match="expands to more than 1,048,576 bytes"):
        read_table(path, "csv", Limits(expanded_bytes=1 << 20))
    whole = write(folder, "user,item\n" + "".join(f"u{row},i{row * 7}\n" for row in range(20_000)), gz=True)
    whole.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(DataError, match="ends too early"):
        read_table(whole, "csv")


def test_items_table(folder: Path) -> None:
    path = write(
        folder,
        "item_id,Title,store,categories,price,description\n"
        'i1,Rock &amp; Roll,Acme,Music|Rock,"$1,250.00",<p>Loud</p>\n'
        "i2,,,Music > Pop,junk,\n"
        "i1,again,,,,\n"
        ",no id,,,,\n",
    )
    assert is_items_table(path, sniff(path))
    items = read_items_table(path, "csv")
    assert list(items.ids) == ["i1", "i2"]
    assert items.titles == ("Rock & Roll", None)
    assert items.brands == ("Acme", None)
    assert items.categories == (("Music", "Rock"), ("Music", "Pop"))
    np.testing.assert_array_equal(items.prices, [1250.0, np.nan])
    assert items.descriptions == ("Loud", "")
    assert (items.report.bad_lines[0].line, items.report.dropped) == (5, {"on an item described before": 1})
    parquet = folder / "items.parquet"
    pl.DataFrame({"item": [7, 8], "category": [["a", "b"], None], "price": [1.5, None]}).write_parquet(parquet)
    items = read_items_table(parquet, "parquet", keep={"7"})
    assert (list(items.ids), items.categories, items.prices.tolist()) == (["7"], (("a", "b"),), [1.5])
