"""All candidates side by side: one row of strengths each, so that a reader sums along a row and compares rows.

The other tools write a list for each sign, in which a candidate must be found again and again: a model of three layers
that had learned to read them stayed .03 to .06 N@10 under a sum of their signs (`benchmarks/results/trained`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.tools.base import tool
from agentrec_env.tools.collaborative import spread
from agentrec_env.tools.names import mark
from agentrec_env.tools.pool import MAX_KNOWN, similar_users
from agentrec_env.tools.signals import matrix
from agentrec_env.tools.wording import LEVELS, SHOWN, halvings, popularity_levels, steps, top_items
from agentrec_env.types import FloatArray, IntArray

Levels = Callable[[View, FloatArray], IntArray]

SIGNS: dict[str, tuple[str, str, Levels]] = {
    "popular": ("popularity", "taken by anyone", lambda view, values: popularity_levels(view, np.expm1(values))),
    "lately": ("popularity_90", "in the last 90 days", lambda view, values: popularity_levels(view, np.expm1(values))),
    "together": ("item_knn_recent", "taken with the user's items", lambda _, values: halvings(values, 0.5)),
    "neighbours": ("user_knn", "taken by similar users", lambda _, values: halvings(values, 2.0)),
    "embedding": ("embedding_recent", "near the user's items", lambda _, values: steps(values, -0.1, 0.7)),
    "title": ("title_recent", "words of theirs", lambda _, values: halvings(values, 0.25)),
    "category": ("category_recent", "like theirs", lambda _, values: steps(values, 0.0, 1.0)),
    "brand": ("brand_recent", "one of theirs", lambda _, values: halvings(values, 0.5)),
}
"""Signal, what it is, and its strength in a task, by the word that stands in the rows."""
RETRIEVED = 5
"""Items of the catalogue that each of four signs brings, where there is no pool."""


@tool(guarded=False)
def compare_candidates(view: View) -> str:
    """Compare all candidates in one table: popularity, shared buyers, similar users, embedding, title, category, brand.

    Strengths mean the same in every task. Of a large pool, the strongest are shown.
    """
    items = view.candidates if len(view.candidates) else _retrieved(view)
    if not len(items):
        return "Nothing of the catalogue is near what the user took; the candidates are unknown."
    values = matrix(view, items, [signal for signal, _, _ in SIGNS.values()])
    levels = np.stack([grade(view, column) for (_, _, grade), column in zip(SIGNS.values(), values.T, strict=True)], 1)
    shown = np.sort(np.argsort(-levels.sum(axis=1), kind="stable")[:SHOWN])
    legend = "; ".join(f"{word}: {about}" for word, (_, about, _) in SIGNS.items())
    lines = [f"Strength 0 to {LEVELS} or ? (unknown) of each sign, then the candidate. {legend}."]
    for row in shown.tolist():
        signs = zip(SIGNS, levels[row].tolist(), np.isnan(values[row]).tolist(), strict=True)
        strengths = [f"{word}:{'?' if missing else level}" for word, level, missing in signs]
        lines.append(f"{' '.join(strengths)} {mark(view, int(items[row]))}")
    if len(items) > len(shown):
        lines.append(f"and {len(items) - len(shown)} weaker")
    return "\n".join(lines)


def _retrieved(view: View) -> IntArray:
    """int64 [<=4 RETRIEVED]: new items, the catalogue's best by shared buyers, similar users, embedding, popularity."""
    known, evidence = view.known[-MAX_KNOWN:], view.evidence
    users, likeness = similar_users(view, known)
    taken = evidence.popularity > 0
    near = evidence.embedding @ evidence.embedding[known].sum(axis=0) if len(known) else np.zeros(len(taken))
    found = [
        spread(evidence.cosine, known, np.ones(len(known))),
        spread(evidence.matrix, users, likeness),
        np.where(taken, near, 0.0).astype(np.float64),
        view.popularity(np.arange(len(view.items))).astype(np.float64),
    ]
    for scores in found:
        scores[view.known] = 0
    best = np.concatenate([top_items(view, scores, RETRIEVED) for scores in found])
    return best[np.sort(np.unique(best, return_index=True)[1])]
