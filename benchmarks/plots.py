"""The report's plots as inline SVG: text that scales, follows light and dark, and needs no script, font or image.

Colours come from classes that the page's style sheet defines; all text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from benchmarks.analysis import RowResult, TrackResult, chance
from benchmarks.curves import Curve
from benchmarks.suite import PRIMARY

WIDTH = 720
LEFT = 130
"""Room for the rows' names."""
LINE = 24
"""Height of a row."""
TOOL_COLOURS = 8
"""Tools with a colour of their own; the rest share the last."""


def intervals(result: TrackResult) -> str:
    """The primary metric of each row with its interval; the dashed line is chance."""
    rows = result.rows
    top = max(row.metrics[PRIMARY].high for row in rows)
    ticks = _ticks(top)
    right = WIDTH - 60
    top_margin = 18
    height = top_margin + LINE * len(rows) + 24

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * value / ticks[-1]

    parts = _grid(ticks, x, top_margin, height - 20)
    if result.pool:
        at = x(chance(result.pool)[0])
        parts.append(f'<line class="chance" x1="{at:.1f}" x2="{at:.1f}" y1="{top_margin}" y2="{height - 20}"/>')
        parts.append(_text(at, top_margin - 5, "chance", "middle", "small"))
    for i, row in enumerate(rows):
        y = top_margin + LINE * (i + 0.5)
        interval = row.metrics[PRIMARY]
        low, mid, high = (x(value) for value in (interval.low, interval.mean, interval.high))
        parts.append(_name(row, y))
        parts.append(f'<line class="whisker {row.role}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts += [
            f'<line class="whisker {row.role}" x1="{end:.1f}" x2="{end:.1f}" y1="{y - 4:.1f}" y2="{y + 4:.1f}"/>'
            for end in (low, high)
        ]
        parts.append(f'<circle class="point {row.role}" cx="{mid:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(_text(high + 8, y + 4, f"{interval.mean:.3f}", "start", "small"))
    return _svg(f"{PRIMARY} with 95 % intervals", height, parts)


def calls(result: TrackResult) -> str:
    """Tool calls an episode, by tool; empty where no row called one."""
    rows = [row for row in result.rows if row.calls]
    if not rows:
        return ""
    totals = {tool: sum(row.calls.get(tool, 0.0) for row in rows) for row in rows for tool in row.calls}
    tools = sorted(totals, key=lambda tool: (-totals[tool], tool))
    ticks = _ticks(max(row.calls_total for row in rows))
    right = WIDTH - 60
    base = LINE * len(rows) + 34
    legend_lines = math.ceil(len(tools) / 3)

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * value / ticks[-1]

    parts = _grid(ticks, x, 4, base - 24)
    for i, row in enumerate(rows):
        y = 4 + LINE * i
        parts.append(_name(row, y + LINE / 2))
        start = 0.0
        for colour, tool in enumerate(tools):
            count = row.calls.get(tool, 0.0)
            if count:
                title = f"<title>{escape(tool)}: {count:.2f}</title>"
                parts.append(
                    f'<rect class="tool{min(colour, TOOL_COLOURS - 1)}" x="{x(start):.1f}" y="{y + 4}" '
                    f'width="{x(count) - LEFT:.1f}" height="{LINE - 8}">{title}</rect>'
                )
                start += count
        parts.append(_text(x(start) + 8, y + LINE / 2 + 4, f"{row.calls_total:.1f}", "start", "small"))
    for i, tool in enumerate(tools):
        left, y = LEFT + 190 * (i % 3), base + 8 + 18 * (i // 3)
        parts.append(f'<rect class="tool{min(i, TOOL_COLOURS - 1)}" x="{left}" y="{y - 9}" width="10" height="10"/>')
        parts.append(_text(left + 16, y, tool, "start", "small"))
    return _svg("Tool calls an episode, by tool", base + 18 * legend_lines + 4, parts)


def places(result: TrackResult) -> str:
    """Where the positive ended up: one small histogram a row, first place to tenth and missed, % of episodes."""
    rows = result.rows
    columns, width, height = 4, WIDTH / 4, 118
    shares = [[count / row.episodes for count in (*row.ranks[1:], row.ranks[0])] for row in rows]
    top = max(max(share) for share in shares)
    parts = []
    for i, (row, share) in enumerate(zip(rows, shares, strict=True)):
        left, base = width * (i % columns) + 8, height * (i // columns) + 90
        step = (width - 28) / len(share)
        parts.append(_text(left, base - 72, row.name, "start", "name", 15))
        parts.append(_text(left + step * len(share), base - 72, f"{100 * share[0]:.0f} % first", "end", "small"))
        for place, value in enumerate(share):
            tall = 62 * value / top
            kind = "missed" if place == len(share) - 1 else row.role
            label = "missed" if place == len(share) - 1 else f"place {place + 1}"
            parts.append(
                f'<rect class="bar {kind}" x="{left + step * place + 1:.1f}" y="{base - tall:.1f}" '
                f'width="{step - 2:.1f}" height="{tall:.1f}"><title>{label}: {100 * value:.1f} %</title></rect>'
            )
        end = left + step * len(share)
        parts.append(f'<line class="axis" x1="{left:.1f}" x2="{end:.1f}" y1="{base}" y2="{base}"/>')
        parts += [
            _text(left + step * (place + 0.5), base + 13, label, "middle", "small")
            for place, label in ((0, "1"), (4, "5"), (9, "10"))
        ]
    return _svg("Where the positive ended up", height * math.ceil(len(rows) / columns), parts)


def learning(curves: Sequence[Curve]) -> str:
    """N@10 on valid tasks over the tokens sampled in training, those of earlier stages included: the mean of the seeds
    in a band from the worst to the best; empty where no stage that samples was judged twice.

    Args:
        curves: Each after the one that it starts from.
    """
    sampled: dict[str, float] = {}
    shown = []
    for curve in curves:
        before = sampled.get(curve.start, 0.0)
        sampled[curve.stage] = before + curve.sampled_tokens
        if curve.sampled_tokens and len(curve.valid) > 1:
            shown.append((curve.stage, [(before + each.tokens, each) for each in curve.valid]))
    shown = shown[:TOOL_COLOURS]
    if not shown:
        return ""
    points = [line for _, line in shown]
    judged = [each for line in points for _, each in line]
    low, high = min(each.low for each in judged), max(each.high for each in judged)
    ticks = _ticks(high, low)
    tokens = _ticks(max(line[-1][0] for line in points))
    left, right, top, bottom = 48.0, WIDTH - 16.0, 10.0, 230.0

    def x(count: float) -> float:
        return left + (right - left) * count / tokens[-1]

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", "end", "small"))
    parts += [_text(x(tick), bottom + 15, f"{tick:,.0f}", "middle", "small") for tick in tokens[:-1]]
    parts.append(_text(right, bottom + 15, "tokens sampled", "end", "small"))
    for colour, (stage, line) in enumerate(shown):
        upper = [f"{x(count):.1f},{y(each.high):.1f}" for count, each in line]
        lower = [f"{x(count):.1f},{y(each.low):.1f}" for count, each in reversed(line)]
        mean = " ".join(f"{x(count):.1f},{y(each.mean):.1f}" for count, each in line)
        parts.append(f'<polygon class="band tool{colour}" points="{" ".join(upper + lower)}"/>')
        parts.append(f'<polyline class="line line{colour}" points="{mean}"><title>{escape(stage)}</title></polyline>')
        across, down = LEFT + 190 * (colour % 3) - 80, bottom + 34 + 18 * (colour // 3)
        parts.append(f'<rect class="tool{colour}" x="{across}" y="{down - 9}" width="10" height="10"/>')
        parts.append(_text(across + 16, down, stage, "start", "small"))
    return _svg(f"{PRIMARY} on valid tasks over training", bottom + 44 + 18 * math.ceil(len(shown) / 3), parts)


def training_calls(curve: Curve) -> str:
    """Calls of each tool an episode over the steps of training; empty where no tool was called."""
    called = {tool: values for tool, values in curve.calls.items() if any(values)}
    if not called or len(curve.steps) < 2:
        return ""
    tools = sorted(called, key=lambda tool: (-sum(called[tool]), tool))
    ticks = _ticks(max(max(values) for values in called.values()))
    left, right, top, bottom = 48.0, WIDTH - 16.0, 10.0, 190.0
    low, high = curve.steps[0], curve.steps[-1]

    def x(step: float) -> float:
        return left + (right - left) * (step - low) / (high - low)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", "end", "small"))
    for step, anchor in ((low, "start"), (high, "end")):
        parts.append(_text(x(step), bottom + 15, f"step {step + 1:,.0f}", anchor, "small"))
    for i, tool in enumerate(tools):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(curve.steps, called[tool], strict=True))
        colour = min(i, TOOL_COLOURS - 1)
        parts.append(f'<polyline class="line line{colour}" points="{points}"><title>{escape(tool)}</title></polyline>')
        across, down = LEFT + 190 * (i % 3) - 80, bottom + 34 + 18 * (i // 3)
        parts.append(f'<rect class="tool{colour}" x="{across}" y="{down - 9}" width="10" height="10"/>')
        parts.append(_text(across + 16, down, tool, "start", "small"))
    return _svg("Tool calls an episode over training", bottom + 44 + 18 * math.ceil(len(tools) / 3), parts)


def _ticks(top: float, bottom: float = 0.0) -> list[float]:
    """Round tick values from at most `bottom` to at least `top`."""
    if top <= bottom:
        top = bottom + 1.0
    rough = (top - bottom) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _grid(ticks: Sequence[float], x: Callable[[float], float], top: float, bottom: float) -> list[str]:
    parts = []
    for tick in ticks:
        at = x(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(at, bottom + 14, f"{tick:g}", "middle", "small"))
    return parts


def _name(row: RowResult, y: float) -> str:
    return _text(LEFT - 12, y + 4, row.name, "end", "name")


def _text(x: float, y: float, text: str, anchor: str, kind: str, longest: int = 24) -> str:
    shown = text if len(text) <= longest else text[: longest - 1] + "…"
    title = f"<title>{escape(text)}</title>" if shown != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}{title}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
