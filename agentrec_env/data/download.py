"""Fetching a category's two files from where the Amazon Reviews project publishes them.

pooch checks the hash and moves the file into place; the transfer itself is ours, because it must go on where a broken
one stopped: what has arrived stays in a `.part` file and is continued with an HTTP range request.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentrec_env.data.categories import CATEGORIES, EDITIONS, category_folder, find_category
from agentrec_env.data.report import DataError
from agentrec_env.registry import did_you_mean

_log = logging.getLogger(__name__)
_CHUNK = 1 << 16  # what a broken transfer loses at most: an unfinished chunk is thrown away
_RECORD = "download.json"


class DownloadError(DataError):
    """A file that could not be fetched, or is not what it should be. What had arrived is kept for the next try."""


def download(
    category: str,
    edition: str = "2023",
    *,
    folder: str | Path | None = None,
    base_url: str | None = None,
    hashes: Mapping[str, str] | None = None,
    retries: int = 4,
    wait: float = 1.0,
    timeout: float = 60.0,
    progress: bool = False,
) -> Path:
    """Fetch a category's reviews and metadata, and return the folder that holds them, ready for `load`.

    Args:
        category: such as "Gift_Cards"; case, blanks and & do not matter.
        edition: "2014", "2018" (both 5-core) or "2023" (all reviews).
        folder: where to put the files; by default the cache, where `load` finds the category by its name.
        base_url: another place with the same layout, such as a mirror.
        hashes: file name -> "sha256:..." or a bare SHA-256. The project publishes none; without one, the hash of the
            first download is written to `download.json` beside the files and a later download must match it.
        retries: how often a broken transfer is taken up again.
        wait: seconds before the first retry, doubled each time.
        timeout: seconds without a byte after which a transfer counts as broken.
        progress: show a progress bar.

    A file that is there and matches its hash is not fetched again. Raises `DownloadError`: unreachable, not found,
    wrong hash, not a gzip; `DataError`: unknown category or edition. No file is ever left half-written under its name.
    """
    if edition not in EDITIONS:
        raise DataError(did_you_mean("edition", edition, EDITIONS))
    name = find_category(category, edition)
    if name is None:
        elsewhere = [year for year in CATEGORIES if find_category(category, year)]
        hint = f"It is in edition {' and '.join(elsewhere)}: add --edition {elsewhere[-1]}." if elsewhere else ""
        raise DataError(did_you_mean(f"category of edition {edition}", category, CATEGORIES[edition], hint))
    target = Path(folder).expanduser() if folder is not None else category_folder(edition, name)
    target.mkdir(parents=True, exist_ok=True)
    place = EDITIONS[edition]
    base = (base_url or place.base_url).rstrip("/")
    urls = [f"{base}/{pattern.format(name)}" for pattern in (place.reviews, place.metadata)]
    given = dict(hashes or {})
    if unknown := set(given) - {url.rsplit("/", 1)[1] for url in urls}:
        raise DataError(did_you_mean("file to check", sorted(unknown)[0], [url.rsplit("/", 1)[1] for url in urls]))
    known = _read_record(target)
    for url in urls:
        file = url.rsplit("/", 1)[1]
        path = target / file
        expected = given.get(file) or known.get(file, {}).get("sha256")
        _fetch(url, path, expected, _Transfer(retries, wait, timeout, progress))
        known[file] = {"url": url, "bytes": path.stat().st_size, "sha256": _sha256(path)}
        _write_record(target, known)
    return target


def _fetch(url: str, path: Path, expected: str | None, transfer: _Transfer) -> None:
    import pooch

    if expected is not None:
        expected = expected.lower().removeprefix("sha256:")
    part = path.with_name(f".{path.name}.part")

    def arrived(url: str, output_file: Any, pooch: Any) -> None:
        os.replace(part, output_file)

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        if not path.exists() or (expected is not None and _sha256(path) != expected):
            path.unlink(missing_ok=True)
            transfer.fetch(url, part)
        known_hash = f"sha256:{expected}" if expected else None
        pooch.retrieve(url, known_hash, fname=path.name, path=path.parent, downloader=arrived)
    except DataError:
        raise
    except ValueError:
        raise DownloadError(
            f"{url} is not the file that was expected: its SHA-256 is not {expected}. It was thrown away. If the"
            f" publisher has replaced the file, delete {path.parent / _RECORD} or give the new hash."
        ) from None
    except OSError as error:
        raise DownloadError(f"{path} cannot be written: {error}") from None


@dataclass(frozen=True)
class _Transfer:
    """A transfer that goes on where it broke off; the arguments are those of `download`."""

    retries: int
    wait: float
    timeout: float
    progress: bool

    def fetch(self, url: str, part: Path) -> None:
        """Bring the whole file to `part`, using what lies there already. Raises `DownloadError`."""
        for attempt in range(self.retries + 1):
            problem = self._once(url, part)
            if problem is None:
                break
            if attempt == self.retries:
                arrived = part.stat().st_size if part.exists() else 0
                raise DownloadError(
                    f"{url} could not be fetched ({problem}; {self.retries + 1} tries). {arrived:,} bytes have arrived"
                    " and are kept: run the same command again to go on."
                )
            _log.info("%s: %s; trying again", url, problem)
            time.sleep(self.wait * 2**attempt)
        if not _is_gzip(part):
            part.unlink()
            raise DownloadError(f"{url} is no gzip file (a web page, perhaps); check the address")
        _validator(part).unlink(missing_ok=True)

    def _once(self, url: str, part: Path) -> str | None:
        """One request, going on where `part` ends. What went wrong, or None when the file is complete."""
        import requests

        have = part.stat().st_size if part.exists() else 0
        mark = _validator(part).read_text() if _validator(part).exists() else ""
        headers = {"Accept-Encoding": "identity", "User-Agent": "agentrec-env"}
        if have and mark:  # without a validator we could not tell whether the file has changed since
            headers |= {"Range": f"bytes={have}-", "If-Range": mark}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
                if response.status_code in (404, 410):
                    raise DownloadError(
                        f"{url} does not exist (HTTP {response.status_code}). The publisher may have moved it: see"
                        " https://amazon-reviews-2023.github.io, and give --base-url."
                    )
                if response.status_code == 416:  # nothing after what we have: complete, or the file has shrunk
                    if response.headers.get("Content-Range") == f"bytes */{have}":
                        return None
                    part.unlink(missing_ok=True)
                    return "the server has another file now"
                if response.status_code not in (200, 206):
                    return f"HTTP {response.status_code}"
                start = have if response.status_code == 206 else 0
                if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    part.unlink()
                    return "the server sent another range than asked"
                etag = response.headers.get("ETag", "")
                mark = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
                _validator(part).write_text(mark)
                length = response.headers.get("Content-Length")
                total = start + int(length) if length and length.isdigit() else None
                self._receive(response, part, start, total)
        except requests.RequestException as error:
            return type(error).__name__
        arrived = part.stat().st_size
        return None if total in (None, arrived) else f"broke off at {arrived:,} of {total:,} bytes"

    def _receive(self, response: Any, part: Path, start: int, total: int | None) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not self.progress) as bar, open(part, "r+b" if start else "wb") as file:
            task = bar.add_task(part.name.removeprefix(".").removesuffix(".part"), total=total, completed=start)
            file.seek(start)
            for data in response.iter_content(_CHUNK):
                file.write(data)
                file.flush()
                bar.advance(task, len(data))


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return msgspec.json.decode((folder / _RECORD).read_bytes(), type=dict[str, dict[str, Any]])
    except (OSError, msgspec.MsgspecError):
        return {}


def _write_record(folder: Path, record: dict[str, dict[str, Any]]) -> None:
    temporary = folder / f".{_RECORD}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
    os.replace(temporary, folder / _RECORD)
