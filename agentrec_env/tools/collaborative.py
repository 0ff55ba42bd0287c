"""What other users' behaviour says: neighbours of an item, neighbours of the user, scores of the pool.

The paper takes neighbours from SASRec embeddings fitted on the train split (AgenticRec, arXiv:2603.21613, sec. 3). Here
they come from a truncated SVD and from counts of the task's evidence, which need no training and no torch, and hold
neither the task's target nor, for training tasks, anything that a model could have learned the answer from.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import scipy  # its parts are loaded when they are first used: naming tools needs none of them

from agentrec_env.data.view import View
from agentrec_env.tools.base import tool
from agentrec_env.tools.lexical import title_index
from agentrec_env.tools.names import find_item, reference, title
from agentrec_env.tools.pool import MAX_KNOWN, gather, similar_users, transition_counts
from agentrec_env.tools.signals import matrix
from agentrec_env.tools.wording import LEVELS, catalogue_lines, halvings, pool_line, top_items
from agentrec_env.types import FloatArray, IntArray

OUTSIDE = 5
"""Items outside the pool that are named."""


@tool(guarded=False)
def get_similar_items(view: View, item_title: str) -> str:
    """Find the items that the same kind of users take, and those with the most similar title.

    Args:
        item_title: The title of an item, a candidate number such as [3], or an item id.
    """
    item = find_item(view, item_title)
    vectors, taken = view.evidence.embedding, view.evidence.popularity
    if taken[item] == 0:
        near = np.full(len(view.items), np.nan)
    else:
        near = (vectors @ vectors[item]).astype(np.float64)
        near[taken == 0] = np.nan
    alike = title_index(view.items).like(item)
    near[item] = alike[item] = 0.0
    lines = [f"Like {reference(view, item)}, strength 1 to {LEVELS}:"]
    for what, scores, top in (("taken by similar users", near, 0.75), ("similar title", alike, 0.5)):
        lines += _both(view, what, scores, halvings(scores[view.candidates], top))
    return "\n".join(lines)


@tool(guarded=False)
def get_co_purchases(view: View, item_title: str) -> str:
    """Find what users who took an item also took.

    Args:
        item_title: The title of an item, a candidate number such as [3], or an item id.
    """
    item = find_item(view, item_title)
    users = int(view.evidence.popularity[item])
    counts = np.zeros(len(view.items))
    _, others, shared = gather(view.evidence.cooccurrence, np.array([item]))
    counts[others] = shared
    lines = [f"{reference(view, item)} was taken by {users} user{'s' if users != 1 else ''} in the training data."]
    if not users:
        return f"{lines[0]} What they also took is unknown."
    levels = halvings(counts[view.candidates] / users, 0.25)
    return "\n".join([*lines, *_both(view, f"They also took, strength 1 to {LEVELS}", counts, levels)])


@tool(guarded=False)
def get_similar_users(view: View) -> str:
    """Find the users whose purchases are most like this user's, and what they took lately."""
    users, likeness = similar_users(view, view.known[-MAX_KNOWN:])
    if not len(users):
        return "No other user took any of this user's items; similar users are unknown."
    known = set(view.known.tolist())
    data = view.evidence.data
    lately: Counter[int] = Counter()
    for user in users[:10]:
        lately.update(item for item in data.item[data.rows(int(user))][-3:].tolist() if item not in known)
    lines = [f"{len(users)} similar users; the closest has likeness {halvings(likeness[:1], 0.5)[0]} of {LEVELS}."]
    support = spread(view.evidence.matrix, users, likeness)
    levels = halvings(support[view.candidates] / likeness.sum(), 0.1)
    support[view.known] = 0
    if len(view.candidates):
        lines.append(pool_line(view, f"Candidates they took, strength 1 to {LEVELS}", support[view.candidates], levels))
    else:
        lines.append(catalogue_lines(view, f"They took, strength 1 to {LEVELS}", support))
    latest = "; ".join(f"{reference(view, item)} ({count})" for item, count in lately.most_common(OUTSIDE))
    return "\n".join([*lines, f"The ten closest took lately: {latest or 'nothing new'}."])


@tool(guarded=False)
def score_candidates(view: View) -> str:
    """Score every candidate by what other users took: shared buyers, similar users, embedding, what comes next."""
    lines = [f"Collaborative scores, strength 1 to {LEVELS}."]
    if len(view.candidates):
        names = ["item_knn", "user_knn", "embedding_recent", "transition"]
        scores = matrix(view, view.candidates, names)
        for column, (what, top) in enumerate(
            (("shared buyers", 0.5), ("similar users", 2.0), ("embedding", 0.5), ("comes next", 0.1))
        ):
            lines.append(pool_line(view, what, scores[:, column], halvings(scores[:, column], top)))
        return "\n".join(lines)
    known = view.known[-MAX_KNOWN:]
    users, likeness = similar_users(view, known)
    counts, outgoing = transition_counts(view.evidence)
    latest = known[-5:]
    found = {
        "shared buyers": spread(view.evidence.cosine, known, np.ones(len(known))),
        "similar users": spread(view.evidence.matrix, users, likeness),
        "comes next": spread(counts, latest, 1 / (outgoing[latest] + 5.0)),
    }
    for what, catalogue in found.items():
        catalogue[view.known] = 0
        lines.append(catalogue_lines(view, what, catalogue))
    return "\n".join(lines)


def spread(matrix: scipy.sparse.csr_matrix, rows: IntArray, weights: FloatArray) -> FloatArray:
    """float64 [columns]: the weighted sum of ``rows`` of a CSR matrix."""
    owner, column, value = gather(matrix, rows)
    return np.bincount(column, weights=weights[owner] * value, minlength=matrix.shape[1]).astype(np.float64)


def _both(view: View, what: str, scores: FloatArray, levels: IntArray) -> list[str]:
    """The candidates by ``scores`` (float64 [I]) and the best items outside the pool; or the best of the catalogue."""
    if not len(view.candidates):
        return (
            [catalogue_lines(view, what, np.nan_to_num(scores))] if not np.isnan(scores).all() else [f"{what}: unknown"]
        )
    line = pool_line(view, what, scores[view.candidates], levels)
    rest = np.nan_to_num(scores)
    rest[view.candidates] = 0
    best = top_items(view, rest, OUTSIDE)
    others = "; ".join(title(view.items, int(item)) for item in best)
    return [line, f"Outside the pool: {others}."] if others else [line]
