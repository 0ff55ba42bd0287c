"""Who asks: a paragraph on the user's tastes, from the interactions known when the task is asked."""

from __future__ import annotations

from collections import Counter

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.tools.base import tool
from agentrec_env.tools.lexical import title_index, words
from agentrec_env.tools.pool import cached
from agentrec_env.tools.wording import LEVELS, day, money, popularity_levels, tally
from agentrec_env.types import FloatArray

MAX_PROFILE = 200
"""Latest items that a profile is made of."""


@tool(guarded=False)
def get_user_profile(view: View) -> str:
    """Describe the user: preferred categories and brands, usual prices and ratings, long-term interests."""
    known = view.known[-MAX_PROFILE:]
    items = view.items
    times = view.known_times
    span = "" if times is None or not len(times) else f", from {day(times[0])} to {day(times[-1])}"
    lines = [
        f"Taken before now: {len(view.known)} items{span}.",
        f"Categories: {tally(items.categories[i][-1] for i in known if items.categories[i])}.",
        f"Brands: {tally(brand for i in known if (brand := items.brands[i]))}.",
        f"Prices: {_prices(items.prices[known])}.",
        f"Ratings given: {_ratings(view.known_ratings[-MAX_PROFILE:].astype(np.float64))}.",
        f"Words that recur in titles: {_interests(view, known.tolist())}.",
    ]
    levels = popularity_levels(view, view.popularity(known).astype(np.float64))
    lines.append(f"Usual popularity of what is taken: {int(np.median(levels))} of {LEVELS}.")
    return "\n".join(lines)


def _prices(prices: FloatArray) -> str:
    prices = prices[~np.isnan(prices)]
    if not len(prices):
        return "unknown"
    return f"{money(prices.min())} to {money(prices.max())}, median {money(float(np.median(prices)))}"


def _ratings(ratings: FloatArray) -> str:
    ratings = ratings[~np.isnan(ratings)]
    return f"mean {ratings.mean():.1f} of 5 over {len(ratings)}" if len(ratings) else "unknown"


def _interests(view: View, known: list[int]) -> str:
    """Words of several known titles, those that few other items have first."""
    index = title_index(view.items)
    documents = cached(view.items.cache, "title words", lambda: np.diff(index.tfidf.tocsc().indptr))
    read: dict[int, frozenset[str]] = cached(view.items.cache, "telling words", dict)
    for i in known:
        if i not in read:
            read[i] = frozenset(w for w in words(view.items.titles[i] or "") if len(w) > 2 and not w.isdigit())
    counts = Counter(w for i in known for w in read[i])
    total = len(view.items)
    weight = {w: n * np.log(total / documents[index.vocabulary[w]]) for w, n in counts.items() if n > 1}
    best = sorted(weight, key=lambda w: (-weight[w], w))[:6]
    return ", ".join(best) or "none"
