"""How the user behaves: what the latest session was about, and what was liked.

Statistics over the user's own known interactions (AgenticRec, arXiv:2603.21613, sec. 3), set against the candidates.
"""

from __future__ import annotations

import numpy as np

from agentrec_env.data.view import DAY, View
from agentrec_env.tools.base import tool
from agentrec_env.tools.names import title
from agentrec_env.tools.signals import matrix
from agentrec_env.tools.wording import LEVELS, day, halvings, money, pool_line, tally
from agentrec_env.types import IntArray

SESSION_GAP = 7 * DAY
"""A pause longer than this (ms) starts a session; many sources know whole days only."""
RECENT = 3
"""Latest items that stand for a session where times are unknown."""
LISTED = 5
"""Titles in a list."""


@tool(guarded=False)
def get_session_behavior(view: View) -> str:
    """Compare the user's latest session with earlier ones: how interests, brands and prices move."""
    known, times = view.known, view.known_times
    start = max(len(known) - RECENT, 0)
    if times is None:
        lines = [f"Times are unknown; the latest {len(known) - start} of {len(known)} items stand for the session."]
    else:
        starts = np.append(0, np.flatnonzero(np.diff(times) > SESSION_GAP) + 1)
        start = int(starts[-1])
        lines = [
            f"{len(starts)} sessions (parted by more than {SESSION_GAP // DAY} days); the latest has "
            f"{len(known) - start} of {len(known)} items, {day(times[start])} to {day(times[-1])}, "
            f"{_ago(view, int(times[-1]))}."
        ]
    session, earlier = known[start:], known[:start]
    lines.append(f"Latest session: {_titles(view, session)}.")
    for what, of in (("Categories", _categories), ("Brands", _brands), ("Median price", _price)):
        lines.append(
            f"{what}: session {of(view, session)}; earlier {of(view, earlier) if len(earlier) else 'nothing'}."
        )
    if len(view.candidates):
        near = matrix(view, view.candidates, ["title_recent", "category_recent"])
        lines.append(f"Candidates like the latest items, strength 1 to {LEVELS}:")
        lines.append(pool_line(view, "title words", near[:, 0], halvings(near[:, 0], 0.25)))
        lines.append(pool_line(view, "category", near[:, 1], halvings(near[:, 1], 0.75)))
    return "\n".join(lines)


@tool(guarded=False)
def get_rating_behavior(view: View) -> str:
    """Group what the user took by the rating given: high (4 to 5), middle (3 to 4), low (under 3)."""
    ratings = view.known_ratings.astype(np.float64)
    rated = ~np.isnan(ratings)
    if not rated.any():
        lines = [f"Ratings of the user's {len(ratings)} items: unknown."]
    else:
        lines = [f"Mean rating {ratings[rated].mean():.1f} of 5 over {int(rated.sum())} of {len(ratings)} items."]
        bands = {"High": ratings >= 4, "Middle": (ratings >= 3) & (ratings < 4), "Low": ratings < 3}
        for name, band in bands.items():
            lines.append(f"{name} ({int(band.sum())}): {_titles(view, view.known[band])}.")
    if len(view.candidates):
        others = view.mean_rating(view.candidates)
        levels = np.where(np.isnan(others), 0, np.clip(np.ceil((others - 3) * LEVELS / 2), 1, LEVELS)).astype(np.int64)
        lines.append(pool_line(view, f"How others rated the candidates, 1 (3 or less) to {LEVELS} (5)", others, levels))
    return "\n".join(lines)


def _titles(view: View, items: IntArray) -> str:
    names = [title(view.items, int(item)) for item in items[::-1][:LISTED]]
    more = len(items) - LISTED
    return ("; ".join(names) or "none") + (f"; and {more} earlier" if more > 0 else "")


def _categories(view: View, items: IntArray) -> str:
    return tally((path[-1] for i in items.tolist() if (path := view.items.categories[i])), 3)


def _brands(view: View, items: IntArray) -> str:
    return tally((brand for i in items.tolist() if (brand := view.items.brands[i])), 3)


def _price(view: View, items: IntArray) -> str:
    prices = view.items.prices[items]
    prices = prices[~np.isnan(prices)]
    return money(float(np.median(prices))) if len(prices) else "unknown"


def _ago(view: View, time: int) -> str:
    if view.time is None:
        return "time of the request unknown"
    days = (view.time - time) // DAY
    return "today" if days <= 0 else f"{days} day{'s' if days > 1 else ''} ago"
