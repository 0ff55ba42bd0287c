"""Lines of a plain or gzipped file, streamed in blocks of whole lines with every size bounded.

A gzip that expands without end, a line without end, a truncated or damaged archive and a file of another kind are
each stopped here, so that the readers above see clean blocks only. Memory is one block, whatever the file's size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

from agentrec_env.data.report import DataError, Limits, Tally

_BLOCK = 1 << 20
_RATIO_AFTER = 64 << 20
_BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed: decompress it, or use gzip",
    b"\xfd7zXZ": "xz-compressed: decompress it, or use gzip",
    b"BZh": "bzip2-compressed: decompress it, or use gzip",
    b"PAR1": "a Parquet file: give it the ending .parquet",
    b"ARROW1": "an Arrow file: save it as Parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x89HDF": "an HDF5 file: export it as CSV or Parquet",
    b"SQLite format 3": "an SQLite database: export it as CSV or Parquet",
}


def is_gzip(path: Path) -> bool:
    """Whether the file starts with gzip's magic bytes, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def expanded_chunks(path: Path, limits: Limits, chunk: int = _BLOCK) -> Iterator[bytes]:
    """The file's bytes, decompressed if it is a gzip.

    Raises `DataError` for an archive that is truncated, damaged, or expands beyond `limits`; a subclass
    `TruncatedError` for the first, so that a caller who counts lines can say how many were fine.
    """
    if not is_gzip(path):
        with open(path, "rb") as file:
            while data := file.read(chunk):
                yield data
        return
    from isal import igzip, isal_zlib

    damage = (OSError, zlib.error, cast(type[Exception], isal_zlib.error))  # the last two are unrelated types
    with (
        open(path, "rb") as raw,
        igzip.open(raw, "rb") as file,  # type: ignore[no-untyped-call]
        ThreadPoolExecutor(1) as ahead,  # decompresses the next chunk, without the GIL, while this one is parsed
    ):
        total = 0
        coming = ahead.submit(file.read, chunk)
        while True:
            try:
                data = coming.result()
            except EOFError:
                raise TruncatedError(f"{path}: the gzip ends too early") from None
            except damage as error:
                raise TruncatedError(f"{path}: the gzip is damaged ({error})") from None
            if not data:
                return
            total += len(data)
            _check_expansion(path, total, raw.tell(), limits)
            coming = ahead.submit(file.read, chunk)
            yield data


def _check_expansion(path: Path, total: int, packed: int, limits: Limits) -> None:
    if total > limits.expanded_bytes:
        raise DataError(
            f"{path}: expands to more than {limits.expanded_bytes:,} bytes. If the file is sound, raise"
            " Limits.expanded_bytes."
        )
    if total > _RATIO_AFTER and total > limits.expansion_ratio * packed:
        raise DataError(
            f"{path}: {packed:,} compressed bytes expanded to {total:,}, more than"
            f" {limits.expansion_ratio:g} times; this looks like a gzip bomb. If the file is sound, raise"
            " Limits.expansion_ratio."
        )


class TruncatedError(DataError):
    """A compressed file that ends too early or is damaged."""


def sound_lines(path: Path) -> int:
    """How many whole lines of a damaged gzip come before the damage, to within what 4 KiB expand to."""
    from isal import isal_zlib

    lines, unpack = 0, isal_zlib.decompressobj(wbits=31)
    with open(path, "rb") as raw, suppress(cast(type[Exception], isal_zlib.error)):
        while data := raw.read(4096):
            while data:
                lines += unpack.decompress(data).count(b"\n")
                data = b""
                if unpack.eof:
                    data, unpack = unpack.unused_data, isal_zlib.decompressobj(wbits=31)
    return lines


class LineStream:
    """Iterates over a file in blocks of whole lines, counting lines and rejecting over-long ones in a `Tally`.

    `blocks()` yields `(number, lines, block)`: `block` is bytes ending in a newline, `lines` the same split at its
    newlines, `number` the 1-based number of the first. Only newlines end lines (a carriage return before one is left
    to the parser, as white space).
    """

    def __init__(self, path: Path, limits: Limits, tally: Tally, line_bytes: int | None = None) -> None:
        self.path = path
        self.limits = limits
        self.tally = tally
        self.line_bytes = limits.line_bytes if line_bytes is None else line_bytes

    def blocks(self) -> Iterator[tuple[int, list[bytes], bytes]]:
        number = 1
        chunks = expanded_chunks(self.path, self.limits, min(_BLOCK, self.line_bytes))
        carry = b""
        skipping = False
        try:
            for index, chunk in enumerate(chunks):
                if index == 0:
                    chunk = check_kind(self.path, chunk)
                if skipping:
                    end = chunk.find(b"\n")
                    if end < 0:
                        continue
                    chunk, skipping = chunk[end + 1 :], False
                    number += 1
                block = carry + chunk if carry else chunk
                first = block.find(b"\n")
                if (first if first >= 0 else len(block)) > self.line_bytes:
                    self._reject_long(number, block)
                    carry, skipping = b"", first < 0
                    if skipping:
                        continue
                    block = block[first + 1 :]
                    number += 1
                cut = block.rfind(b"\n") + 1
                carry = block[cut:]
                if cut:
                    block = block[:cut]
                    lines = block.split(b"\n")
                    lines.pop()
                    yield number, lines, block
                    number += len(lines)
            if carry:
                yield number, [carry], carry + b"\n"
        except TruncatedError as error:
            sound = sound_lines(self.path)
            raise TruncatedError(
                f"{error}, after {sound:,} whole lines that were fine. Download the file again, or cut it back"
                f" to what is sound: gzip -dc FILE | head -n {sound} > NEW"
            ) from None

    def lines(self, strip: bool = True) -> Iterator[tuple[int, bytes]]:
        """Each line with its number: stripped and blank ones left out, or with `strip=False` whole with its end."""
        for number, lines, _ in self.blocks():
            for offset, line in enumerate(lines):
                if not strip:
                    yield number + offset, line + b"\n"
                elif line := line.strip():
                    yield number + offset, line

    def _reject_long(self, number: int, block: bytes) -> None:
        self.tally.lines += 1
        self.tally.reject(number, f"longer than {self.line_bytes:,} bytes", block[:200])


def check_kind(path: Path, head: bytes) -> bytes:
    """`head`, the file's first expanded bytes, without a byte order mark; `DataError` if it is no text file."""
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {kind}")
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not data: the download went wrong; fetch it again")
    return head.removeprefix(_BOM)
