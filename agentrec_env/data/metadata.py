"""Item metadata of the three McAuley releases, cleaned of what the shop's pages left in it.

Read: title, brand (`store`), category path, price, description and features. Not read at all: `average_rating`,
`rating_number`, `rank`/`salesRank`, `also_buy`, `also_view` and `related`. They are totals of the day the dump was
made, so for any earlier interaction they tell the future; the as-of views recompute what may be known of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.amazon import reason, valid_id
from agentrec_env.data.lines import LineStream
from agentrec_env.data.literal import parse_literal
from agentrec_env.data.report import Limits, ReadReport, Tally

MAX_DESCRIPTION = 10_000
MAX_TITLE = 2_000
MAX_PRICE = 10_000_000.0
_MAX_CATEGORY = 60
_MAX_DEPTH = 12


class _Meta(msgspec.Struct):
    asin: Any = None
    parent_asin: Any = None
    title: Any = None
    brand: Any = None
    store: Any = None
    category: Any = None
    categories: Any = None
    category_paths: Any = None
    main_cat: Any = None
    main_category: Any = None
    price: Any = None
    description: Any = None
    feature: Any = None
    features: Any = None


@dataclass(frozen=True, eq=False)
class Metadata:
    """What a metadata file says of its items, one entry an item, in file order; None, (), nan or "" where unknown."""

    ids: Sequence[str]
    titles: Sequence[str | None]
    brands: Sequence[str | None]
    categories: Sequence[tuple[str, ...]]
    prices: NDArray[np.float64]
    descriptions: Sequence[str]
    report: ReadReport


def read_metadata(
    path: Path | str, format: str, keep: Collection[str] | None = None, limits: Limits | None = None
) -> Metadata:
    """Read a metadata file of a known format (see `agentrec_env.data.sniff`).

    Args:
        path: file, gzip or plain.
        format: "amazon-2014-metadata", "amazon-2018-metadata" or "amazon-2023-metadata".
        keep: only these item ids, where given; the others are counted as dropped.
        limits: bounds on the input.

    The id is `parent_asin` in 2023 files and `asin` in the others. Of several lines on one item the first counts.
    A field of an unexpected type is unknown; a line that is no record, or has no usable id, is bad.

    Raises `DataError` when more lines are bad than `limits` allow, or for a damaged file.
    """
    path = Path(path)
    limits = limits or Limits()
    tally = Tally(str(path), limits)
    decoder = msgspec.json.Decoder(_Meta)
    literals = format == "amazon-2014-metadata"
    key = "parent_asin" if format == "amazon-2023-metadata" else "asin"
    rows: dict[str, tuple[str | None, str | None, tuple[str, ...], float, str]] = {}
    unwanted = repeats = 0
    for number, line in LineStream(path, limits, tally).lines():
        tally.lines += 1
        try:
            record = _decode(decoder, line, literals, limits)
            item = getattr(record, key)
            if not isinstance(item, str) or not valid_id(item):
                raise ValueError(f"{key} is missing, or is no usable id")
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            tally.reject(number, reason(error), line)
            continue
        if keep is not None and item not in keep:
            unwanted += 1
        elif item in rows:
            repeats += 1
        else:
            rows[item] = (
                clean_title(record.title),
                clean_brand(record.store if record.store is not None else record.brand),
                category_path(record),
                parse_price(record.price),
                description_of(record.description, record.features, record.feature),
            )
    tally.drop("on items that no one reviewed", unwanted)
    tally.drop("on an item described before", repeats)
    titles, brands, categories, prices, descriptions = zip(*rows.values(), strict=True) if rows else ((),) * 5
    report = tally.finish(format, len(rows))
    return Metadata(list(rows), titles, brands, categories, np.array(prices, np.float64), descriptions, report)


def _decode(decoder: msgspec.json.Decoder[_Meta], line: bytes, literals: bool, limits: Limits) -> _Meta:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        if not literals:
            raise
    record = parse_literal(line, limits.literal_bytes)
    if not isinstance(record, dict):
        raise ValueError("a Python literal, but no dict")
    return _Meta(**{name: record[name] for name in _Meta.__struct_fields__ if name in record})


_BLOCK = re.compile(r"<(script|style)\b[^<]*+(?:<(?!/\1\b)[^<]*+)*+(?:</\1\s*>|$)|<!--.*?(?:-->|$)", re.I | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*+(?:>|$(?<=[\"'=]))|<![^<>]*+>")
_PAGE_CODE = re.compile(
    r"getTime\s*\(|function\s*\w*\s*\([^()]{0,200}\)\s*\{|\bvar\s+\w+\s*="
    r"|(?:^|[}\s,])[.#@][\w-]+[^{}<>]{0,80}\{[^{}]{0,80}:|<!doctype|\b(?:document|window)\.\w+\s*[=(]",
    re.IGNORECASE,
)


def clean_text(value: Any, limit: int) -> str:
    """A string without tags, page code blocks, entities and control characters, white space made single.

    At most `limit` characters of it are looked at; anything but a string gives "".
    """
    if not isinstance(value, str):
        return ""
    text = value[:limit]
    # Dumps hold both tags and escaped tags, and entities escaped twice: tags go before and after unescaping.
    for _ in range(2):
        if "<" in text:
            text = _TAG.sub(" ", _BLOCK.sub(" ", text))
        if "&" in text:
            text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    text = " ".join(text.split())
    if not text.isprintable():
        text = " ".join("".join(char for char in text if char.isprintable()).split())
    return text


def is_page_code(text: str) -> bool:
    """Whether a text is script or style that the crawler took for content."""
    # Code holds one of these; plain prose, which the expression is slow on, rarely does.
    return ("=" in text or "{" in text or "<!" in text) and bool(_PAGE_CODE.search(text[:MAX_DESCRIPTION]))


def clean_title(value: Any) -> str | None:
    """A readable title; None for a missing one, page script, or a bare opening tag such as `<span class=`."""
    if not isinstance(value, str) or is_page_code(value) or re.match(r"\s*<(?:span|div|img)\b[^>]*(?:>\s*)?$", value):
        return None
    return clean_text(value, MAX_TITLE) or None


def clean_brand(value: Any) -> str | None:
    """A brand or store name, without the page's "by" and "Visit Amazon's ... Page"."""
    if not isinstance(value, str) or is_page_code(value):
        return None
    text = clean_text(value, 200)
    text = re.sub(r"^by\s+(?=\S)", "", text)
    text = re.sub(r"^Visit Amazon's (.+) Page$", r"\1", text)
    return text or None


def category_path(record: Any) -> tuple[str, ...]:
    """The item's first category path, general to specific.

    2018 pages leaked feature bullets and closing tags into the path: it ends before the first entry that holds a tag,
    is longer than 60 characters, or ends like a sentence. An entry equal to the one before it is left out. Where
    there is no path, the main category is the path.
    """
    path = record.category_paths or record.categories or record.category
    if isinstance(path, (list, tuple)) and path and isinstance(path[0], (list, tuple)):
        path = path[0]
    names: list[str] = []
    for entry in path if isinstance(path, (list, tuple)) else ():
        if not isinstance(entry, str) or "<" in entry or len(names) == _MAX_DEPTH:
            break
        name = clean_text(entry, 10 * _MAX_CATEGORY)
        if not name or len(name) > _MAX_CATEGORY or name.endswith((".", "!", "?")):
            break
        if not names or names[-1] != name:
            names.append(name)
    if not names:
        main = clean_text(record.main_category or record.main_cat, 10 * _MAX_CATEGORY)
        names = [main] if main and len(main) <= _MAX_CATEGORY else []
    return tuple(names)


_PRICE = re.compile(
    r"(?:from\s*)?\$?\s*(\d{1,3}(?:,\d{3})+(?:\.\d{1,4})?|\d{1,9}(?:\.\d{1,4})?)(?:\s*[-–]\s*\$?\s*[\d,.]+)?", re.I
)


def parse_price(value: Any) -> float:
    """A price in dollars, nan where there is none.

    Numbers and strings such as "$1,250.00" are read. A range ("$10.00 - $20.00") and "from 10.00" give the lower
    price, the one that the shop shows first. Page code, "None", negative, infinite and absurd values give nan.
    """
    if isinstance(value, bool):
        return float("nan")
    if isinstance(value, str):
        match = _PRICE.fullmatch(value.strip()) if len(value) <= 64 else None
        value = match.group(1).replace(",", "") if match else "nan"
    elif not isinstance(value, (int, float)):
        return float("nan")
    try:
        price = float(value)
    except OverflowError:
        return float("nan")
    return price if 0 <= price <= MAX_PRICE else float("nan")


def description_of(*fields: Any) -> str:
    """Description paragraphs, then features, one a line, at most `MAX_DESCRIPTION` characters; page code left out."""
    paragraphs: list[str] = []
    room = MAX_DESCRIPTION
    for field in fields:
        for value in (field,) if isinstance(field, str) else field if isinstance(field, (list, tuple)) else ():
            if room <= 0:
                break
            text = clean_text(value, room)
            if text and text not in paragraphs and not is_page_code(text):
                paragraphs.append(text)
                room -= len(text) + 1
    return "\n".join(paragraphs)
