"""What is taken out of all that one seat says to the other, so that the two cannot agree on an item behind the words.

The user knows the wanted item and the recommender the numbers of the pool: a number, an id or a title passed between
them would replace the dialogue by a look-up. `redact` is one function for both directions, with these rules:

1. Only letters, blanks and plain punctuation remain. Characters are folded first (NFKC, so that full-width, circled and
   mathematical letters count as letters); invisible ones and combining marks vanish, symbols become blanks, any other
   punctuation than ``.,;:!?'"()-&/`` too.
2. Names: an id of the pool, whatever stands between its characters; and three or more words in a row of a candidate's
   title (all of a shorter title), unless they are wholly names of brands or categories of the pool. Titles of all
   candidates count alike, so what is missing does not tell the target. Only letters are compared, so digits, blanks
   and punctuation in between do not hide a title.
3. Numbers: every word with a character that has a numeric value in any script (digits, ², ½, Ⅷ, ⑦, 三), every English
   number word from zero to trillion, cardinal or ordinal or in one piece (twentyone), also where separators cut it up
   (t-w-o, f our), and Roman numerals from II to XXXIX, V and X.
4. A word said twice in a row is said once, and so is what was taken out; of three equal letters in a row two remain, of
   three marks of punctuation one: counting gives no number.

What is taken out is shown as ``…``. The rules are applied until nothing changes, so `redact` is idempotent.

It closes the channels that need no agreement. Two players trained together could still make any word a sign, in any
language; the short limit on messages and the price of questions bound what that is worth, and no filter ends it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from agentrec_env.data.dataset import Items
from agentrec_env.text import one_line

GAP = "…"
"""Stands for what was taken out."""
LIMIT = 300
"""Characters of a message that are read."""
RUN = 3
"""Words of a title in a row that name it."""
GLUED = 10
"""Letters from which on a name is found inside longer words too."""

_PUNCTUATION = frozenset(".,;:!?'\"()-&/" + GAP)
_FOLD = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"})
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_TRIPLE = re.compile(r"([^\W\d_])\1{2,}")
_GAPS = re.compile(rf"{GAP}(?:[\W_]*{GAP})+")
_STUTTER = re.compile(r"([.,;:!?'\"()\-&/])(?:\s*[.,;:!?'\"()\-&/]){2,}")

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve nought naught"
_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fourty fifty sixty seventy eighty ninety"
_LARGE = "hundred thousand million billion trillion dozen"
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth twentieth thirtieth fortieth "
    "fiftieth sixtieth seventieth eightieth ninetieth"
)
_OTHERS = "once twice thrice twelve sixes"
_NAMES = sorted(" ".join((_UNITS, _TEENS, _TENS, _LARGE, _ORDINALS, _OTHERS)).split(), key=len, reverse=True)
_NUMBER = re.compile(rf"(?:number|item|candidate|option|place)*(?:{'|'.join(_NAMES)})+(?:s|th|ths)?")
_LONGEST = 12
"""Letters that pieces of words may have together to be tried as one number."""
_ROMAN = re.compile(r"(?=..)x{0,3}(?:ix|iv|v?i{0,3})|[vx]")


@dataclass(frozen=True)
class Names:
    """How the items of a pool may be named."""

    ids: tuple[str, ...]
    """Ids with a digit: letters and digits alone, each digit as 0."""
    titles: frozenset[str]
    """Letters of runs of words that name an item, `RUN` long, or of a whole title that is shorter."""
    attributes: frozenset[str]
    """Letters of brands and categories."""

    @classmethod
    def of(cls, items: Items, pool: Iterable[int]) -> Names:
        """The names of the items at `pool`."""
        ids: set[str] = set()
        titles: set[str] = set()
        attributes: set[str] = set()
        for item in pool:
            squashed = "".join(filter(str.isalnum, _plain(items.ids[item]))).casefold()
            if "0" in squashed:
                ids.add(squashed)
            else:
                titles.add("".join(_words(items.ids[item])))
            title = _words(items.titles[item] or "")
            titles.update("".join(title[at : at + RUN]) for at in range(max(len(title) - RUN, 0) + 1))
            attributes.update("".join(_words(name)) for name in (items.brands[item] or "", *items.categories[item]))
        return cls(tuple(sorted(ids)), frozenset(titles - {""}), frozenset(attributes - {""}))


def redact(text: str, names: Names) -> str:
    """`text` on one line without numbers and without names of items; see the head of this file.

    Args:
        text: What a seat wrote; only its first `LIMIT` characters are read.
        names: Of the pool.
    """
    passed = _pass(text, names)
    while passed != text:
        text, passed = passed, _pass(passed, names)
    return text


def has_words(text: str) -> bool:
    """Whether anything was left to read."""
    return any(character.isalpha() for character in text)


def _pass(text: str, names: Names) -> str:
    text = _cut_ids(one_line(_plain(text[:LIMIT])), names.ids)
    found = list(_WORD.finditer(text))
    said = [_key(match.group()) for match in found]
    letters = [place for place, word in enumerate(said) if "0" not in word]
    runs = [list(places) for _, places in groupby(letters, said.__getitem__)]
    titled = _titled([said[places[0]] for places in runs], names)
    cut = _numbers(said).union(*(runs[place] for place in titled))
    again = {place for places in runs for place in places[1:]} - cut
    parts, end = [], 0
    for place in sorted(cut | again):
        parts += [text[end : found[place].start()], GAP if place in cut else ""]
        end = found[place].end()
    text = _GAPS.sub(GAP, "".join([*parts, text[end:]]))
    return one_line(_STUTTER.sub(r"\1 ", text))


def _plain(text: str) -> str:
    """`text` in the characters that may be said; each that is a number as 0."""
    return _TRIPLE.sub(r"\1\1", "".join(map(_character, unicodedata.normalize("NFC", text.translate(_FOLD)))))


def _character(character: str) -> str:
    if _is_number(character):
        return "0"
    if character in _PUNCTUATION:
        return character
    folded = unicodedata.normalize("NFKC", character)
    if folded != character:
        return "".join(map(_character, folded))
    kind = unicodedata.category(character)
    if kind[0] == "L":
        return character
    return "" if kind in ("Cf", "Mn", "Me", "Mc") or (kind == "Cc" and not character.isspace()) else " "


def _is_number(character: str) -> bool:
    return unicodedata.category(character)[0] == "N" or unicodedata.numeric(character, None) is not None


def _key(word: str) -> str:
    """What two spellings of one word share: no case, no accents, no apostrophes."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKD", word.casefold())))


def _words(text: str) -> tuple[str, ...]:
    """The words of letters in a text of the data, as they are compared; a word said twice in a row once."""
    found = [word for word in map(_key, _WORD.findall(_plain(text))) if "0" not in word]
    return tuple(word for word, _ in groupby(found))


def _cut_ids(text: str, ids: Sequence[str]) -> str:
    """`text` without the ids, with anything but letters and digits between their characters."""
    places = [place for place, character in enumerate(text) if character.isalnum()]
    squashed = "".join(text[place].casefold()[:1] for place in places)
    hidden: set[int] = set()
    for item_id in ids:
        at = squashed.find(item_id)
        while at >= 0:
            hidden.update(range(places[at], places[at + len(item_id) - 1] + 1))
            at = squashed.find(item_id, at + 1)
    kept = (GAP if place - 1 not in hidden else "" for place in range(len(text)))
    return "".join(gap if place in hidden else text[place] for place, gap in enumerate(kept))


def _numbers(said: Sequence[str]) -> set[int]:
    """Places of words that are numbers, alone or put together with their neighbours."""
    cut = set()
    for place, word in enumerate(said):
        if "0" in word or _ROMAN.fullmatch(word):
            cut.add(place)
            continue
        joined = ""
        for last in range(place, len(said)):
            joined += said[last]
            if len(joined) > _LONGEST and last > place:
                break
            if _NUMBER.fullmatch(joined):
                cut.update(range(place, last + 1))
    return cut


def _titled(said: Sequence[str], names: Names) -> set[int]:
    """Places of words that name an item, however they are cut up or glued together."""
    joined = "".join(said)
    owner = [place for place, word in enumerate(said) for _ in word]
    edges = {0, len(joined), *(at for at in range(1, len(joined)) if owner[at] != owner[at - 1])}

    def found(name: str) -> Iterator[tuple[bool, range]]:
        at = joined.find(name)
        while at >= 0:
            end = at + len(name)
            yield at in edges and end in edges, range(owner[at], owner[end - 1] + 1)
            at = joined.find(name, at + 1)

    attribute = {place for name in names.attributes for whole, run in found(name) if whole for place in run}
    return {
        place
        for name in names.titles
        for whole, run in found(name)
        if (whole or len(name) >= GLUED) and not attribute.issuperset(run)
        for place in run
    }
