"""The report as one HTML file that loads nothing: inline style sheet and SVG, light and dark.

Names and error messages come from data and agents, so everything is escaped, and the content security policy allows the
one style sheet of this page (by its hash) and nothing else; where episodes were kept, the viewer's own script and style
sheet as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from benchmarks import plots
from benchmarks.analysis import TrackResult
from benchmarks.curves import TrainingResult
from benchmarks.sections import supplements, training_table
from benchmarks.tables import MARKS, Cell, Table, main_table, remarks
from benchmarks.viewer.document import Embedding, digest, policy_of

STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --ink: #1a1a1a; --soft: #666; --rule: #d9d9d9;
  --control: #8a8a8a; --baseline: #2f6690; --agent: #c1440e; --missed: #c9c9c9;
  --t0: #2f6690; --t1: #c1440e; --t2: #4f8a5b; --t3: #8d6cab;
  --t4: #c99a2e; --t5: #4aa3a3; --t6: #a8577e; --t7: #8a8a8a;
  --sans: "Helvetica Neue", Helvetica, Arial, "Liberation Sans", "DejaVu Sans", sans-serif }
@media (prefers-color-scheme: dark) { :root {
  --page: #16181b; --ink: #e6e6e3; --soft: #a0a29f; --rule: #3a3d41;
  --control: #8f9296; --baseline: #7fb2dd; --agent: #f08a5d; --missed: #4a4d52;
  --t0: #7fb2dd; --t1: #f08a5d; --t2: #86c495; --t3: #bda0d8;
  --t4: #e3bd63; --t5: #7fcfcf; --t6: #d98ab0; --t7: #8f9296 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 3rem 1.5rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 var(--sans) }
h1 { font-size: 1.6rem; margin: 0 0 .3rem }
h2 { font-size: 1.2rem; margin: 3rem 0 .2rem }
p { margin: .3rem 0; max-width: 52rem }
.soft, .protocol { color: var(--soft); font-size: .87rem }
.protocol { overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink) }
caption { text-align: left; padding: 0 0 .4rem; font-weight: 600 }
th { font-weight: 600; text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--ink);
  vertical-align: bottom }
td { text-align: right; padding: .28rem .6rem; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--rule) }
tr:last-child td { border-bottom: 0 }
th:first-child, td:first-child { text-align: left; padding-left: .2rem }
td small { display: block; color: var(--soft); font-size: .72rem; font-weight: 400; line-height: 1.25 }
tr.control td { color: var(--soft) }
tr.agent td:first-child { color: var(--agent); font-weight: 600 }
tr.baseline td:first-child { color: var(--baseline); font-weight: 600 }
figure { margin: 1.4rem 0 0 }
figcaption { font-weight: 600; font-size: .87rem; margin: 0 0 .3rem }
svg { display: block; width: 100%; max-width: 45rem; height: auto; font: 12px var(--sans) }
svg text { fill: var(--ink) }
svg .small { fill: var(--soft); font-size: 10.5px }
.grid { stroke: var(--rule) }
.axis { stroke: var(--soft) }
.chance { stroke: var(--soft); stroke-dasharray: 4 3 }
.whisker { stroke-width: 1.6; stroke: var(--agent) }
.whisker.control { stroke: var(--control) }
.whisker.baseline { stroke: var(--baseline) }
.point, .bar, .key { fill: var(--agent); background: var(--agent) }
.point.control, .bar.control, .key.control { fill: var(--control); background: var(--control) }
.point.baseline, .bar.baseline, .key.baseline { fill: var(--baseline); background: var(--baseline) }
.bar.missed { fill: var(--missed) }
.tool0 { fill: var(--t0) } .tool1 { fill: var(--t1) } .tool2 { fill: var(--t2) } .tool3 { fill: var(--t3) }
.tool4 { fill: var(--t4) } .tool5 { fill: var(--t5) } .tool6 { fill: var(--t6) } .tool7 { fill: var(--t7) }
.line { fill: none; stroke-width: 1.8 }
.band { opacity: .16 }
.line0 { stroke: var(--t0) } .line1 { stroke: var(--t1) } .line2 { stroke: var(--t2) } .line3 { stroke: var(--t3) }
.line4 { stroke: var(--t4) } .line5 { stroke: var(--t5) } .line6 { stroke: var(--t6) } .line7 { stroke: var(--t7) }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin: 0 .35em 0 1em }
details { margin: .8rem 0 }
summary { cursor: pointer; font-weight: 600; font-size: .87rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .87rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
#agentrec-viewer { height: min(46rem, 85vh); margin: .8rem 0; overflow: hidden; border: 1px solid var(--rule);
  border-radius: 12px }
#agentrec-viewer > noscript { display: block; padding: 1rem }
@media (min-width: 80rem) { #agentrec-viewer { margin-inline: calc((69rem - min(96vw, 100rem)) / 2) } }
@media print { #agentrec-viewer { display: none }
 body { padding: 0 } }
"""


def page(
    title: str,
    results: Sequence[TrackResult],
    notes: Sequence[str],
    facts: Mapping[str, str],
    episodes: Embedding | None = None,
    training: Sequence[TrainingResult] = (),
    left_out: Sequence[str] = (),
) -> str:
    """The whole document; `notes` are the methods' paragraphs, `facts` what is known of the run, `training` what its
    training runs did, and `left_out` sentences on what is not there."""
    scripts, styles = (episodes.scripts, episodes.styles) if episodes else ((), ())
    policy = policy_of(scripts, (digest(STYLE), *styles))
    body = [f"<h1>{escape(title)}</h1>"]
    if left_out:
        body.append(f'<p class="soft">Left out: {escape(" ".join(left_out))}</p>')
    body += [_section(result) for result in results]
    body += [_training(trained) for trained in training]
    body += [episodes.markup] if episodes else []
    body += ["<section><h2>Methods</h2>", *(f"<p>{escape(note)}</p>" for note in notes), "</section>"]
    body += ["<section><h2>Run</h2><dl>"]
    body += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</dl></section>\n</body></html>\n"
    )


def _section(result: TrackResult) -> str:
    parts = [
        f"<section><h2>{escape(result.dataset)} · {escape(result.track)}</h2>",
        f'<p class="protocol">{escape(result.protocol)}</p>',
    ]
    if result.rows:
        parts += [_table(main_table(result)), f'<p class="soft">{escape(MARKS)}{_legend()}</p>']
        parts.append(_figure("Quality: NDCG@10 with 95 % intervals", plots.intervals(result)))
        parts.append(
            _figure(
                "Where the positive ended up: places 1 to 10, and missed in grey; share of episodes",
                plots.places(result),
            )
        )
        drawn = plots.calls(result)
        if drawn:
            parts.append(_figure("Tool calls an episode, by tool", drawn))
    parts += [f"<p>{escape(remark)}</p>" for remark in remarks(result)]
    for table in supplements(result):
        parts.append(f"<details><summary>{escape(table.caption)}</summary>{_table(table, caption=False)}</details>")
    return "\n".join(parts) + "</section>"


def _training(result: TrainingResult) -> str:
    table = training_table(result)
    parts = [f"<section><h2>{escape(table.caption)}</h2>", _table(table, caption=False)]
    parts += [f"<p>{escape(remark)}</p>" for remark in result.remarks]
    if drawn := plots.learning(result.curves):
        caption = "NDCG@10 on valid tasks over the tokens sampled since the first stage, mean and range of the seeds"
        parts.append(_figure(caption, drawn))
    for curve in result.curves:
        if drawn := plots.training_calls(curve):
            parts.append(_figure(f"{curve.stage}: tool calls an episode over training, mean of the seeds", drawn))
    return "\n".join(parts) + "</section>"


def _legend() -> str:
    kinds = (("control", "control"), ("baseline", "baseline"), ("agent", "agent"))
    return "".join(f'<span class="key {kind}"></span>{label}' for kind, label in kinds)


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _table(table: Table, caption: bool = True) -> str:
    roles = table.roles or ("",) * len(table.lines)
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    lines = "\n".join(
        f'<tr class="{escape(role)}">{"".join(map(_cell, line))}</tr>'
        for role, line in zip(roles, table.lines, strict=True)
    )
    title = f"<caption>{escape(table.caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f"<td>{escape(cell.text)}{note}</td>"
