"""The tables of the report in one form, which the screen, Markdown and HTML each print their way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agentrec_env.statistics import Comparison, Interval, holm
from benchmarks.analysis import RowResult, TrackResult
from benchmarks.suite import METRICS, PRIMARY

MARKS = "* p < .05, ** p < .01, *** p < .001, after Holm's correction."


@dataclass(frozen=True)
class Cell:
    """A value, with what stands small beside or under it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, column heads and lines; the first column names the line, the others are numbers."""

    caption: str
    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    roles: tuple[str, ...] = ()
    """Role of each line's row, for emphasis; empty where lines are no rows of the suite."""


def main_table(result: TrackResult) -> Table:
    """Quality with intervals, the difference to the best baseline, and what an episode costs."""
    best = result.best_baseline
    columns = ("agent", *METRICS, f"Δ {PRIMARY}" + (f" to {best}" if best else ""), "d_z", "calls", "ms", "invalid %")
    return Table(
        f"{result.dataset}, {result.title}: mean and 95 % interval",
        columns,
        tuple(_main_line(row, result) for row in result.rows),
        tuple(row.role for row in result.rows),
    )


def _main_line(row: RowResult, result: TrackResult) -> tuple[Cell, ...]:
    versus = row.versus.get(PRIMARY)
    delta, effect = Cell("best baseline" if row.name == result.best_baseline else "–"), Cell("")
    if versus:
        delta = difference(versus.comparison, versus.p_holm)
        effect = Cell(signed(versus.comparison.effect, 2))
    seeds = f"{row.seeds} seeds" if row.seeds > 1 else ""
    return (
        Cell(row.name, seeds),
        *(interval(row.metrics[metric]) for metric in METRICS),
        delta,
        effect,
        Cell(f"{row.calls_total:.1f}"),
        Cell(_milliseconds(row.milliseconds)),
        Cell(percent(row.invalid), f"{percent(row.failed)} errors" if row.failed else ""),
    )


def pair_table(result: TrackResult) -> Table:
    """Every row against every row that ranks below it."""
    return Table(
        f"All pairs, difference in {PRIMARY}",
        ("pair", "Δ", "d_z", "p (Holm)"),
        tuple(
            (
                Cell(f"{pair.first} − {pair.second}"),
                difference(pair.comparison, pair.p_holm),
                Cell(signed(pair.comparison.effect, 2)),
                Cell(p_value(pair.p_holm)),
            )
            for pair in result.pairs
        ),
    )


def seed_table(result: TrackResult) -> Table:
    """How far the seeds of a row lie apart."""
    rows = [row for row in result.rows if row.seeds > 1]
    return Table(
        f"Seeds, {PRIMARY}",
        ("agent", "seeds", "mean", "sd", "lowest", "highest", "fit, s a seed"),
        tuple(
            (
                Cell(row.name),
                Cell(str(row.seeds)),
                Cell(number(row.metrics[PRIMARY].mean)),
                Cell(f"{row.seed_spread.sd:.4f}"),
                Cell(number(row.seed_spread.low)),
                Cell(number(row.seed_spread.high)),
                Cell(f"{row.prepare_seconds / row.seeds:.1f}"),
            )
            for row in rows
        ),
        tuple(row.role for row in rows),
    )


def order_table(result: TrackResult) -> Table:
    """What changes when the same candidates come in another order."""
    rows = [(row, row.order) for row in result.rows if row.order]
    corrected = holm([order.change.p for _, order in rows])
    return Table(
        "The same tasks with the candidates in another order",
        ("agent", "tasks", "same first item %", "list kept %", f"mean |Δ {PRIMARY}|", f"Δ {PRIMARY}", "p (Holm)"),
        tuple(
            (
                Cell(row.name),
                Cell(f"{order.tasks:,}"),
                Cell(percent(order.same_first)),
                Cell(percent(order.overlap)),
                Cell(number(order.absolute)),
                Cell(signed(order.change.difference.mean, 3), _bounds(order.change.difference)),
                Cell(p_value(p)),
            )
            for (row, order), p in zip(rows, corrected, strict=True)
        ),
        tuple(row.role for row, _ in rows),
    )


def control_table(result: TrackResult) -> Table:
    """Rows that must score as chance does."""
    return Table(
        f"Rows that must score as chance does, {PRIMARY}",
        ("agent", "mean", "chance", "z", "p (Holm)", "verdict"),
        tuple(
            (
                Cell(control.name),
                Cell(number(control.mean, 4)),
                Cell(number(control.chance, 4)),
                Cell(signed(control.z, 2)),
                Cell(p_value(control.p)),
                Cell("as chance" if control.p >= 0.01 else "NOT as chance: look for a leak"),
            )
            for control in result.controls
        ),
    )


def reward_table(result: TrackResult) -> Table:
    """How the episodes ended and what they were paid."""
    terms = sorted({name for row in result.rows for name in row.terms})
    stops = sorted({name for row in result.rows for name in row.stops})
    return Table(
        "How episodes ended, % of them, and their mean reward",
        ("agent", *(stop.replace("_", " ") for stop in stops), "turns", "reward", *terms),
        tuple(
            (
                Cell(row.name),
                *(Cell(percent(row.stops.get(stop, 0) / row.episodes)) for stop in stops),
                Cell(f"{row.turns:.1f}"),
                Cell(number(row.reward)),
                *(Cell(number(row.terms.get(term, 0.0))) for term in terms),
            )
            for row in result.rows
        ),
        tuple(row.role for row in result.rows),
    )


def remarks(result: TrackResult) -> list[str]:
    """Sentences that belong under the tables."""
    said = []
    if result.positions:
        test = result.positions
        verdict = "evenly" if test.p >= 0.01 else "NOT EVENLY"
        said.append(
            f"Over {sum(test.counts):,} pools the positive stands {verdict} at all places (chi-square "
            f"{test.statistic:.1f}, {test.degrees} degrees of freedom, p = {p_value(test.p)})."
        )
    said += [f"{name} is not complete: {error}" for name, error in result.missing.items()]
    for row in result.rows:
        if row.failed:
            example = f" For example: {row.error}" if row.error else ""
            said.append(f"{row.name}: {percent(row.failed)} % of its episodes ended by an error and count 0.{example}")
    return said


def stars(p: float) -> str:
    """Significance marks."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def number(value: float, digits: int = 3) -> str:
    """A fixed number of digits with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int) -> str:
    """A number with its sign."""
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """A share as a percentage without the sign."""
    return f"{100 * share:.1f}"


def p_value(p: float) -> str:
    """A p value, "< .001" where it is smaller."""
    return "< .001" if p < 0.001 else f"{p:.3f}"


def interval(value: Interval, digits: int = 3) -> Cell:
    """A mean with its interval."""
    return Cell(_separated(value.mean, digits), _bounds(value, digits))


def difference(comparison: Comparison, p: float) -> Cell:
    """A difference with its interval and marks."""
    return Cell(signed(comparison.difference.mean, 3) + stars(p), _bounds(comparison.difference))


def _bounds(value: Interval, digits: int = 3) -> str:
    return f"[{_separated(value.low, digits)}, {_separated(value.high, digits)}]"


def _separated(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
