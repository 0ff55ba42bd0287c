"""Who asks: a paragraph on the user's tastes, from the interactions known when the task is asked."""

from __future__ import annotations

from collections import Counter

from agentrec_env.data.view import View
from agentrec_env.tools.base import tool


@tool(guarded=False)
def get_user_profile(view: View) -> str:
    """Summarise the user: preferred categories and brands, usual prices and ratings, long-term interests."""
    known = view.known.tolist()
    leaves = Counter(view.items.categories[i][-1] for i in known if view.items.categories[i])
    favourites = ", ".join(f"{name} ({count})" for name, count in leaves.most_common(5))
    return f"{len(known)} items taken before now. Favourite categories: {favourites or 'unknown'}."
