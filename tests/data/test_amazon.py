"""The review reader: real fixtures exactly, random records through a file and back, every kind of bad input."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrec_env.data.amazon import read_reviews
from agentrec_env.data.report import DataError, Limits
from agentrec_env.data.sniff import FORMATS, sniff

TIME = 1_600_000_000_000
NO_LIMIT = Limits(bad_lines=10**9)
# Plain calls rather than the tmp_path fixture: Hypothesis runs a test body many times.
_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("amazon")


def review(user: str = "U1", item: str = "I1", **fields: Any) -> dict[str, Any]:
    return {"user_id": user, "parent_asin": item, "rating": 5.0, "timestamp": TIME, **fields}


def write(folder: Path, lines: list[Any], name: str = "", ending: bytes = b"\n") -> Path:
    path = folder / (name or f"{next(_numbers)}.jsonl")
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    data = b"".join(line + ending for line in raw)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def real_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


# The real fixtures


@pytest.mark.parametrize(
    ("file", "format", "reviews", "users", "items"),
    [
        ("raw/Gift_Cards_5.json.gz", "amazon-2018-reviews", 2972, 458, 148),
        ("raw/reviews_Musical_Instruments_5.json.gz", "amazon-2014-reviews", 10261, 1429, 900),
        ("office/reviews.jsonl.gz", "amazon-2023-reviews", 22447, 3231, 3317),
        ("cds/reviews.jsonl.gz", "amazon-2023-reviews", 26000, 2991, 5590),
        ("beauty/reviews.jsonl.gz", "amazon-2023-reviews", 198502, 22363, 12101),
    ],
)
def test_real_reviews_are_read_exactly(
    shared_data: Path, file: str, format: str, reviews: int, users: int, items: int
) -> None:
    path = shared_data / file
    assert sniff(path) == format
    result = read_reviews(path, format)
    assert (len(result.user), len(result.user_ids), len(result.item_ids)) == (reviews, users, items)
    assert result.report.lines == result.report.kept == reviews
    assert (result.report.bad, result.report.dropped) == (0, {})


def test_real_seconds_become_milliseconds(shared_data: Path) -> None:
    path = shared_data / "raw/Gift_Cards_5.json.gz"
    result = read_reviews(path, sniff(path))
    first = real_records(path)[0]
    assert result.time is not None
    assert result.time[0] == first["unixReviewTime"] * 1000
    assert result.user_ids[result.user[0]] == first["reviewerID"]
    assert result.item_ids[result.item[0]] == first["asin"]
    assert result.rating[0] == first["overall"]


def test_real_2023_reviews_join_on_parent_asin_with_millisecond_times(shared_data: Path) -> None:
    path = shared_data / "raw/All_Beauty_2023.head800.jsonl.gz"
    result = read_reviews(path, sniff(path))
    records = real_records(path)
    distinct = list({json.dumps(record): record for record in records}.values())
    assert any(record["asin"] != record["parent_asin"] for record in records)
    assert (len(records), len(distinct)) == (800, 793)
    assert result.report.dropped == {"exact repeats of an earlier line": 7}
    assert [result.item_ids[item] for item in result.item] == [record["parent_asin"] for record in distinct]
    assert [result.user_ids[user] for user in result.user] == [record["user_id"] for record in distinct]
    assert result.time is not None
    assert result.time.tolist() == [record["timestamp"] for record in distinct]
    assert (len(result.user_ids), len(result.item_ids)) == (128, 769)


def test_repeats_in_real_2018_lines_are_dropped_and_counted(shared_data: Path, folder: Path) -> None:
    """The 400 lines of the excerpt are all distinct, whatever its description says; so repeat some of them."""
    path = shared_data / "raw/All_Beauty_5.head400.json.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert len(set(lines)) == len(lines) == 400
    assert read_reviews(path, sniff(path)).report.dropped == {}
    doubled = write(folder, lines[:100] + lines + lines[300:], "doubled.json.gz")
    result = read_reviews(doubled, sniff(doubled))
    assert result.report.dropped == {"exact repeats of an earlier line": 200}
    assert len(result.user) == 400


def test_the_ready_folders_keep_what_they_lack_unknown(shared_data: Path) -> None:
    beauty = read_reviews(shared_data / "beauty/reviews.jsonl.gz", "amazon-2023-reviews")
    assert beauty.time is None
    assert beauty.order is not None
    assert np.isnan(beauty.rating).all()


# Reviews that are made up

ids = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
reviews_2023 = st.fixed_dictionaries(
    {"user_id": ids, "parent_asin": ids, "rating": st.none() | st.sampled_from([1.0, 2, 3.5, 5])},
    optional={
        "title": st.none() | st.text(max_size=20),
        "asin": ids,
        "helpful_vote": st.integers(),
        "images": st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2), max_size=2),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(reviews_2023, min_size=1, max_size=30),
    times=st.booleans(),
    orders=st.booleans(),
    gz=st.booleans(),
    ending=st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n\r\n"]),
    escaped=st.booleans(),
)
def test_records_survive_the_way_through_a_file(
    folder: Path, records: list[dict[str, Any]], times: bool, orders: bool, gz: bool, ending: bytes, escaped: bool
) -> None:
    for row, record in enumerate(records):
        record["timestamp"] = TIME + 7 * row if times else None
        if orders:
            record["order"] = row
    lines = [json.dumps(record, ensure_ascii=escaped).encode("utf-8", "surrogatepass") for record in records]
    distinct = [json.loads(line) for line in dict.fromkeys(lines)]
    path = write(folder, lines, f"{next(_numbers)}.jsonl" + ".gz" * gz, ending)
    result = read_reviews(path, "amazon-2023-reviews", NO_LIMIT)
    assert [result.user_ids[user] for user in result.user] == [record["user_id"] for record in distinct]
    assert [result.item_ids[item] for item in result.item] == [record["parent_asin"] for record in distinct]
    assert list(result.user_ids) == list(dict.fromkeys(record["user_id"] for record in distinct))
    expected = [math.nan if record["rating"] is None else record["rating"] for record in distinct]
    np.testing.assert_array_equal(result.rating, np.array(expected, np.float32))
    assert (result.time is not None) == times
    if result.time is not None:
        assert result.time.tolist() == [record["timestamp"] for record in distinct]
    assert (result.order is not None) == orders
    if result.order is not None:
        assert result.order.tolist() == [record["order"] for record in distinct]
    assert result.report.lines == len(records)
    assert result.report.kept == len(distinct)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_garbage_between_good_lines_is_counted_and_never_fatal_below_the_limit(
    folder: Path, garbage: list[bytes]
) -> None:
    garbage = [line.replace(b"\n", b"") for line in garbage]
    lines: list[Any] = [review(timestamp=TIME)]
    for row, line in enumerate(garbage):
        lines += [line, review(timestamp=TIME + row + 1)]
    result = read_reviews(write(folder, lines), "amazon-2023-reviews", NO_LIMIT)
    report = result.report
    assert report.kept == len(garbage) + 1
    assert report.bad == sum(1 for line in garbage if line.strip())
    assert report.lines == report.kept + report.bad


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
@example(b"PAR1")
def test_any_bytes_give_reviews_or_the_documented_error(folder: Path, data: bytes) -> None:
    path = folder / "any.bin"
    path.write_bytes(data)
    for format in (name for name in FORMATS if name.endswith("-reviews")):
        with pytest.raises(DataError):
            read_reviews(path, format)
    with contextlib.suppress(DataError):
        # Text with a comma in it may be CSV, as far as a sniffer can tell; Parquet is known by its first bytes.
        assert sniff(path) == ("parquet" if data.startswith(b"PAR1") else "csv")


BAD_REVIEWS = {
    "no object": [b"[1, 2]", b"7", b"null", b'"text"', b"{", b"}", b"{}{}", b'{"user_id": "U"', b"\x00\x00", b"NaN"],
    "missing id": [{"user_id": "U"}, {"parent_asin": "I"}, review(user=None), review(item=None), {}],
    "no id": [review(user=""), review(item=" "), review(user="a b"), review(item="a\nb"), review(user="a\x1bb")],
    "id too long": [review(user="u" * 129), review(item="i" * 100_000)],
    "id of another type": [review(user=7), review(item=["I"]), review(user=True)],
    "rating": [review(rating=True), review(rating="5"), review(rating=5.5), review(rating=-1), review(rating=1e300)],
    "not JSON's": [b'{"user_id":"U","parent_asin":"I","rating":NaN,"timestamp":null}'],
    "infinite": [
        b'{"user_id":"U","parent_asin":"I","rating":Infinity}',
        b'{"user_id":"U","parent_asin":"I","rating":1e999}',
    ],
    "time": [review(timestamp=True), review(timestamp="today"), review(timestamp=1_600_000_000), review(timestamp=-1)],
    "huge": [review(timestamp=10**30), review(timestamp=10**300), review(rating=10**400)],
    "order": [review(order=True), review(order=[1]), review(order="1")],
    "deep": [b'{"user_id":"U","parent_asin":"I","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
    "not UTF-8": [b'{"user_id":"\xff","parent_asin":"I"}', b'{"user_id":"\\ud800","parent_asin":"I"}'],
}


@pytest.mark.parametrize("kind", BAD_REVIEWS)
def test_each_kind_of_bad_line_is_counted_with_its_number_and_a_reason(folder: Path, kind: str) -> None:
    good = [review(timestamp=TIME + row) for row in range(20)]
    path = write(folder, [*good[:10], *BAD_REVIEWS[kind], *good[10:]])
    report = read_reviews(path, "amazon-2023-reviews", NO_LIMIT).report
    assert (report.kept, report.bad) == (20, len(BAD_REVIEWS[kind]))
    assert [bad.line for bad in report.bad_lines] == list(range(11, 11 + len(BAD_REVIEWS[kind])))
    for bad in report.bad_lines:
        assert bad.reason
        assert bad.text.isprintable()
        assert len(bad.text) < 200
    assert "line 11" in report.summary()


def test_too_many_bad_lines_are_an_error_that_shows_some(folder: Path) -> None:
    good = [review(timestamp=TIME + row) for row in range(500)]
    assert read_reviews(write(folder, good + [b"?"] * 10), "amazon-2023-reviews").report.bad == 10
    with pytest.raises(DataError, match=r"11 of the first 511 lines are bad.*line 501: JSON is malformed"):
        read_reviews(write(folder, good + [b"?"] * 11), "amazon-2023-reviews")
    assert read_reviews(write(folder, good * 3 + [b"?"] * 15), "amazon-2023-reviews").report.bad == 15
    with pytest.raises(DataError, match="1,001 of the first"):
        read_reviews(write(folder, [b"?"] * 100_000), "amazon-2023-reviews")


def test_lines_without_a_time_are_dropped_where_others_have_one(folder: Path) -> None:
    lines = [review(timestamp=TIME), review(item="I2", timestamp=None), review("U2", timestamp=None)]
    result = read_reviews(write(folder, lines), "amazon-2023-reviews")
    assert result.report.dropped == {"without a timestamp in a file that has them": 2}
    assert (result.user_ids, result.item_ids) == (["U1"], ["I1"])  # ids that no line uses any more are gone


def test_order_counts_only_where_every_line_states_it(folder: Path) -> None:
    lines = [review(order=1), review(item="I2", order=0)]
    result = read_reviews(write(folder, lines), "amazon-2023-reviews")
    assert result.order is not None
    assert result.order.tolist() == [1, 0]
    assert read_reviews(write(folder, [*lines, review(item="I3")]), "amazon-2023-reviews").order is None
    wrong = [review(order=-1), review(order=1.5), review(order=10**30)]
    result = read_reviews(write(folder, lines + wrong), "amazon-2023-reviews")
    assert (len(result.user), [bad.line for bad in result.report.bad_lines]) == (2, [3, 4, 5])


def test_two_different_reviews_of_one_item_are_both_kept(folder: Path) -> None:
    path = write(folder, [review(text="good"), review(text="bad"), review(text="good")])
    result = read_reviews(path, "amazon-2023-reviews")
    assert (len(result.user), result.report.dropped) == (2, {"exact repeats of an earlier line": 1})


def test_reviews_without_parent_asin_fall_back_on_asin(folder: Path) -> None:
    path = write(folder, [{"user_id": "U", "asin": "I", "rating": 4.0, "timestamp": TIME}])
    assert sniff(path) == "amazon-2023-reviews-by-asin"
    assert read_reviews(path, sniff(path)).item_ids == ["I"]


def test_a_byte_order_mark_and_a_missing_last_newline_do_no_harm(folder: Path) -> None:
    path = write(folder, [review(), review("U2")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n"))
    assert sniff(path) == "amazon-2023-reviews"
    assert len(read_reviews(path, sniff(path)).user) == 2


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_line_without_end_is_one_bad_line(folder: Path, position: int) -> None:
    lines: list[Any] = [review(timestamp=TIME + row) for row in range(7)]
    lines.insert(position, b'{"user_id": "' + b"x" * 5000 + b'"}')
    for gz in ("", ".gz"):
        path = write(folder, lines, f"{next(_numbers)}.jsonl{gz}")
        report = read_reviews(path, "amazon-2023-reviews", Limits(line_bytes=1000)).report
        assert (report.kept, report.bad) == (7, 1)
        assert (report.bad_lines[0].line, report.bad_lines[0].reason) == (position + 1, "longer than 1,000 bytes")


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 400), min_size=1, max_size=20), line_bytes=st.integers(150, 300))
def test_lines_are_found_whatever_the_block_borders(folder: Path, lengths: list[int], line_bytes: int) -> None:
    lines = [json.dumps(review(timestamp=TIME + row, text="x" * size)).encode() for row, size in enumerate(lengths)]
    path = write(folder, lines)
    fits = [len(line) <= line_bytes for line in lines]
    if not any(fits):
        return
    report = read_reviews(path, "amazon-2023-reviews", Limits(line_bytes=line_bytes, bad_lines=100)).report
    assert (report.kept, report.bad) == (sum(fits), len(fits) - sum(fits))
    assert [bad.line for bad in report.bad_lines] == [row + 1 for row, fit in enumerate(fits) if not fit][:10]


# Damaged files and other kinds of file


def test_a_truncated_gzip_says_how_many_lines_were_fine(folder: Path) -> None:
    noise = np.random.default_rng(0).random((20_000, 8)).tolist()
    lines = [review(f"U{row}", text=str(text)) for row, text in enumerate(noise)]
    whole = write(folder, lines, "whole.jsonl.gz").read_bytes()
    path = folder / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.jsonl.gz: the gzip ends too early, after [\d,]{4,} whole lines") as error:
        read_reviews(path, "amazon-2023-reviews")
    sound = zlib.decompressobj(31).decompress(path.read_bytes()).count(b"\n")
    assert f"after {sound:,} whole lines" in str(error.value)
    assert "Download the file again" in str(error.value)


@pytest.mark.parametrize("cut", [1, 5, 9, 12, 40])
def test_a_gzip_cut_anywhere_is_the_same_error(folder: Path, cut: int) -> None:
    path = folder / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(review()).encode())[:cut])
    with pytest.raises(DataError):
        read_reviews(path, sniff(path))


def test_a_damaged_gzip_is_an_error(folder: Path) -> None:
    data = bytearray(write(folder, [review(f"U{row}") for row in range(5000)], "damaged.jsonl.gz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = folder / "damaged.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"the gzip is damaged|ends too early"):
        read_reviews(path, "amazon-2023-reviews")


def test_a_gzip_that_expands_without_end_is_stopped(folder: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(300)) + packer.flush()
    path = folder / "bomb.json.gz"
    path.write_bytes(json_gzip(review()) + bomb)
    with pytest.raises(DataError, match="gzip bomb"):
        read_reviews(path, sniff(path))
    with pytest.raises(DataError, match="expands to more than 1,000,000 bytes"):
        read_reviews(path, sniff(path), Limits(expanded_bytes=1_000_000))


def json_gzip(record: dict[str, Any]) -> bytes:
    return gzip.compress(json.dumps(record).encode() + b"\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "holds no text"),
        (gzip.compress(b"", mtime=0), "holds no text once decompressed"),
        (b"PK\x03\x04whatever", "zip archive: unpack"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (gzip.compress(b"  <html>", mtime=0), "web page"),
        ('{"user_id": 1}'.encode("utf-16"), "UTF-16"),
        (b"[\n{}\n]", "no known format"),
        (b'{"a": 1}\n', "Known formats:\n  amazon-2014-reviews"),
        (b"just words", "no known format"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_way_out(folder: Path, data: bytes, message: str) -> None:
    path = folder / "other.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        sniff(path)


def test_a_missing_file_and_a_folder_are_no_files(folder: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        sniff(folder / "nowhere.json")
    with pytest.raises(DataError, match="is a folder"):
        sniff(folder)
