"""What a training run tells: JSON lines and TensorBoard for machines, a progress line with the time left for people.

metrics.jsonl holds what is the same whenever and wherever the run is done, timings.jsonl seconds and memory. A resumed
run cuts both back to the checkpoint it goes on from, so that each reads as that of one run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
PLAIN_SECONDS = 15.0
"""Between two lines of progress where the output is no terminal."""


class RunLog:
    """Open as a context.

    Args:
        folder: of the run.
        steps: steps of the whole run.
        done: steps done when it begins; later lines of an earlier attempt are dropped.
        console: where progress goes; None: standard error.
    """

    def __init__(self, folder: Path, steps: int, done: int = 0, console: Console | None = None) -> None:
        self._folder = folder
        self._steps = steps
        self._done = self._first = done
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._begin = time.monotonic()
        self._told = 0.0

    def __enter__(self) -> RunLog:
        from torch.utils.tensorboard import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        self._metrics, self._timings = (_cut(self._folder / name, self._done) for name in (METRICS, TIMINGS))
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._done)
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task("training", total=self._steps, completed=self._done)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._metrics.close()
        self._timings.close()
        self._board.close()

    def log(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Keep what `step` (0, 1, …) gave, and `timings`, which differ from run to run: a line of each file."""
        for file, figures in ((self._metrics, metrics), (self._timings, timings)):
            file.write(json.dumps({"step": step, **figures}) + "\n")
            file.flush()
        for name, value in {**metrics, **timings}.items():
            self._board.add_scalar(name, value, step)

    def advance(self, step: int, text: str) -> None:
        """Tell people that `step` is done."""
        self._done = step + 1
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, description=text)
            return
        now = time.monotonic()
        if now - self._told >= PLAIN_SECONDS or self._done == self._steps:
            self._told = now
            took = now - self._begin
            left = took / max(1, self._done - self._first) * (self._steps - self._done)
            self.say(f"step {self._done:,} of {self._steps:,}: {text}, {_span(took)} gone, {_span(left)} left")

    def say(self, text: str) -> None:
        """A line for people."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def sync(self) -> None:
        """Have the disk hold what was logged, before a checkpoint that counts on it."""
        os.fsync(self._metrics.fileno())
        self._board.flush()


def _cut(path: Path, done: int) -> TextIO:
    """Keep the whole lines of steps below `done`, and open the file for those that follow."""
    if path.exists():
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < done:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # cut off by a kill
        temporary = path.with_name(f".{path.name}-new")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
    return path.open("a", encoding="utf-8")


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
