"""Downloads from a real HTTP server on loopback: whole, broken half way, wrong, missing, changed meanwhile, killed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from agentrec_env.data.cache import cache_dir
from agentrec_env.data.categories import CATEGORIES, EDITIONS, find_category
from agentrec_env.data.download import DownloadError, download
from agentrec_env.data.load import load
from agentrec_env.data.report import DataError

CHUNK = 1 << 16
REVIEWS, META = "Gift_Cards.jsonl.gz", "meta_Gift_Cards.jsonl.gz"


def _payloads() -> dict[str, bytes]:
    noise = np.random.default_rng(0).random((4000, 8)).tolist()
    reviews = [
        {"user_id": f"U{row % 50}", "parent_asin": f"I{row % 80}", "timestamp": 10**12 + row, "text": str(text)}
        for row, text in enumerate(noise)
    ]
    items = [{"parent_asin": f"I{row}", "title": f"Thing {row}"} for row in range(80)]
    return {
        name: gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())
        for name, records in ((f"/review_categories/{REVIEWS}", reviews), (f"/meta_categories/{META}", items))
    }


class Shop(ThreadingHTTPServer):
    """A server with faults to order: `breaks` lists after how many bytes each next answer breaks off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = _payloads()
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.validator = "ETag"
        self.pause = 0.0
        self.requests: list[tuple[str, str | None, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Shop
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        data = self.server.files.get(self.path)
        asked = self.headers.get("Range")
        status = self.server.statuses.pop(0) if self.server.statuses else 200 if data is not None else 404
        start = 0
        tag = f'"{hashlib.sha256(data or b"").hexdigest()[:12]}"'
        if status == 200 and data is not None and asked and self.server.ranges and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            status = 206 if start < len(data) else 416
        self.server.requests.append((self.path, asked, status))
        self.send_response(status)
        body = data[start:] if data is not None and status in (200, 206) else b"no"
        if status in (200, 206) and self.server.validator:
            self.send_header(self.server.validator, tag)
        if data is not None and status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if data is not None and status == 416:
            self.send_header("Content-Range", f"bytes */{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status in (200, 206) and self.server.breaks:
            self.wfile.write(body[: self.server.breaks.pop(0)])
            self.wfile.flush()
            time.sleep(self.server.pause)
            self.close_connection = True
        else:
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("AGENTREC_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    shop = Shop()
    thread = threading.Thread(target=shop.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shop
    shop.shutdown()
    shop.server_close()
    thread.join()


def fetch(server: Shop, **arguments: object) -> Path:
    return download("Gift_Cards", base_url=server.url, **{"wait": 0.0, "timeout": 5.0, **arguments})  # type: ignore[arg-type]


def whole(server: Shop, folder: Path) -> bool:
    return all((folder / Path(name).name).read_bytes() == data for name, data in server.files.items())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_category_is_fetched_and_loaded_by_name(server: Shop) -> None:
    folder = fetch(server)
    assert folder == cache_dir() / "downloads" / "2023" / "Gift_Cards"
    assert whole(server, folder)
    assert names(folder) == [REVIEWS, "download.json", META]
    record = json.loads((folder / "download.json").read_text())
    assert record[META]["sha256"] == hashlib.sha256(server.files[f"/meta_categories/{META}"]).hexdigest()
    dataset = load("gift cards")
    assert (dataset.num_users, dataset.num_items) == (50, 80)
    assert set(dataset.items.titles) == {f"Thing {i}" for i in range(80)}


def test_what_is_there_is_not_fetched_again(server: Shop) -> None:
    folder = fetch(server)
    server.requests.clear()
    fetch(server)
    assert server.requests == []
    (folder / META).unlink()
    fetch(server)
    assert [request[0] for request in server.requests] == [f"/meta_categories/{META}"]
    (folder / META).write_bytes(b"tampered")
    fetch(server)
    assert whole(server, folder)


def test_a_broken_transfer_goes_on_where_it_stopped(server: Shop) -> None:
    size = len(server.files[f"/review_categories/{REVIEWS}"])
    assert size > 5 * CHUNK
    server.breaks = [2 * CHUNK + 5, CHUNK]
    folder = fetch(server)
    assert whole(server, folder)
    assert [request[1:] for request in server.requests[:3]] == [
        (None, 200),
        (f"bytes={2 * CHUNK}-", 206),
        (f"bytes={3 * CHUNK}-", 206),
    ]
    assert names(folder) == [REVIEWS, "download.json", META]


def test_a_transfer_that_stays_broken_is_kept_for_the_next_command(server: Shop) -> None:
    server.breaks = [2 * CHUNK] + [0] * 4
    folder = cache_dir() / "downloads" / "2023" / "Gift_Cards"
    with pytest.raises(
        DownloadError, match=rf"\(.*; 5 tries\). {2 * CHUNK:,} bytes have arrived .* same command again"
    ):
        fetch(server)
    assert REVIEWS not in names(folder)
    with pytest.raises(DataError, match="holds no review file"):
        load(folder)
    server.requests.clear()
    fetch(server)
    assert server.requests[0][1:] == (f"bytes={2 * CHUNK}-", 206)
    assert whole(server, folder)


@pytest.mark.parametrize("fault", ["no ranges", "no validator"])
def test_a_server_that_cannot_resume_is_asked_for_the_whole(server: Shop, fault: str) -> None:
    server.ranges = fault != "no ranges"
    server.validator = "" if fault == "no validator" else "ETag"
    server.breaks = [1000]
    folder = fetch(server)
    assert whole(server, folder)
    assert [request[2] for request in server.requests] == [200, 200, 200]


def test_a_file_that_changed_meanwhile_is_not_glued_together(server: Shop) -> None:
    server.breaks = [1000]
    with pytest.raises(DownloadError):
        fetch(server, retries=0)
    path = f"/review_categories/{REVIEWS}"
    server.files[path] = gzip.compress(gzip.decompress(server.files[path])[: 1 << 16].rsplit(b"\n", 1)[0] + b"\n")
    assert whole(server, fetch(server))


def test_a_transfer_that_was_complete_when_it_was_killed(server: Shop) -> None:
    folder = cache_dir() / "downloads" / "2023" / "Gift_Cards"
    folder.mkdir(parents=True)
    data = server.files[f"/review_categories/{REVIEWS}"]
    (folder / f".{REVIEWS}.part").write_bytes(data)
    (folder / f".{REVIEWS}.part.validator").write_text(f'"{hashlib.sha256(data).hexdigest()[:12]}"')
    assert whole(server, fetch(server))
    assert [request[2] for request in server.requests] == [416, 200]
    assert names(folder) == [REVIEWS, "download.json", META]


def test_a_passing_server_error_is_retried(server: Shop) -> None:
    server.statuses = [503, 500]
    assert whole(server, fetch(server))
    server.statuses = [503] * 9
    with pytest.raises(DownloadError, match="HTTP 503; 3 tries"):
        fetch(server, folder=cache_dir() / "other", retries=2)


def test_a_wrong_hash_is_refused_and_nothing_is_left(server: Shop) -> None:
    folder = cache_dir() / "mine"
    with pytest.raises(DownloadError, match=r"its SHA-256 is not 0000.* was thrown away"):
        fetch(server, folder=folder, hashes={REVIEWS: "sha256:" + "0" * 64})
    assert names(folder) == []
    good = hashlib.sha256(server.files[f"/review_categories/{REVIEWS}"]).hexdigest().upper()
    assert whole(server, fetch(server, folder=folder, hashes={REVIEWS: good}))
    with pytest.raises(DataError, match=r"unknown file to check 'Gift_Card.jsonl.gz'\. Did you mean"):
        fetch(server, hashes={"Gift_Card.jsonl.gz": good})


def test_the_first_hash_holds_for_later_downloads(server: Shop) -> None:
    folder = fetch(server)
    (folder / META).unlink()
    server.files[f"/meta_categories/{META}"] = gzip.compress(b'{"parent_asin": "other"}\n')
    with pytest.raises(DownloadError, match=r"delete .*download.json or give the new hash"):
        fetch(server)
    assert META not in names(folder)
    (folder / "download.json").unlink()
    assert whole(server, fetch(server))


def test_a_missing_file_says_where_to_look(server: Shop) -> None:
    server.files.clear()
    with pytest.raises(DownloadError, match=r"does not exist \(HTTP 404\).*--base-url"):
        fetch(server)
    assert len(server.requests) == 1


def test_a_web_page_in_place_of_the_file_is_refused(server: Shop) -> None:
    server.files[f"/review_categories/{REVIEWS}"] = b"<html>moved</html>"
    folder = cache_dir() / "page"
    with pytest.raises(DownloadError, match="no gzip file"):
        fetch(server, folder=folder)
    assert [name for name in names(folder) if not name.endswith(".validator")] == []


def test_a_server_that_is_not_there(server: Shop) -> None:
    with pytest.raises(DownloadError, match=r"ConnectionError; 2 tries\). 0 bytes have arrived"):
        download("Gift Cards", base_url="http://127.0.0.1:9", wait=0.0, retries=1, timeout=2.0)


def test_a_killed_download_is_taken_up_again(server: Shop) -> None:
    server.breaks, server.pause = [2 * CHUNK], 5.0
    code = f"from agentrec_env.data.download import download; download('Gift_Cards', base_url={server.url!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    folder = cache_dir() / "downloads" / "2023" / "Gift_Cards"
    part = folder / f".{REVIEWS}.part"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert REVIEWS not in names(folder)
    arrived = part.stat().st_size
    assert 0 < arrived <= 2 * CHUNK
    server.requests.clear()
    assert whole(server, fetch(server))
    assert server.requests[0][1:] == (f"bytes={arrived}-", 206)


def test_unknown_names_say_what_is_allowed() -> None:
    with pytest.raises(DataError, match=r"unknown category of edition 2023 'Gift_Crads'. Did you mean 'Gift_Cards'\?"):
        download("Gift_Crads")
    with pytest.raises(DataError, match="It is in edition 2018: add --edition 2018"):
        download("Luxury Beauty")
    with pytest.raises(DataError, match="unknown edition '2019'"):
        download("Gift_Cards", "2019")


def test_every_category_is_found_however_it_is_written() -> None:
    assert {edition: len(names) for edition, names in CATEGORIES.items()} == {"2014": 24, "2018": 29, "2023": 34}
    for edition, categories in CATEGORIES.items():
        assert EDITIONS[edition].base_url.startswith("https://")
        for category in categories:
            for name in (category, category.lower(), category.replace("_", " "), category.replace("_and_", " & ")):
                assert find_category(name, edition) == category
        assert find_category("nothing", edition) is None
