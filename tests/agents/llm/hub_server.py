"""A hub on loopback that keeps what `huggingface_hub` commits to it and gives it out again."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"
REVISION = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """Repositories of the account "me": their files by name, and the messages of their commits."""

    daemon_threads = True

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.refused: list[str] = []
        """What was asked for that this hub does not have."""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._reply({"error": "Invalid username or password."}, 401)
            return
        match self._path():
            case ["api", "repos", "create"]:
                repo = f"me/{json.loads(body)['name']}"
                self.server.files.setdefault(repo, {})
                self._reply({"url": f"{self.server.url}/{repo}"})
            case ["api", "validate-yaml"]:
                self._reply({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", _]:
                files = json.loads(body)["files"]
                modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
                self._reply({"files": modes})
            case ["api", "models", owner, name, "commit", _]:
                header, *files = map(json.loads, body.splitlines())
                self.server.messages.append(header["value"]["summary"])
                for file in (line["value"] for line in files):
                    self.server.files[f"{owner}/{name}"][file["path"]] = base64.b64decode(file["content"])
                url = f"{self.server.url}/{owner}/{name}/commit/{REVISION}"
                self._reply({"commitUrl": url, "commitOid": REVISION, "success": True})
            case _:
                self._refuse()

    def do_GET(self) -> None:
        files: dict[str, bytes] = {}
        match path := self._path():
            case [owner, name, "resolve", *_] | ["api", "models", owner, name, *_]:
                files = self.server.files.get(f"{owner}/{name}", files)
        match path:
            case [""]:
                self._send(b"", {})
            case ["api", "models", owner, name, "tree", _]:
                listed = [(file, len(content), _oid(content)) for file, content in files.items()]
                self._reply([{"type": "file", "path": file, "size": size, "oid": oid} for file, size, oid in listed])
            case ["api", "models", owner, name, *_] if files:
                siblings = [{"rfilename": file} for file in files]
                self._reply({"id": f"{owner}/{name}", "sha": REVISION, "siblings": siblings})
            case [_, _, "resolve", _, file] if file in files:
                self._send(files[file], {"ETag": f'"{_oid(files[file])}"', "X-Repo-Commit": REVISION})
            case _:
                self._refuse()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _path(self) -> list[str]:
        return self.path.split("?")[0].split("/")[1:]

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _refuse(self) -> None:
        self.server.refused.append(f"{self.command} {self.path}")
        self._reply({"error": "Entry not found"}, 404)

    def _reply(self, body: Any, status: int = 200) -> None:
        self._send(json.dumps(body).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
