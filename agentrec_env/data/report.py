"""What reading a source cost: how many lines there were, which were bad, what was dropped and why.

Readers never lose a line silently: each one ends as kept, bad or dropped, and the three add up to the number of
lines read. The limits that turn bad input into an error live here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

SHOWN_BAD_LINES = 10
EXCERPT = 120


class DataError(ValueError):
    """Input that cannot be used: the message says what was given, what is allowed and what to do next."""


@dataclass(frozen=True)
class Limits:
    """How much a source may ask of the reader before reading stops with a `DataError`.

    line_bytes: longest line that is parsed; longer ones count as bad lines.
    literal_bytes: the same for 2014 metadata, whose lines are Python literals (parsing them takes far more memory).
    expanded_bytes: most bytes that a compressed file may expand to.
    expansion_ratio: most expanded bytes per compressed byte, looked at once 64 MiB have been expanded. Review files
        reach 4 to 20; deflate can reach 1032.
    bad_lines, bad_share: reading fails when the bad lines are more than `bad_lines` and more than `bad_share` of
        all lines.
    """

    line_bytes: int = 4 << 20
    literal_bytes: int = 256 << 10
    expanded_bytes: int = 256 << 30
    expansion_ratio: float = 100.0
    bad_lines: int = 10
    bad_share: float = 0.01

    def __post_init__(self) -> None:
        for name in ("line_bytes", "literal_bytes", "expanded_bytes", "expansion_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Limits.{name} must be positive, got {getattr(self, name)!r}")
        if self.bad_lines < 0 or not 0 <= self.bad_share <= 1:
            raise ValueError("Limits.bad_lines must be >= 0 and Limits.bad_share within 0..1")


@dataclass(frozen=True)
class BadLine:
    """One line that could not be used. `line` counts from 1 in the file, header and blank lines included."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class ReadReport:
    """The account of one file: `lines == kept + bad + sum(dropped.values())`; blank lines are not counted."""

    source: str
    format: str
    lines: int
    kept: int
    bad: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """One sentence: kept of lines, then what was lost and why."""
        lost = [f"{count:,} {reason}" for reason, count in self.dropped.items()]
        if self.bad:
            first = self.bad_lines[0]
            lost.insert(0, f"{self.bad:,} bad (line {first.line}: {first.reason})")
        return f"{self.source}: {self.kept:,} of {self.lines:,} records kept" + (
            f"; left out: {', '.join(lost)}" if lost else ""
        )


@dataclass(frozen=True)
class SourceReport:
    """The account of one dataset: its review file, its metadata file if there is one, and how the two met."""

    reviews: ReadReport
    metadata: ReadReport | None = None
    items_without_metadata: int = 0

    def summary(self) -> str:
        """A few lines for a log."""
        parts = [self.reviews.summary()]
        if self.metadata is not None:
            parts.append(self.metadata.summary())
            parts.append(f"{self.items_without_metadata:,} reviewed items have no metadata")
        return "\n".join(parts)


class Tally:
    """Collects a `ReadReport` while a file is read, and stops the reading when too much of it is bad."""

    def __init__(self, source: str, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.lines = 0
        self.bad = 0
        self.dropped: Counter[str] = Counter()
        self._bad_lines: list[BadLine] = []

    def reject(self, line: int, reason: str, text: bytes | str = "") -> None:
        """Count one bad line; the first few are kept for the report, clipped and printable."""
        self.bad += 1
        if len(self._bad_lines) < SHOWN_BAD_LINES:
            self._bad_lines.append(BadLine(line, reason, _printable(text)))
        if self.bad > 1000 and self.bad * 2 > self.lines:
            self._refuse()

    def drop(self, reason: str, count: int) -> None:
        """Count `count` good lines that are left out for a stated reason."""
        if count:
            self.dropped[reason] += count

    def finish(self, format: str, kept: int) -> ReadReport:
        """The finished report. Raises `DataError` when more lines were bad than `Limits` allow."""
        if self.bad > max(self.limits.bad_lines, self.limits.bad_share * self.lines):
            self._refuse()
        return ReadReport(
            self.source,
            format,
            self.lines,
            kept,
            self.bad,
            tuple(sorted(self._bad_lines, key=lambda bad: bad.line)),
            dict(self.dropped),
        )

    def _refuse(self) -> None:
        shown = "; ".join(f"line {bad.line}: {bad.reason}" for bad in self._bad_lines[:3])
        raise DataError(
            f"{self.source}: {self.bad:,} of the first {self.lines:,} lines are bad, more than the"
            f" {self.limits.bad_share:.1%} allowed ({shown}). Mend or re-download the file, or raise"
            " Limits.bad_share."
        )


def _printable(text: bytes | str) -> str:
    if isinstance(text, bytes):
        text = text[: 4 * EXCERPT].decode("utf-8", "replace")
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: EXCERPT + 1].strip())
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
