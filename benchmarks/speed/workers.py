"""Contenders in processes of their own that take turns: interleaved rounds, and each one's own peak of memory.

A process is made once, warmed up, and then works only while it is asked to, so that a slow moment of the machine meets
all contenders alike and no contender's memory counts for another.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import statistics
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

Job = Callable[..., Any]
_PATIENCE = 1800.0
"""Seconds that one answer may take."""


@dataclass(frozen=True)
class Memory:
    """Megabytes of one process."""

    before_mb: float
    """Peak of resident memory once modules and model were there."""
    peak_mb: float
    """Peak of resident memory in all."""
    device_mb: float | None = None
    """Peak of what torch allocated on the GPU."""


class Worker:
    """A process that makes a job and does it when asked.

    Args:
        make: Called in the process, with `arguments`; gives the job.
        arguments: For `make`.
        threads: Of torch, in the process.
    """

    def __init__(self, make: Callable[..., Job], arguments: Sequence[Any], threads: int) -> None:
        context = get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, tuple(arguments), threads), daemon=True)
        self._process.start()
        there.close()
        self._answer()

    def work(self, *arguments: Any) -> Any:
        """What the job returns."""
        self._here.send(arguments)
        return self._answer()

    def memory(self) -> Memory:
        """Of the process, from its beginning to now."""
        self._here.send(None)
        memory: Memory = self._answer()
        return memory

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        self._here.close()

    def _answer(self) -> Any:
        if not self._here.poll(_PATIENCE):
            raise TimeoutError(f"a contender said nothing for {_PATIENCE:.0f} s")
        try:
            good, value = self._here.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a contender's process ended with {self._process.exitcode} (out of memory?)") from None
        if not good:
            raise RuntimeError(f"a contender failed:\n{value}")
        return value


def take_turns(
    makers: Mapping[str, Callable[[], Worker]],
    rounds: int,
    together: bool,
    warm: Callable[[Worker], object],
    play: Callable[[str, Worker], object],
    finish: Callable[[str, Worker], object],
) -> None:
    """Warm up, play and finish with a worker of each name.

    Args:
        makers: Make the workers.
        rounds: How often each plays.
        together: All are there at once and play by turns; else one plays all its rounds before the next is made.
        warm: Done once with each worker, before any plays.
        play: Done once a round.
        finish: Done once with each worker, after all have played.
    """
    for names in [list(makers)] if together else [[name] for name in makers]:
        with ExitStack() as stack:
            workers = {name: stack.enter_context(makers[name]()) for name in names}
            for worker in workers.values():
                warm(worker)
            for _ in range(rounds):
                for name, worker in workers.items():
                    play(name, worker)
            for name, worker in workers.items():
                finish(name, worker)


def _serve(pipe: Connection, make: Callable[..., Job], arguments: tuple[Any, ...], threads: int) -> None:
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)
    try:
        job = make(*arguments)
        before = peak_mb()
        pipe.send((True, None))
        while True:
            asked = pipe.recv()
            pipe.send((True, _memory(before) if asked is None else job(*asked)))
    except EOFError:
        pass
    except Exception:  # noqa: BLE001 - the parent raises it
        pipe.send((False, traceback.format_exc()))


def _memory(before: float) -> Memory:
    import torch

    device = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
    return Memory(before, peak_mb(), device)


def peak_mb() -> float:
    """Peak of this process's resident memory, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss is inherited from the parent on Linux, VmHWM is this program's own
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    known = list(values)
    return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def ratios(seconds: Mapping[str, Sequence[float]], ours: str) -> dict[str, dict[str, float]]:
    """By contender: how many times the seconds of `ours` it took, round by round."""
    mine = seconds[ours]
    return {
        name: spread(a / b for a, b in zip(values, mine, strict=True))
        for name, values in seconds.items()
        if name != ours
    }


def cell(values: Mapping[str, float], form: str = ".2f") -> str:
    """A spread as text."""
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


def write_figures(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what figures were taken; packages that are not there are left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.import_module(name).__version__
        except ImportError:
            continue
    return {
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
