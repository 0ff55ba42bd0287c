"""The recommenders that anyone would try first, and the control rows that bound the scale.

Each is a score on a ``View`` and its ``Evidence``, so none can see past the task's time. They set the bar that an agent
with a language model has to clear: with uniform negatives, popularity alone is far above random.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.dataset import Items
from agentrec_env.data.evidence import Evidence
from agentrec_env.data.view import View
from agentrec_env.tools.lexical import TextIndex, words
from agentrec_env.tools.signals import SIGNALS
from agentrec_env.types import FloatArray, IntArray
from agents.protocol import ScoringAgent

EASE_MAX_ITEMS = 20_000
"""EASE inverts an items × items matrix: 1.6 GB of float32 at this size."""


class Random(ScoringAgent):
    """Every order equally likely: all scores tie, and ties are broken by the seed. Control row."""

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return np.zeros(len(items))


class Identity(ScoringAgent):
    """The candidates in the order shown (of the catalogue, in catalogue mode). Control row: must score as random."""

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return -np.arange(len(items), dtype=np.float64)


class Reversed(ScoringAgent):
    """The candidates in the reverse of the order shown. Control row: must score as random does."""

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return np.arange(len(items), dtype=np.float64)


class Popularity(ScoringAgent):
    """How often an item was taken in the evidence, the same for everyone."""

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return view.evidence.popularity[items].astype(np.float64)


class SignalAgent(ScoringAgent):
    """Sorts by one signal of ``agentrec_env.tools.signals``: the single-tool rows of an ablation.

    Args:
        name: a registered signal, or ``"module:attr"``.
    """

    def __init__(self, name: str) -> None:
        self.signal = SIGNALS.get(name)

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return np.asarray(self.signal(view, items), dtype=np.float64)


class ItemKNN(ScoringAgent):
    """Sum of the cosine similarities between an item and the user's latest items (Sarwar et al., 2001).

    All neighbours of an item count. Keeping the nearest 200 alone, as is usual for retrieval, costs .04 of N@10 on
    Beauty (leave-one-out valid tasks, 19 uniform negatives), because most of a small pool is then left without a score.

    Args:
        history: how many of the user's latest items count.
    """

    def __init__(self, history: int = 50) -> None:
        if history < 1:
            raise ValueError(f"history is {history}; it must be at least 1")
        self.history = history

    def scores(self, view: View, items: IntArray) -> FloatArray:
        cosine = view.evidence.cosine
        total = np.zeros(cosine.shape[0])
        for item in view.known[-self.history :].tolist():
            row = slice(cosine.indptr[item], cosine.indptr[item + 1])
            total[cosine.indices[row]] += cosine.data[row]
        return total[items]


class EASE(ScoringAgent):
    """Linear item-item model with a closed form (Steck, arXiv:1905.03375).

    Args:
        regularisation: λ added to the diagonal of the Gram matrix.

    Raises:
        ValueError: on binding, where the catalogue is larger than ``EASE_MAX_ITEMS``.
    """

    def __init__(self, regularisation: float = 50.0) -> None:
        if not regularisation > 0:
            raise ValueError(f"regularisation is {regularisation}; it must be positive, or the matrix has no inverse")
        self.regularisation = regularisation

    def scores(self, view: View, items: IntArray) -> FloatArray:
        weights = ease_weights(view.evidence, self.regularisation)
        # Row by row: the same sums whatever the order of items.
        total: FloatArray = weights[np.ix_(view.known, items)].astype(np.float64).sum(axis=0)
        return total


def ease_weights(evidence: Evidence, regularisation: float) -> NDArray[np.float32]:
    """float32 [I, I]: EASE's item-item weights B = I - P diag(P)^-1 with P = (XᵀX + λI)^-1; kept with the evidence.

    Raises:
        ValueError: a catalogue too large to invert.
    """
    count = evidence.data.num_items
    if count > EASE_MAX_ITEMS:
        raise ValueError(
            f"EASE inverts a {count} × {count} matrix ({4e-9 * count * count:.0f} GB) and is allowed "
            f"{EASE_MAX_ITEMS} items; raise k_core, or use item_knn, which is sparse"
        )
    name = f"ease {regularisation!r}"
    if name not in evidence.cache:
        gram = (evidence.matrix.T @ evidence.matrix).toarray()
        gram[np.diag_indices(count)] += regularisation
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        weights[np.diag_indices(count)] = 0
        evidence.cache[name] = weights
    weights = evidence.cache[name]
    assert isinstance(weights, np.ndarray)
    return weights


class BM25(ScoringAgent):
    """Items described in the words of the user's history: BM25 of title, brand and category, one query an item taken.

    Args:
        history: how many of the user's latest items make the query.
    """

    def __init__(self, history: int = 10) -> None:
        if history < 1:
            raise ValueError(f"history is {history}; it must be at least 1")
        self.history = history

    def scores(self, view: View, items: IntArray) -> FloatArray:
        index = _texts(view.items)
        query = np.zeros(index.bm25.shape[1])
        for item in view.known[-self.history :].tolist():
            query[index.columns(set(words(_text(view.items, item))))] += 1
        return np.asarray(index.bm25[items] @ query, dtype=np.float64)


def _texts(items: Items) -> TextIndex:
    if "agents.bm25" not in items.cache:
        items.cache["agents.bm25"] = TextIndex([_text(items, item) for item in range(len(items))])
    index = items.cache["agents.bm25"]
    assert isinstance(index, TextIndex)
    return index


def _text(items: Items, item: int) -> str:
    return " ".join(filter(None, (items.titles[item], items.brands[item], *items.categories[item])))
