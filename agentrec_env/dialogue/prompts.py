"""Every string of the dialogue that a model reads, beside those of `agentrec_env.prompts`, which stay as they are.

The recommender learns of the user from one line among its tools, `ask_user`; the user reads what it wants, how to talk,
and then questions and the final list. What comes from data or from the other seat arrives disarmed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agentrec_env.data.dataset import Items
from agentrec_env.data.view import View
from agentrec_env.prompts import item_name
from agentrec_env.text import clip, neutralise, one_line
from agentrec_env.tools import ToolError, tool
from agentrec_env.types import Invalid

SILENCE = "(nothing that may be passed on)"
"""Stands for a reply that holds no word, or none any more."""
BANDS = ("cheap", "mid-priced", "expensive")
"""Thirds of the catalogue's prices."""
NO_QUESTIONS = "the user takes no more questions. Call other tools or answer."
NO_WORDS = "nothing of the question was left without its numbers and titles; ask in plain words."
DECIDE = "Write <accept/> to take an item from the list, or <leave/>."


@tool(register=False, guarded=False)
def ask_user(view: View, question: str) -> str:
    """Ask the user one question on what they look for. Each costs a little, and who is asked too often leaves.

    Put it alone in a message. Numbers and titles of candidates are taken out of question and reply: ask about the kind
    of thing, brands, prices in words.

    Args:
        question: One question in plain words.
    """
    if not any(map(str.isalpha, question)):
        raise ToolError("the question holds no word; ask about the kind of thing, a brand, or the price in words.")
    return question


QUESTION_ALONE = Invalid(
    "question_alone", "ask_user stands alone in a message; ask one question at a time, and call other tools later."
)


def user_prompt(view: View, target: int, patience: int) -> str:
    """The first observation of the user's seat.

    Args:
        view: Of the task: the user knows what it took before.
        target: The item it wants.
        patience: Questions that it answers gladly.
    """
    lines = [
        "You are a shopper who talks with a recommender. This is what you want, and only you know it:",
        *_facts(view.items, target),
        "",
        "Your latest items, oldest first:",
        *(f"- {item_name(view.items, item)}" for item in view.history.tolist()),
        "",
        "The recommender may ask you questions. Answer each truthfully in a few plain words. Numbers and titles are",
        f"taken out of what you say. You answer up to {patience} questions gladly; to end the talk, write <leave/>.",
        "Then it shows you a list. If what you want is on it, write <accept/>; else write <leave/>.",
    ]
    return "\n".join(lines)


def question(text: str) -> str:
    """What the user reads when it is asked; `text` is redacted already."""
    return f"The recommender asks: {neutralise(text)}"


def reply(text: str) -> str:
    """What the recommender reads when it is answered; `text` is redacted already."""
    return f"The user says: {neutralise(text)}"


def offer(items: Items, ranking: Sequence[int]) -> str:
    """The final list as the user reads it, best first."""
    shown = "\n".join(f"- {item_name(items, item)}" for item in ranking)
    return f"The recommender shows you this list, best first:\n{shown}\n{DECIDE}"


def band(items: Items, item: int) -> str | None:
    """The third of the catalogue's known prices that `item` lies in, one of `BANDS`; None without a price."""
    price = float(items.prices[item])
    if math.isnan(price):
        return None
    if "dialogue.bands" not in items.cache:
        known = items.prices[~np.isnan(items.prices)]
        items.cache["dialogue.bands"] = np.quantile(known, [1 / 3, 2 / 3])
    return BANDS[int(np.searchsorted(items.cache["dialogue.bands"], price))]


def _facts(items: Items, item: int) -> list[str]:
    """What the user knows of the item it wants, a line each."""
    price = band(items, item)
    facts = {
        "title": item_name(items, item),
        "category": " > ".join(items.categories[item]),
        "brand": items.brands[item] or "",
        "price": f"{items.prices[item]:.2f} ({price})" if price else "",
        "description": clip(items.descriptions[item], 300),
    }
    return [f"- {name}: {neutralise(one_line(fact)) or 'unknown'}" for name, fact in facts.items()]
