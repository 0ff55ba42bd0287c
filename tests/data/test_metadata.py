"""The metadata reader: the real fixture exactly, each release's quirks, and text that means harm."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrec_env.data.literal import parse_literal
from agentrec_env.data.metadata import (
    MAX_DESCRIPTION,
    clean_text,
    clean_title,
    description_of,
    parse_price,
    read_metadata,
)
from agentrec_env.data.report import DataError, Limits
from agentrec_env.data.sniff import sniff

_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metadata")


def write(folder: Path, lines: list[Any]) -> Path:
    path = folder / f"{next(_numbers)}.json"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def real_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_real_2018_metadata_is_read_exactly(shared_data: Path) -> None:
    path = shared_data / "raw/meta_Gift_Cards.json.gz"
    assert sniff(path) == "amazon-2018-metadata"
    metadata = read_metadata(path, sniff(path))
    assert len(metadata.ids) == 1547
    raw = real_records(path)
    for record, price in zip(raw, metadata.prices, strict=True):
        text = record["price"].strip()
        assert price == float(text[1:].replace(",", "")) if text.startswith("$") else math.isnan(price)
    assert np.isfinite(metadata.prices).sum() == 358
    assert metadata.prices[np.isfinite(metadata.prices)].max() == 1250.0
    assert set(metadata.categories) == {("Gift Cards",), ("Gift Cards", "Gift Card Accessories")}
    titles = [title for title in metadata.titles if title]
    assert "Noodles & Company Gift Card Collection" in titles
    assert not any("&#39;" in title or "&amp;" in title or title != title.strip() for title in titles)
    assert not any("<br" in text or "<div" in text for text in metadata.descriptions)


def test_real_span_titles_are_missing(shared_data: Path) -> None:
    metadata = read_metadata(shared_data / "cds/meta.jsonl.gz", "amazon-2023-metadata")
    assert sum(title is None for title in metadata.titles) == 29
    assert not any("<span" in title for title in metadata.titles if title)


def meta(asin: str, **fields: Any) -> dict[str, Any]:
    return {"asin": asin, **fields}


def test_2014_metadata_is_read_as_python_literals_and_never_run(folder: Path) -> None:
    lines = [
        b"{'asin': 'A', 'title': \"Fender's Strat &amp; case\", 'price': 12.5, 'brand': 'Fender', 'imUrl': 'http://x',"
        b" 'categories': [['Instruments', 'Guitars'], ['Gifts']], 'salesRank': {'Instruments': 5},"
        b" 'related': {'also_bought': ['B']}, 'description': 'Loud.'}",
        b"{'asin': 'B', 'categories': [['Instruments']]}",
        b'{"asin": "C", "title": "plain JSON"}',
        b"{'asin': __import__('os').getcwd()}",
        b"{'asin': 'D', 'price': " + b"-" * 5000 + b"1}",
        b"{'asin': 'E', 'x': " + b"[" * 5000 + b"]" * 5000 + b"}",
        b"{'asin': 'F', 'x': " + b"9" * 5000 + b"}",
        b"['asin']",
        b"{'asin': 'G', 'x': '" + b"y" * 300_000 + b"'}",
    ]
    path = write(folder, lines)
    assert sniff(path) == "amazon-2014-metadata"
    metadata = read_metadata(path, sniff(path))
    assert list(metadata.ids) == ["A", "B", "C"]
    assert metadata.titles == ("Fender's Strat & case", None, "plain JSON")
    assert metadata.brands == ("Fender", None, None)
    assert metadata.categories == (("Instruments", "Guitars"), ("Instruments",), ())
    assert metadata.descriptions == ("Loud.", "", "")
    np.testing.assert_array_equal(metadata.prices, [12.5, np.nan, np.nan])
    assert metadata.report.bad == 6


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(literals)
def test_python_literals_survive_repr(value: Any) -> None:
    line = repr(value).encode("utf-8", "surrogatepass")
    try:
        line.decode()
    except UnicodeDecodeError:
        return
    assert parse_literal(line, 1 << 20) == value


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}[]()'\"\\,:-+eE0123456789. Nonerublambdxj\n", max_size=60))
def test_text_that_is_no_literal_is_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_literal(text.encode(), 1000)


@pytest.mark.timeout(60)  # quadratic work takes minutes
@pytest.mark.parametrize(
    "hostile", [b'"' + b'\\"' * 100_000, b"'" * 199_999, b"(" * 200_000, b"-1" * 100_000, b"1." * 99_999]
)
def test_hostile_literals_cost_little_time(hostile: bytes) -> None:
    with pytest.raises(ValueError):
        parse_literal(hostile, 1 << 20)


def test_2018_metadata_quirks(folder: Path) -> None:
    lines = [
        meta("A", title="", brand="", category=[], price="", description=[], feature=[], rank=[], main_cat=""),
        meta(
            "B",
            title='<span class="a-size-medium a-color-secondary a-text-normal',
            brand="by\n    Acme",
            main_cat="Toys",
        ),
        meta("C", title="var aPageStart = (new Date()).getTime();", brand="Visit Amazon's Jane Doe Page"),
        meta(
            "D",
            title="Dot &amp; Dash &#39;n&#39; <b>bold</b>",
            category=["Toys", "Toys", "Games &amp; Puzzles", "</span></span>"],
        ),
        meta(
            "E",
            category=["Toys", "Fun for all ages.", "Puzzles"],
            rank="1,234 in Toys",
            price=".a-box-inner{color:#fff}",
        ),
        meta(
            "F", description=["<p>One.</p>", "", "Two &lt;br&gt; lines", "One."], feature=["Three"], price="$1,250.00"
        ),
        meta("A", title="A again"),
        {"title": "no id"},
        meta(7),  # type: ignore[arg-type]
    ]
    path = write(folder, lines)
    assert sniff(path) == "amazon-2018-metadata"
    metadata = read_metadata(path, sniff(path))
    assert list(metadata.ids) == list("ABCDEF")
    assert metadata.titles == (None, None, None, "Dot & Dash 'n' bold", None, None)
    assert metadata.brands == (None, "Acme", "Jane Doe", None, None, None)
    assert metadata.categories == ((), ("Toys",), (), ("Toys", "Games & Puzzles"), ("Toys",), ())
    assert metadata.descriptions[5] == "One.\nTwo lines\nThree"
    np.testing.assert_array_equal(metadata.prices, [np.nan] * 5 + [1250.0])
    assert metadata.report.dropped == {"on an item described before": 1}
    assert metadata.report.bad == 2


def test_2023_metadata_quirks(folder: Path) -> None:
    lines = [
        {"parent_asin": "A", "asin": "X", "title": "T", "store": "S", "categories": ["Beauty", "Hair"], "price": 9.99,
         "features": ["f1"], "description": ["d1", "d2"], "average_rating": 4.5, "rating_number": 10, "details": "{}"},
        {"parent_asin": "B", "title": None, "store": None, "categories": [], "main_category": "Toys", "price": "None"},
        {"parent_asin": "C", "price": "from 14.99", "main_category": None, "details": {"a": [1]}, "categories": None},
        {"parent_asin": "D", "title": 7, "store": ["S"], "categories": "Toys", "price": True, "description": {"a": 1}},
    ]  # fmt: skip
    path = write(folder, lines)
    assert sniff(path) == "amazon-2023-metadata"
    metadata = read_metadata(path, sniff(path))
    assert list(metadata.ids) == list("ABCD")
    assert metadata.titles == ("T", None, None, None)
    assert metadata.brands == ("S", None, None, None)
    assert metadata.categories == (("Beauty", "Hair"), ("Toys",), (), ())
    assert metadata.descriptions == ("d1\nd2\nf1", "", "", "")
    np.testing.assert_array_equal(metadata.prices, [9.99, np.nan, 14.99, np.nan])
    only = read_metadata(path, sniff(path), keep={"B"})
    assert (list(only.ids), only.report.dropped) == (["B"], {"on items that no one reviewed": 3})


@pytest.mark.parametrize(
    ("given", "price"),
    [
        ("$25.00", 25.0),
        ("$1,250.00", 1250.0),
        (" 7 ", 7.0),
        ("$10.00 - $20.00", 10.0),
        ("from 14.99", 14.99),
        (3, 3.0),
        (0.0, 0.0),
        *((junk, math.nan) for junk in ("", "None", "—", "free", "$", "1,2,3", "-5", ".a-box{x:1}", "9" * 500, "1e5")),
        *((junk, math.nan) for junk in (None, True, -1, math.inf, math.nan, 1e12, 10**400, [], {"a": 1})),
    ],
)
def test_prices(given: object, price: float) -> None:
    np.testing.assert_equal(parse_price(given), price)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>&;!-/= abscript\"'#39{}\n\t\x00é"), max_size=200) | st.text(max_size=100))
def test_cleaning_never_fails_and_leaves_no_markup(text: str) -> None:
    cleaned = clean_text(text, 1000)
    assert cleaned.isprintable()
    assert cleaned == " ".join(cleaned.split())
    assert "<script" not in cleaned.lower() or ">" not in cleaned.lower().split("<script", 1)[1]
    clean_title(text)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1e6).map(lambda price: round(price, 2)))
def test_written_prices_are_read_back(price: float) -> None:
    assert parse_price(f"${price:,.2f}") == pytest.approx(price)
    assert parse_price(price) == price


def test_prose_is_no_page_code() -> None:
    for title in (
        "Multi-Function (Print, Scan)",
        "I <3 New York",
        "3 < 4 & 5 > 4",
        "AT&T phone",
        "Rock & Roll; Vol. 1",
    ):
        assert clean_title(title) == title


@pytest.mark.timeout(60)  # quadratic work takes minutes
def test_long_and_hostile_descriptions_cost_little() -> None:
    for piece in ("<!--", "<script", "<", "&amp;", "<a ", "&#", "{", ".a{", "function(", "<script><"):
        assert len(description_of(piece * (1_000_000 // len(piece)))) <= MAX_DESCRIPTION
    assert len(description_of(["word " * 1000] * 50, [f"{row} " * 1000 for row in range(50)])) <= MAX_DESCRIPTION + 1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_items_or_the_documented_error(folder: Path, data: bytes) -> None:
    path = folder / "any.bin"
    path.write_bytes(data)
    for year in (2014, 2018, 2023):
        with contextlib.suppress(DataError):
            read_metadata(path, f"amazon-{year}-metadata", limits=Limits(bad_lines=10**6))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("title", "brand", "store", "category", "categories", "category_paths", "main_cat", "main_category", "price")


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "description", "feature", "features"]), json_values))
def test_fields_of_any_type_are_known_or_unknown_and_never_an_error(folder: Path, fields: dict[str, Any]) -> None:
    path = write(folder, [{"asin": "A", "parent_asin": "A", **fields}])
    for year in (2018, 2023):
        metadata = read_metadata(path, f"amazon-{year}-metadata")
        if metadata.report.bad:  # an integer beyond 64 bits is all that the JSON reader may refuse
            continue
        assert metadata.titles[0] is None or metadata.titles[0].isprintable()
        assert metadata.brands[0] is None or metadata.brands[0].isprintable()
        assert all(isinstance(name, str) and name for name in metadata.categories[0])
        assert metadata.prices[0] >= 0 or math.isnan(metadata.prices[0])
