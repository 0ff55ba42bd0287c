"""The points of a check, tried one by one, and the error that lists those that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np


class ConformanceError(AssertionError):
    """What a check found. `failures` are the points that do not hold, `passed` those that do."""

    def __init__(self, subject: str, failures: Sequence[str], passed: Sequence[str] = ()) -> None:
        self.failures, self.passed = tuple(failures), tuple(passed)
        lines = "\n".join(f"- {failure}" for failure in failures)
        super().__init__(f"{subject}: {len(failures)} of {len(failures) + len(passed)} points do not hold:\n{lines}")


class Points:
    """Collects what held and what did not."""

    def __init__(self, subject: str) -> None:
        self.subject, self.passed, self.failures = subject, list[str](), list[str]()

    @contextmanager
    def point(self, name: str) -> Iterator[None]:
        """One point: whatever the block raises is a finding."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a plug-in raises is a finding
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            self.failures.append(f"{name}: {what or 'does not hold'}")
        else:
            self.passed.append(name)

    def result(self) -> list[str]:
        """The points that held; raises where any did not."""
        if self.failures:
            raise ConformanceError(self.subject, self.failures, self.passed)
        return self.passed


def assert_same(one: Any, two: Any, message: str) -> None:
    """Equal through and through, arrays included."""
    try:
        np.testing.assert_equal(one, two)
    except AssertionError:
        raise AssertionError(message) from None
