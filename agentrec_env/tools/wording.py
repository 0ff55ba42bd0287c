"""How numbers become words: short ordered lists with strengths from 1 to 8, which a small language model can use.

A list is ordered by the number itself, so nothing is lost within it; the strength says how much it is on a scale that
means the same in every task. Ties are in the order of the candidate numbers, which are shuffled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.tools.names import mark, plain, reference
from agentrec_env.tools.pool import cached
from agentrec_env.types import FloatArray, IntArray

LEVELS = 8
SHOWN = 20
"""Candidates in one list; larger pools show the strongest."""
RETRIEVED = 10
"""Items in one list of the catalogue mode."""


def halvings(values: FloatArray, top: float) -> IntArray:
    """int64 [M]: 8 from ``top`` on, one less for each halving, at least 1; 0 for what is not positive or unknown."""
    ratios = values / top
    exponents = np.where(ratios > 0, np.frexp(ratios)[1], -LEVELS)  # e where the ratio is m * 2**e, 0.5 <= m < 1
    levels: IntArray = np.minimum(np.maximum(exponents + (LEVELS - 1), 1), LEVELS).astype(np.int64)
    levels[~(values > 0)] = 0
    return levels


def steps(values: FloatArray, low: float, high: float) -> IntArray:
    """int64 [M]: 0 up to ``low`` and for what is unknown, 8 from ``high`` on, in equal steps between."""
    share = (np.nan_to_num(values, nan=low) - low) / (high - low)
    levels: IntArray = np.clip(np.ceil(LEVELS * share), 0, LEVELS).astype(np.int64)
    return levels


def popularity_levels(view: View, counts: FloatArray) -> IntArray:
    """int64 [M]: 0 for never taken, to 8 for as often as the most taken item of the evidence, in steps of the log."""
    top = cached(view.evidence.cache, "top popularity", lambda: int(view.evidence.popularity.max(initial=1)))
    share = np.log1p(np.where(counts > 0, counts, 0.0)) / np.log1p(max(top, 1))
    levels: IntArray = np.clip(np.ceil(LEVELS * share), 0, LEVELS).astype(np.int64)
    return levels


def pool_line(view: View, what: str, values: FloatArray, levels: IntArray) -> str:
    """``what: [3]=8 [12]=5; others 0``: the candidates by falling value, with their strength.

    Args:
        view: of the task, which has a pool.
        what: what the numbers are.
        values: float64 [C], nan where unknown.
        levels: int64 [C], 0 for no sign.
    """
    strengths = levels.tolist()
    order = np.argsort(-values, kind="stable").tolist()  # unknown ones last
    signs = [f"[{i + 1}]={strengths[i]}" for i in order if strengths[i] > 0]
    unknown = [f"[{i}]" for i, missing in enumerate(np.isnan(values).tolist(), 1) if missing]
    silent = strengths.count(0) - len(unknown)
    if len(unknown) == len(values):
        return f"{what}: unknown"
    parts = (
        [" ".join(signs[:SHOWN]) + (f" and {len(signs) - SHOWN} weaker" if len(signs) > SHOWN else "")] if signs else []
    )
    if silent:
        parts.append("others 0" if signs else "none")
    if unknown:
        parts.append(f"unknown {' '.join(unknown)}" if len(unknown) <= SHOWN // 2 else f"{len(unknown)} unknown")
    return f"{what}: {'; '.join(parts)}"


def catalogue_lines(view: View, what: str, scores: FloatArray, count: int = RETRIEVED) -> str:
    """The ``count`` items of largest positive score, with marks, titles and strengths relative to the first.

    Args:
        view: of the task.
        what: what the scores are.
        scores: float64 [I] over the whole catalogue; what must not be shown is 0 or less.
        count: how many at most.
    """
    best = top_items(view, scores, count)
    if not len(best):
        return f"{what}: none"
    levels = np.ceil(LEVELS * scores[best] / scores[best[0]]).astype(int)
    lines = [f"{reference(view, int(item))} = {level}" for item, level in zip(best, levels, strict=True)]
    return "\n".join([f"{what}:", *lines])


def top_items(view: View, scores: FloatArray, count: int) -> IntArray:
    """int64 [<=count]: the items of largest positive score.

    Ties are broken by a fixed shuffle of the catalogue: the order of items in a file may tell when each was first
    taken.
    """
    places = np.flatnonzero(scores > 0)
    if len(places) > 4 * count:
        bar = np.partition(scores[places], len(places) - count)[len(places) - count]
        places = places[scores[places] >= bar]
    shuffle = cached(view.items.cache, "shuffle", lambda: np.random.default_rng(0).permutation(len(scores)))
    return places[np.lexsort((shuffle[places], -scores[places]))][:count]


def marks(view: View, items: Iterable[int]) -> str:
    """The marks of several items that have one."""
    return " ".join(filter(None, (mark(view, item) for item in items)))


def tally(names: Iterable[str], count: int = 5) -> str:
    """``Nail Polish 5, Lip Gloss 2``: the most frequent names, first come first where even; "unknown" where none."""
    frequent = Counter(names).most_common(count)
    return ", ".join(f"{plain(name, 50)} {times}" for name, times in frequent) or "unknown"


def money(value: float) -> str:
    """A price; prices carry no currency in the data."""
    return "unknown" if np.isnan(value) else f"{value:.2f}"


def day(time: int | None) -> str:
    """The UTC day of a time in ms since the epoch."""
    if time is None:
        return "unknown"
    try:
        return str((datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(time))).date())
    except OverflowError:
        return "unknown"
