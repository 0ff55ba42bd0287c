"""Search by words in titles, brands and categories. In catalogue mode it is how an agent finds items to answer with."""

from __future__ import annotations

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.tools.base import tool
from agentrec_env.tools.lexical import search_index, words
from agentrec_env.tools.names import title
from agentrec_env.tools.schema import ToolError
from agentrec_env.tools.wording import LEVELS, catalogue_lines, pool_line, top_items

OUTSIDE = 5
"""Items outside the pool that are named."""


@tool(guarded=False)
def search_items(view: View, query: str) -> str:
    """Find items by words in title, brand or category.

    Args:
        query: A few words, such as a kind of product, a brand or an artist.
    """
    if not words(query):
        raise ToolError("the query holds no word; give a kind of product, a brand, or words of a title.")
    scores = search_index(view.items).search(query).astype(np.float64)
    top = scores.max(initial=0.0)
    if top == 0:
        return "No item of the catalogue has any of these words. Try others."
    if not len(view.candidates):
        return catalogue_lines(view, f"Found, strength 1 to {LEVELS}", scores)
    pool = scores[view.candidates]
    line = pool_line(
        view, f"Candidates found, strength 1 to {LEVELS}", pool, np.ceil(LEVELS * pool / top).astype(np.int64)
    )
    scores[view.candidates] = 0
    others = "; ".join(title(view.items, int(item)) for item in top_items(view, scores, OUTSIDE))
    return f"{line}\nOutside the pool: {others or 'none'}."
