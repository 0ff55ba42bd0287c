"""What a file is, told from its content: never from its name, which differs between mirrors of the same dump."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from agentrec_env.data.lines import LineStream, is_gzip
from agentrec_env.data.literal import parse_literal
from agentrec_env.data.report import DataError, Limits, Tally

_LOOKED_AT = 50
FORMATS = {
    "amazon-2014-reviews": "McAuley 2014 reviews (reviewerID, asin, overall, unixReviewTime, helpful)",
    "amazon-2018-reviews": "McAuley 2018 reviews (reviewerID, asin, overall, unixReviewTime, verified)",
    "amazon-2023-reviews": "McAuley 2023 reviews (user_id, parent_asin, rating, timestamp)",
    "amazon-2023-reviews-by-asin": "McAuley 2023 reviews without parent_asin (user_id, asin, rating, timestamp)",
    "amazon-2014-metadata": "McAuley 2014 metadata (one Python dict literal a line: asin, title, categories, ...)",
    "amazon-2018-metadata": "McAuley 2018 metadata (asin, title, category, brand, price, ...)",
    "amazon-2023-metadata": "McAuley 2023 metadata (parent_asin, title, categories, store, price, ...)",
    "csv": "CSV of one's own with a header naming user and item (rating and timestamp too, if there are any)",
    "parquet": "Parquet of one's own with columns user and item (rating and timestamp too, if there are any)",
}


def sniff(path: Path | str) -> str:
    """The format of a file: one of `FORMATS`. Raises `DataError` that lists them when it is none."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'missing'}, not a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes): the download or the export stopped before it began")
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    limits = Limits()
    failed = 0
    head: bytes | None = None
    for _, line in islice(LineStream(path, limits, Tally(str(path), limits)).lines(), _LOOKED_AT):
        head = head or line
        if (record := _record(line)) is not None:
            if format := _by_keys(record[0].keys(), record[1]):
                return format
            failed += 1
    if head is None:
        raise DataError(f"{path} holds no text" + (" once decompressed" if is_gzip(path) else ""))
    if not failed and head[:1] not in b"{[" and any(mark in head for mark in (b",", b"\t", b";", b"|")):
        return "csv"
    raise DataError(
        f"{path} is in no known format. It begins {head[:80].decode('utf-8', 'replace')!r}. Known formats:\n"
        + "\n".join(f"  {name}: {text}" for name, text in FORMATS.items())
    )


def _record(line: bytes) -> tuple[dict[str, Any], bool] | None:
    """The line as a dict, and whether it is a Python literal rather than JSON."""
    if not line.startswith(b"{"):
        return None
    try:
        record = msgspec.json.decode(line)
        literal = False
    except (msgspec.MsgspecError, ValueError, RecursionError):
        try:
            record, literal = parse_literal(line, Limits().literal_bytes), True
        except ValueError:
            return None
    return (record, literal) if isinstance(record, dict) else None


def _by_keys(keys: Any, literal: bool) -> str | None:
    if "reviewerID" in keys and "asin" in keys:
        return "amazon-2014-reviews" if "helpful" in keys else "amazon-2018-reviews"
    if "user_id" in keys and "parent_asin" in keys:
        return "amazon-2023-reviews"
    if "user_id" in keys and "asin" in keys:
        return "amazon-2023-reviews-by-asin"
    if "parent_asin" in keys:
        return "amazon-2023-metadata"
    if "asin" in keys:
        early = literal or {"categories", "salesRank", "related", "imUrl"} & set(keys)
        return "amazon-2014-metadata" if early else "amazon-2018-metadata"
    return None
