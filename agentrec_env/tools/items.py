"""What is known of items: of one, of the pool, and how an item has fared up to now.

Popularity, rating and trend are counted from interactions before the task; the totals that Amazon's metadata carries
look into the future and are not read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.tools.base import tool
from agentrec_env.tools.names import find_item, plain, reference
from agentrec_env.tools.signals import matrix
from agentrec_env.tools.wording import (
    LEVELS,
    catalogue_lines,
    halvings,
    marks,
    money,
    pool_line,
    popularity_levels,
    tally,
)
from agentrec_env.types import FloatArray

FEW = 5
"""Interactions in 180 days below which a trend is noise."""
GROUPS = 8
"""Groups of candidates that are listed."""


@tool(guarded=False)
def item_info_search(view: View, item_name: str) -> str:
    """Look up one item: category, brand, price, rating, popularity, description.

    Args:
        item_name: The title of an item, a candidate number such as [3], or an item id.
    """
    item = find_item(view, item_name)
    items = view.items
    at = np.array([item])
    count = view.popularity(at)
    level = popularity_levels(view, count.astype(np.float64))[0]
    return "\n".join(
        [
            reference(view, item),
            f"category: {plain(' > '.join(items.categories[item]), 160) or 'unknown'}",
            f"brand: {plain(items.brands[item] or '', 60) or 'unknown'}",
            f"price: {money(items.prices[item])}",
            f"rating: {_rating(view.mean_rating(at)[0])}",
            f"popularity: {level} of {LEVELS} (taken {_times(count[0])} before now)",
            f"description: {plain(items.descriptions[item], 300) or 'unknown'}",
        ]
    )


@tool(guarded=False)
def candidates_analyze(view: View) -> str:
    """Group the candidates by category, brand and price, and say how each fits what the user took before."""
    if not len(view.candidates):
        return _catalogue(view)
    items, pool = view.items, view.candidates.tolist()
    lines = [f"{len(pool)} candidates."]
    lines.append(_groups(view, "category", lambda i: items.categories[i][-1] if items.categories[i] else None))
    lines.append(_groups(view, "brand", lambda i: items.brands[i]))
    lines.append(_price_groups(view))
    lines.append(f"Fit with what the user took, strength 1 to {LEVELS}:")
    fit = matrix(view, view.candidates, ["category", "brand", "price", "title"])
    lines.append(pool_line(view, "category", fit[:, 0], halvings(fit[:, 0], 0.75)))
    lines.append(pool_line(view, "brand", fit[:, 1], halvings(fit[:, 1], 0.5)))
    lines.append(pool_line(view, "price", np.exp(fit[:, 2]), halvings(np.exp(fit[:, 2]), 0.75)))
    lines.append(pool_line(view, "title words", fit[:, 3], halvings(fit[:, 3], 0.25)))
    return "\n".join(lines)


@tool(guarded=False)
def get_item_stats(view: View, item_name: str) -> str:
    """Say how often one item was taken up to now, how it is rated, and its trend; and how popular each candidate is.

    Args:
        item_name: The title of an item, a candidate number such as [3], or an item id.
    """
    item = find_item(view, item_name)
    at = np.array([item])
    count = view.popularity(at)
    level = popularity_levels(view, count.astype(np.float64))[0]
    recent = {days: float(view.recent_popularity(at, days)[0]) for days in (30, 90, 180)}
    lines = [
        reference(view, item),
        f"popularity: {level} of {LEVELS} (taken {_times(count[0])} before now)",
        "; ".join(f"last {days} days: {'unknown' if np.isnan(n) else int(n)}" for days, n in recent.items()),
        f"trend: {_trend(float(matrix(view, at, ['trend'])[0, 0]), recent[180])}",
        f"rating: {_rating(view.mean_rating(at)[0])}",
    ]
    if len(view.candidates):
        counts = view.popularity(view.candidates).astype(np.float64)
        lines.append(
            pool_line(view, f"Popularity of the candidates, 1 to {LEVELS}", counts, popularity_levels(view, counts))
        )
        newest = view.recent_popularity(view.candidates, 90)
        lines.append(pool_line(view, "In the last 90 days", newest, popularity_levels(view, newest)))
    return "\n".join(lines)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _rating(mean: float) -> str:
    return "unknown" if np.isnan(mean) else f"{mean:.1f} of 5"


def _trend(value: float, taken: float) -> str:
    if np.isnan(value):
        return "unknown"
    if taken < FEW:
        return "too few to tell"
    return "rising" if value > 0.4 else "falling" if value < -0.4 else "steady"


def _groups(view: View, what: str, key: Callable[[int], str | None]) -> str:
    groups: dict[str, list[int]] = {}
    for item in view.candidates.tolist():
        groups.setdefault(plain(key(item) or "", 50) or "unknown", []).append(item)
    if groups.keys() == {"unknown"}:
        return f"By {what}: unknown"
    unknown = groups.pop("unknown", [])
    largest = sorted(groups.items(), key=lambda group: -len(group[1]))  # stable: then by candidate number
    parts = [f"{name}: {marks(view, members)}" for name, members in largest[:GROUPS]]
    rest = [item for _, members in largest[GROUPS:] for item in members]
    parts += [f"others: {marks(view, sorted(rest, key=lambda i: view.number(i) or 0))}"] if rest else []
    parts += [f"unknown: {marks(view, unknown)}"] if unknown else []
    return f"By {what}: {'; '.join(parts)}"


def _price_groups(view: View) -> str:
    prices = view.items.prices[view.candidates]
    known = prices[~np.isnan(prices)]
    if not len(known):
        return "By price: unknown"
    low, high = np.quantile(known, [1 / 3, 2 / 3])
    bands = {
        f"up to {money(low)}": prices <= low,
        f"up to {money(high)}": (prices > low) & (prices <= high),
        "more": prices > high,
        "unknown": np.isnan(prices),
    }
    parts = [f"{name}: {marks(view, view.candidates[band].tolist())}" for name, band in bands.items() if band.any()]
    return f"By price: {'; '.join(parts)}"


def _catalogue(view: View) -> str:
    """What there is to say where every item is a candidate."""
    items = view.items
    prices: FloatArray = items.prices[~np.isnan(items.prices)]
    cost = "unknown" if not len(prices) else f"{money(prices.min())} to {money(prices.max())}"
    everything = np.arange(len(items))
    taken = view.popularity(everything).astype(np.float64)
    taken[view.known] = 0
    return "\n".join(
        [
            f"Every one of the {len(items)} items of the catalogue is a candidate; answer with item ids.",
            f"Largest categories: {tally(path[-1] for path in items.categories if path)}.",
            f"Prices: {cost}.",
            catalogue_lines(view, f"Most taken up to now, strength 1 to {LEVELS}", taken),
        ]
    )
