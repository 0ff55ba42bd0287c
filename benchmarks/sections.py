"""The tables of the report beyond the main one: robustness, cost, where an agent helps, ablations, training."""

from __future__ import annotations

from benchmarks.ablations import METRICS as COMPARED
from benchmarks.ablations import Ablation, Part
from benchmarks.analysis import TrackResult
from benchmarks.curves import TrainingResult
from benchmarks.strata import Strata
from benchmarks.suite import PRIMARY
from benchmarks.tables import (
    Cell,
    Table,
    control_table,
    difference,
    interval,
    number,
    order_table,
    p_value,
    pair_table,
    percent,
    reward_table,
    seed_table,
    signed,
)


def supplements(result: TrackResult) -> list[Table]:
    """The tables after the main one that have lines."""
    tables = [planned_table(result), control_table(result), cost_table(result), order_table(result)]
    tables += [table for strata in result.strata for table in strata_tables(strata)]
    tables += [ablation_table(ablation) for ablation in result.ablations]
    tables += [seed_table(result), reward_table(result), pair_table(result)]
    return [table for table in tables if table.lines]


def planned_table(result: TrackResult) -> Table:
    """The trained row beside each row that it is to be better than."""
    planned = result.planned
    return Table(
        f"Planned comparisons: {planned[0].first} minus each row" if planned else "",
        ("row", *(head for metric in COMPARED for head in (f"Δ {metric}", "d_z", "p (Holm)"))),
        tuple(
            (
                Cell(pair.second),
                *(
                    cell
                    for metric in COMPARED
                    for cell in (
                        difference(pair.comparisons[metric], pair.p_holm[metric]),
                        Cell(signed(pair.comparisons[metric].effect, 2)),
                        Cell(p_value(pair.p_holm[metric])),
                    )
                ),
            )
            for pair in planned
        ),
    )


def cost_table(result: TrackResult) -> Table:
    """What a request costs."""
    return Table(
        "Cost of a request",
        ("agent", "tool calls", "tokens read", "tokens written", "ms of the agent"),
        tuple(
            (
                Cell(cost.name),
                interval(cost.calls, 2),
                interval(cost.read, 0) if cost.read else Cell("–"),
                interval(cost.written, 0) if cost.written else Cell("–"),
                interval(cost.milliseconds, 1),
            )
            for cost in result.costs
        ),
        tuple(cost.role for cost in result.costs),
    )


def strata_tables(strata: Strata) -> list[Table]:
    """Means by kind of task, and differences to the reference."""
    names = list(strata.kinds[0].means) if strata.kinds else []
    heads = tuple(f"{kind.name} ({kind.tasks:,})" for kind in strata.kinds)
    means = Table(
        f"{PRIMARY} by {strata.title}",
        ("agent", *heads),
        tuple((Cell(name), *(interval(kind.means[name]) for kind in strata.kinds)) for name in names),
    )
    others = [name for name in names if strata.kinds[0].differences.get(name)]
    differences = Table(
        f"Δ {PRIMARY} to {strata.reference}, the best baseline over all tasks, by {strata.title}",
        ("agent", *heads),
        tuple(
            (Cell(name), *(difference(kind.differences[name], kind.p_holm[name]) for kind in strata.kinds))
            for name in others
        ),
    )
    return [means, differences]


def ablation_table(ablation: Ablation) -> Table:
    """Each row beside the one that has all parts."""
    heads = [head for metric in COMPARED for head in (metric, f"Δ {metric}")]
    return Table(
        ablation.title,
        ("row", *heads, "calls", "invalid %"),
        (*(_part(part, "all parts, ") for part in ablation.references), *(_part(part) for part in ablation.parts)),
    )


def _part(part: Part, about: str = "") -> tuple[Cell, ...]:
    seeds = f"seed{'s' if len(part.seeds) > 1 else ''} {', '.join(map(str, part.seeds))}"
    cells = [Cell(part.name, about + seeds)]
    for metric in COMPARED:
        compared = part.differences.get(metric)
        cells.append(interval(part.metrics[metric]))
        cells.append(difference(compared, part.p_holm[metric]) if compared else Cell("–"))
    return (*cells, Cell(f"{part.calls:.1f}"), Cell(percent(part.invalid)))


def training_table(result: TrainingResult) -> Table:
    """The stages, what they cost and what they reached."""
    lines = []
    for curve in result.curves:
        calls = [sum(column[point] for column in curve.calls.values()) for point in (0, -1)] if curve.calls else []
        valid = [curve.valid[0], curve.valid[-1]][: len(curve.valid)]
        lines.append(
            (
                Cell(curve.stage, f"from {curve.start}"),
                Cell(str(curve.seeds)),
                Cell(f"{curve.sampled_tokens:,.0f}" if curve.sampled_tokens else "–"),
                Cell(" → ".join(number(judged.mean) for judged in valid) or "–"),
                Cell(", ".join(number(best) for best in curve.best) or "–"),
                Cell(", ".join(f"{step:,}" for step in curve.chosen) or "–"),
                Cell(f"{calls[0]:.1f} → {calls[1]:.1f}" if calls else "–"),
                Cell(f"{curve.seconds / 60:,.1f}"),
            )
        )
    return Table(
        f"{result.dataset}: training",
        (
            "stage",
            "seeds",
            "tokens sampled",
            f"valid {PRIMARY}",
            "best, by seed",
            "after steps",
            "calls an episode",
            "minutes",
        ),
        tuple(lines),
    )
