"""A polite end: SIGTERM and Ctrl-C ask a run to stop, and it does at the next point from which it can go on."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any


class Stopped(Exception):
    """The process was asked to stop."""


class Interrupt:
    """Open as a context; a second Ctrl-C ends the process as usual. Outside the main thread nothing is caught."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT)
            self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask for a stop, as a signal does."""
        self._asked.set()

    def check(self, _: object = None) -> None:
        """Raise Stopped where the run is to stop."""
        if self.asked:
            raise Stopped

    def _ask(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self.asked:
            raise KeyboardInterrupt
        self.ask()
