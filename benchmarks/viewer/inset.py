"""What `report.html` shows of the episodes of a run: a bounded selection in the page itself, and more in one beside it.

The selection is EMBEDDED episodes, the first tasks of every agent, about a megabyte; `episodes.html` holds as many as
the viewer shows by itself. Both work from a file, and neither is written where a run kept no episodes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.viewer.collection import collect
from benchmarks.viewer.document import Embedding, document, embed

EMBEDDED = 600
"""Episodes in the report itself."""
PAGE = "episodes.html"


def selection(folder: Path) -> Embedding | None:
    """The section of the report on the episodes in a results folder; None where there are none."""
    if not _has_episodes(folder):
        return None
    found = collect(folder, EMBEDDED)
    inner = embed(replace(found, title="Episodes"))
    head = (
        "<section><h2>Episodes</h2>"
        f"<p>The first tasks of every agent, {len(found.played):,} episodes: filter, open one, compare two agents on "
        f'the same task. <a href="{PAGE}">{PAGE}</a>, beside this file, shows more; '
        "<code>python -m benchmarks.viewer</code> shows any number.</p>"
    )
    return replace(inner, markup=f"{head}{inner.markup}</section>")


def whole_page(folder: Path) -> dict[str, str]:
    """The page beside the report, by its name; empty where there are no episodes."""
    return {PAGE: document(collect(folder))} if _has_episodes(folder) else {}


def _has_episodes(folder: Path) -> bool:
    return next((folder / "units").rglob("episodes-*.jsonl.gz"), None) is not None
