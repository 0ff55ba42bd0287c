"""One of several takes a folder, and what is left behind can be taken over."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from pathlib import Path

import pytest

from benchmarks import claims
from benchmarks.claims import NAME, STALE, Claim


def left_by(folder: Path, machine: str, process: int, age: float) -> None:
    """A claim that was last touched `age` seconds ago."""
    path = folder / NAME
    path.write_text(json.dumps({"machine": machine, "process": process, "token": "theirs"}))
    os.utime(path, (time.time() - age, time.time() - age))


def gone() -> int:
    """A process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(Claim.take(tmp_path / "run"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (claim,) = [each for each in taken if each is not None]
    with claim:
        assert Claim.holder(tmp_path / "run") == f"process {os.getpid()} on {platform.node()}"
        assert Claim.take(tmp_path / "run") is None
    assert Claim.holder(tmp_path / "run") is None
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("machine", "alive", "age", "free"),
    [
        (platform.node(), False, 0, True),
        (platform.node(), True, 0, False),
        ("elsewhere", False, STALE - 60, False),
        ("elsewhere", False, STALE + 60, True),
    ],
)
def test_what_is_left_behind_can_be_taken(tmp_path: Path, machine: str, alive: bool, age: float, free: bool) -> None:
    left_by(tmp_path, machine, os.getpid() if alive else gone(), age)
    assert (Claim.holder(tmp_path) is None) == free
    assert (Claim.take(tmp_path) is not None) == free
    token = json.loads((tmp_path / NAME).read_text())["token"]
    assert (token != "theirs") == free


def test_a_claim_is_kept_fresh_and_given_back_only_by_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "TOUCH", 0.01)
    claim = Claim.take(tmp_path)
    assert claim is not None
    with claim:
        os.utime(tmp_path / NAME, (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / NAME).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime > 0
        left_by(tmp_path, "elsewhere", 1, 0)  # somebody has taken it over
    assert json.loads((tmp_path / NAME).read_text())["token"] == "theirs"
