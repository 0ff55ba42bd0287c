"""How tools call items, and how they find the item that a model means.

A candidate is ``[3]``, an item of the catalogue mode ``[its id]``, any other item its title. Square brackets in titles
are shown as round ones, so what stands in square brackets was written by a tool and cannot be forged by a title.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from agentrec_env.data.dataset import Items
from agentrec_env.data.view import View
from agentrec_env.text import one_line
from agentrec_env.tools.lexical import title_index, words
from agentrec_env.tools.pool import cached
from agentrec_env.tools.schema import ToolError

TITLE_LENGTH = 80
"""Characters of a title that tools show."""

_BRACKETS = str.maketrans("[]", "()")
_NUMBER = re.compile(r"#?\s*(\d{1,4})\.?")
_REFERENCE = re.compile(r"\[([^\]]{1,200})\](?:\s+\S.*)?", re.DOTALL)
_NAMELESS = re.compile(r"unknown title \(item (.{1,200})\)", re.DOTALL)
_CUT = re.compile(r"\s*(?:…|\.\.\.)(?:\s*\(\d+ more characters\))?$")


@lru_cache(maxsize=2**16)
def plain(text: str, length: int = TITLE_LENGTH) -> str:
    """Text from data as a tool shows it: one line, capped, without square brackets."""
    line = one_line(text[: 8 * length])
    return (line if len(line) <= length else line[: length - 1].rstrip() + "…").translate(_BRACKETS)


def title(items: Items, item: int) -> str:
    """The title of an item, or that it has none."""
    return plain(items.titles[item] or "") or f"unknown title (item {one_line(items.ids[item])})"


def mark(view: View, item: int) -> str | None:
    """``[3]`` for a candidate, ``[id]`` in catalogue mode, None for what cannot be answered."""
    number = view.number(item)
    if number is not None:
        return f"[{number}]"
    return f"[{one_line(view.items.ids[item])}]" if not len(view.candidates) else None


def reference(view: View, item: int) -> str:
    """An item with its mark, where it has one, and its title."""
    name = title(view.items, item)
    sign = mark(view, item)
    return f"{sign} {name}" if sign else name


def find_item(view: View, name: str) -> int:
    """The item that a model means by ``name``.

    Tried in this order: a candidate number (``[3]``, or ``3`` where no item at hand has that title), an id, the words
    of a title (of several items the one in the pool, in the user's history, or the most taken one), a title that was
    shown cut off, and a title that differs in a few words.

    Raises:
        ToolError: nothing fits; names the nearest titles.
    """
    text = one_line(name)
    if nameless := _NAMELESS.fullmatch(text):
        text = nameless.group(1)
    bracketed = _REFERENCE.fullmatch(text)
    inner = bracketed.group(1) if bracketed else text
    number = _NUMBER.fullmatch(inner)
    titled = _by_title(view.items).get(_key(text), ())
    at_hand = list(dict.fromkeys([*view.candidates.tolist(), *view.known[::-1].tolist()]))
    if number and len(view.candidates) and (bracketed or not set(at_hand).intersection(titled)):
        place = int(number.group(1))
        if 1 <= place <= len(view.candidates):
            return int(view.candidates[place - 1])
        if bracketed:
            raise ToolError(f"there is no candidate {place}; candidates are [1] to [{len(view.candidates)}].")
    for item_id in (text, inner):
        if item_id in view.items.index:
            return view.items.index[item_id]
    if titled:
        return _best(view, np.asarray(titled, np.int64))
    return _nearest(view, text, at_hand)


def _key(text: str) -> str:
    """What two spellings of one title share."""
    return " ".join(words(text)) or text.casefold()


def _by_title(items: Items) -> dict[str, tuple[int, ...]]:
    """Title key -> items of that title."""

    def build() -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for item, text in enumerate(items.titles):
            if text and (key := _key(one_line(text))):
                found[key] = (*found.get(key, ()), item)
        return found

    return cached(items.cache, "by title", build)


def _best(view: View, same: np.ndarray) -> int:
    """Of items of one title, the one most likely meant."""
    if len(same) == 1:
        return int(same[0])
    known = set(view.known.tolist())
    taken = view.popularity(same)
    ids = view.items.ids

    def place(at: int) -> tuple[object, ...]:
        item = int(same[at])
        number = view.number(item)
        return number is None, number or 0, item not in known, -int(taken[at]), ids[item]

    return int(same[min(range(len(same)), key=place)])


def _nearest(view: View, text: str, at_hand: list[int]) -> int:
    wanted = words(_CUT.sub("", text))
    if not wanted:
        raise ToolError(f"no item is called {_echo(text)}; give a title{_or_number(view)} or an item id.")
    cut = bool(_CUT.search(text))
    scores = title_index(view.items).search(" ".join(wanted))
    hits = np.argpartition(-scores, min(10, len(scores) - 1))[:10]
    hits = hits[np.lexsort((hits, -scores[hits]))]
    far = [int(i) for i in hits if scores[i] > 0 and int(i) not in set(at_hand)]
    ranked: list[tuple[float, int]] = []
    for items, ease in ((at_hand, 0.6), (far, 0.8)):
        for item in items:
            have = words(view.items.titles[item] or "")
            if cut and have[: len(wanted) - 1] == wanted[:-1] and len(wanted) > 2:
                return item
            common = len(set(have) & set(wanted))
            ranked.append((2 * common / max(len(set(have)) + len(set(wanted)), 1) - ease, item))
    ranked.sort(key=lambda entry: -entry[0])  # stable: items at hand first
    if ranked and ranked[0][0] >= 0 and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
        return ranked[0][1]
    near = [reference(view, item) for score, item in ranked if score > -0.6][:3]
    guess = f" Did you mean: {'; '.join(near)}?" if near else ""
    raise ToolError(f"no item is called {_echo(text)}.{guess} Give a title as shown{_or_number(view)}, or an item id.")


def _echo(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _or_number(view: View) -> str:
    return f", a candidate number such as [{len(view.candidates)}]" if len(view.candidates) else ""
