"""What people see while a run plays: a progress bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.runner import Update

PLAIN_EVERY = 5.0
"""Seconds between progress lines where the output is no terminal."""


class Display:
    """Open as a context.

    Args:
        console: Where it goes.
        total: Episodes to play.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._begin = self._said = time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, TextColumn("{task.description}", markup=False), console=console)
            self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Display:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, update: Update, skipped: int = 0, message: str = "") -> None:
        """Count played (or given up) episodes; `message` is printed whatever the display."""
        self._done += update.tasks + skipped
        if message:
            self._console.print(message, style="red", markup=False, highlight=False)
        if self._progress:
            self._progress.update(self._task, advance=update.tasks + skipped, description=update.unit.label)
        elif time.monotonic() - self._said > PLAIN_EVERY or self._done == self._total:
            self._said = time.monotonic()
            elapsed = self._said - self._begin
            left = elapsed * (self._total - self._done) / max(self._done, 1)
            guess = f", about {left:.0f} s left" if 10 * self._done > self._total else ""
            news = f"{self._done:,} of {self._total:,} episodes, {elapsed:.0f} s{guess}"
            self._console.print(f"{news}: {update.unit.label}", highlight=False, markup=False)
