"""Trains the runs of an experiment: in order, in as many processes as asked for, each run once on all machines.

A run is claimed (`benchmarks.claims`), begun or resumed, and ends with `done.json`, which says what it started from and
what came out. Whoever finds all that is left claimed by others waits for them. A run that fails ends those after it
and no other; the next start tries it again. Machines that share the work must see the folder under the same path, which
stands in the settings of the runs that start from another; what is played afterwards each plays for itself.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim
from benchmarks.experiment import Run, differences, training_code
from benchmarks.records import write_text
from benchmarks.suite import TINY, files_digest

DONE, ORIGIN, ERROR, LOG = "done.json", "origin.json", "error.txt", "log.txt"
METRICS = "metrics.jsonl"
EVERY = 30.0
"""Seconds between lines of progress."""
LOOK = 2.0
"""Seconds between looks at what others have done."""
STOPPED, TAKEN = 3, 4
"""Exit codes: asked to stop; claimed by somebody else."""
GRACE = 300.0
"""Seconds that a run gets to reach its next safe point."""


class MixedRunError(ValueError):
    """A folder holds a run that was made otherwise; the message says how."""


def is_done(run: Run) -> bool:
    """Whether a run has ended."""
    return (run.folder / DONE).is_file()


def check(runs: Sequence[Run]) -> None:
    """Refuse folders that hold runs with other settings.

    Raises:
        MixedRunError: Says in what they differ.
    """
    for run in runs:
        if different := differences(run):
            raise MixedRunError(
                f"{run.folder} holds a run with other settings ({'; '.join(different)}); give those, or another "
                "folder with --training"
            )


def train(runs: Sequence[Run], jobs: int, say: Callable[[str], None]) -> dict[Path, str]:
    """Train what is not done; errors by folder of the runs that have not ended well.

    Args:
        runs: Each after the one that it starts from.
        jobs: Processes; 0 trains in this one.
        say: Tells people something.

    Raises:
        KeyboardInterrupt: This process was asked to stop; runs under way have saved a checkpoint.
    """
    pool = _Pool(runs, say)
    try:
        while pool.left() or pool.busy:
            ready = pool.ready()
            free = [run for run in ready if Claim.holder(run.folder) is None]
            if jobs <= 0 and free:
                pool.train_here(free[0])
                continue
            pool.begin(free[: max(0, jobs - len(pool.busy))])
            pool.wait(ready)
        return pool.errors
    finally:
        pool.stop()


class _Pool:
    """The runs, and the processes that train some of them."""

    def __init__(self, runs: Sequence[Run], say: Callable[[str], None]) -> None:
        self.errors: dict[Path, str] = {}
        self.busy: dict[Path, tuple[Run, BaseProcess]] = {}
        self._runs = runs
        self._say = say
        self._told = time.monotonic()
        self._waiting = ""

    def left(self) -> list[Run]:
        """Runs that have not ended and can still do so."""
        for run in self._runs:
            if run.after is not None and run.after.folder in self.errors and not is_done(run):
                self.errors[run.folder] = f"{run.after.label} failed"
        return [run for run in self._runs if not is_done(run) and run.folder not in self.errors]

    def ready(self) -> list[Run]:
        """Those that nothing of this process's keeps from being trained."""
        return [run for run in self.left() if run.folder not in self.busy and (run.after is None or is_done(run.after))]

    def train_here(self, run: Run) -> None:
        self._say(f"training {run.label}: {run.folder}")
        self._end(run, _attempt(run))

    def begin(self, runs: Sequence[Run]) -> None:
        """Train each in a process."""
        for run in runs:
            self._say(f"training {run.label}: {run.folder / LOG}")
            run.folder.mkdir(parents=True, exist_ok=True)
            process = multiprocessing.get_context("spawn").Process(target=_serve, args=(run,))
            process.start()
            self.busy[run.folder] = run, process

    def wait(self, ready: Sequence[Run]) -> None:
        """Wait a little for what is under way, here or, where nothing is, elsewhere."""
        if not self.busy:
            self._tell_of_others(ready)
            time.sleep(LOOK)
            return
        wait([process.sentinel for _, process in self.busy.values()], timeout=LOOK)
        for run, process in list(self.busy.values()):
            if process.exitcode is not None:
                del self.busy[run.folder]
                self._end(run, process.exitcode)
        if self.busy and time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            self._say("training " + ", ".join(f"{run.label} {_progress(run)}" for run, _ in self.busy.values()))

    def stop(self) -> None:
        """Ask processes to save what they have, and wait for it."""
        processes = [process for _, process in self.busy.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()

    def _tell_of_others(self, ready: Sequence[Run]) -> None:
        held = [(run.label, Claim.holder(run.folder)) for run in ready]
        told = "; ".join(f"{label} by {holder}" for label, holder in held if holder)
        if told and told != self._waiting:
            self._say(f"waiting for what others train: {told}")
        self._waiting = told

    def _end(self, run: Run, code: int) -> None:
        """Take note of how an attempt ended."""
        if code == TAKEN:
            return
        if code == STOPPED:
            raise KeyboardInterrupt
        if code == 0 and is_done(run):
            self._say(f"trained {run.label}: {_sentence(run)}")
            return
        path = run.folder / ERROR
        told = path.read_text(encoding="utf-8").strip() if path.is_file() else f"its process ended with code {code}"
        self.errors[run.folder] = told
        self._say(f"{run.label} failed: {told} (see {run.folder / LOG})")


def _serve(run: Run) -> None:
    """The process of a run, whose messages go to its log."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with (
        (run.folder / LOG).open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        code = _attempt(run)
    sys.exit(code)


def _follow(parent: BaseProcess) -> None:
    """Ask this process to stop when the one that started it is gone."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _attempt(run: Run) -> int:
    """Train a run as far as it gets, if nobody else does; an exit code."""
    claim = Claim.take(run.folder)
    if claim is None:
        return TAKEN
    with claim:
        if is_done(run):
            return 0
        (run.folder / ERROR).unlink(missing_ok=True)
        try:
            return 0 if _train(run) else STOPPED
        except KeyboardInterrupt:
            return STOPPED
        except Exception as error:  # noqa: BLE001 - one run must not end the others
            traceback.print_exc()
            write_text(run.folder / ERROR, f"{type(error).__name__}: {error}\n")
            return 1


def _train(run: Run) -> bool:
    """Train a run; whether it came to its end."""
    from dataclasses import replace

    from algos.config import CONFIG
    from algos.learner import Learner
    from algos.sft import SFT

    start = _start_digest(run)
    _record_origin(run, start)
    config = replace(run.config, resume=(run.folder / CONFIG).is_file())
    begin = time.time()
    trainer = SFT(config) if run.stage.algorithm == "sft" else Learner(config)
    figures = trainer.train()
    if trainer.stopped:
        return False
    outcome = {
        "start": start,
        "policy": files_digest(run.policy),
        "steps": run.config.steps,
        "seconds": time.time() - begin,
        "figures": {name: value for name, value in figures.items() if name.startswith("valid/")},
    }
    write_text(run.folder / DONE, json.dumps(outcome, indent=1) + "\n")
    return True


def _start_digest(run: Run) -> str:
    """Tells the policy that a run starts from: a hash of its files where they lie here, else its name."""
    folder = TINY if run.config.model == "tiny" else Path(run.config.model)
    return files_digest(folder) if folder.is_dir() else str(run.config.model)


def _record_origin(run: Run, start: str) -> None:
    """Keep what a run began with, or hold a run that goes on to it."""
    path = run.folder / ORIGIN
    before = _json(path)
    if before and before.get("start") != start:
        raise MixedRunError(
            f"{run.folder} began from another policy than {run.config.model} is now; delete the folder, or give "
            "another one with --training"
        )
    codes = [*before.get("code", []), training_code()]
    write_text(path, json.dumps({"start": start, "code": list(dict.fromkeys(codes))}, indent=1) + "\n")


def stale(run: Run) -> str | None:
    """Why a run that ended does not belong any more to what it starts from, itself or through others; None: it does."""
    if not is_done(run):
        return None
    began = outcome(run).get("start")
    if run.after is None:
        fits, label = began == _start_digest(run), str(run.config.model)
    else:
        fits, label = began == outcome(run.after).get("policy"), f"the policy of {run.after.label}"
    if not fits:
        return f"it began from {label}, which is another one now; delete {run.folder}"
    return None if run.after is None else stale(run.after)


def codes(runs: Sequence[Run]) -> set[str]:
    """Versions of the code that trained some runs."""
    return {code for run in runs for code in _json(run.folder / ORIGIN).get("code", [])}


def metrics(run: Run) -> list[Mapping[str, float]]:
    """The lines of a run's metrics, whole ones."""
    path = run.folder / METRICS
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _progress(run: Run) -> str:
    last = max((int(line.get("step", -1)) for line in metrics(run)[-2:]), default=-1)
    return f"{last + 1:,} of {run.config.steps:,} steps"


def outcome(run: Run) -> dict[str, Any]:
    """What a run that ended says of itself."""
    return _json(run.folder / DONE)


def _sentence(run: Run) -> str:
    told = outcome(run)
    value = told.get("figures", {}).get("valid/ndcg@10")
    judged = "" if value is None else f", N@10 {value:.4f} on valid tasks at the end"
    return f"{told.get('seconds', 0):,.0f} s{judged}"
