"""Who trains what: a file in the folder of a run, so that machines on a shared folder do not train the same one.

A claim is made by creating `claim.json`, which only one can do, and kept fresh by touching it. It is stale, and may be
taken over, where the process that holds it is of this machine and gone, or where nobody has touched it for `STALE`
seconds: measured by the clock of the folder's own file system, so that clocks of machines may differ. After a machine
was lost, others wait that long; to have it sooner, delete the file.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from pathlib import Path
from types import TracebackType

from agentrec_env.data.cache import is_alive

NAME = "claim.json"
STALE = 600.0
"""Seconds without a touch after which a claim counts as left behind."""
TOUCH = 20.0
"""Seconds between touches."""


class Claim:
    """The right to work in a folder; open as a context, which gives it back."""

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    @classmethod
    def take(cls, folder: Path) -> Claim | None:
        """Claim a folder; None where somebody else has it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        claim = cls(path, secrets.token_hex(8))
        if claim._create():
            return claim
        before = _read(path)
        if before is None or not _is_stale(path, before):
            return None
        aside = path.with_name(f".{NAME}-{claim._token}")
        try:
            os.rename(path, aside)  # one of those who found it stale gets it
        except FileNotFoundError:
            return None
        if _read(aside) != before:  # somebody was faster, and this is the fresh claim
            os.rename(aside, path)
            return None
        aside.unlink()
        return claim if claim._create() else None

    @staticmethod
    def holder(folder: Path) -> str | None:
        """Who holds a folder, in words; None where nobody does, or did not go on."""
        told = _read(folder / NAME)
        if told is None or _is_stale(folder / NAME, told):
            return None
        return f"process {told.get('process')} on {told.get('machine')}"

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if (_read(self._path) or {}).get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        told = {"machine": platform.node(), "process": os.getpid(), "since": time.time(), "token": self._token}
        try:
            with self._path.open("x", encoding="utf-8") as file:
                json.dump(told, file)
        except FileExistsError:
            return False
        return True

    def _touch(self) -> None:
        while not self._over.wait(TOUCH):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return  # the folder is gone
            except OSError:
                continue  # a file system that does not answer now may do so later


def _read(path: Path) -> dict[str, object] | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _is_stale(path: Path, told: dict[str, object]) -> bool:
    process = told.get("process")
    if told.get("machine") == platform.node() and isinstance(process, int) and not is_alive(process):
        return True
    probe = path.with_name(f".{NAME}-now-{secrets.token_hex(4)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime > STALE
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
