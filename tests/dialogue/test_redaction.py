"""No number and no name of an item passes between the seats, however it is written; plain words do."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.dialogue.redaction import GAP, LIMIT, Names, has_words, redact

NONE = Names((), frozenset(), frozenset())
WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred "
    "thousand million dozen first second third fourth fifth sixth seventh eighth ninth tenth eleventh "
    "twelfth thirteenth nineteenth twentieth once twice",
)
SEPARATORS = ("", " ", "-", ".", "_", "/", " - ", "\u200b", "\u2060", "\u00ad", "\n", "*", "😀", "'", ", ")
NUMERALS = st.characters(categories=["Nd", "Nl", "No"])


@pytest.fixture(scope="module")
def items(tiny: Dataset) -> Items:
    return tiny.items


@pytest.fixture(scope="module")
def names(items: Items) -> Names:
    return Names.of(items, range(20))


def letters(text: str) -> str:
    return "".join(filter(str.isalpha, text))


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.text(max_size=400), st.text("abeino tw1٣²Ⅷ三.-'…\u0301\u200b", max_size=60)))
@example("…1…")
@example("s even if it's even")
def test_what_passes_is_letters_blanks_and_punctuation_and_passes_again(names: Names, text: str) -> None:
    said = redact(text, names)
    assert redact(said, names) == said
    assert len(said) <= LIMIT
    for character in said:
        assert unicodedata.category(character)[0] == "L" or character in " .,;:!?'\"()-&/" + GAP
        assert unicodedata.numeric(character, None) is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(NUMERALS, min_size=1, max_size=8), st.sampled_from(SEPARATORS), st.sampled_from(("", "item", "No. ", "#"))
)
def test_digits_of_any_script_leave_the_same_gap_whatever_their_value_and_number(
    digits: list[str], separator: str, label: str
) -> None:
    said = redact(f"I want {label}{separator.join(digits)} please", NONE)
    assert re.fullmatch(r"I want (No\. |item …? ?)?…? ?please|I want … please", said.replace("No. …", "No. …")), said
    assert said.count(GAP) == 1


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_number_words_pass_in_no_spelling(data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(WORDS))
    hidden = "".join(letter + data.draw(st.sampled_from(SEPARATORS)) for letter in word[:-1]) + word[-1]
    hidden = data.draw(st.sampled_from((str, str.upper, str.title, fullwidth)))(hidden)
    assert redact(f"that is {hidden} please", NONE) == f"that is {GAP} please"


def fullwidth(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text)


SPELT = re.findall(r"\w+", "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen")
NTH = re.findall(
    r"\w+", "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
)
ROMAN = re.findall(r"\w+", "I II III IV V VI VII VIII IX X XI XII XIII XIV XV")
CODES: dict[str, Callable[[int], str]] = {
    "digits": str,
    "digits apart": lambda n: " ".join(f"{n:03d}"),
    "item7": lambda n: f"item{n}",
    "full-width": lambda n: fullwidth(str(n)),
    "circled": lambda n: chr(0x245F + n),
    "keycap": lambda n: "".join(f"{digit}\ufe0f\u20e3" for digit in str(n)),
    "Arabic-Indic": lambda n: str(n).translate({48 + d: 0x660 + d for d in range(10)}),
    "binary": lambda n: f"{n:04b}",
    "words": lambda n: SPELT[n - 1],
    "words glued": lambda n: f"number{SPELT[n - 1]}",
    "words spelled out": lambda n: "-".join(SPELT[n - 1]),
    "words in pairs": lambda n: f"twenty{SPELT[min(n, 9) - 1]}",
    "ordinals": lambda n: NTH[n - 1],
    "Roman": lambda n: ROMAN[n],
    "Roman sign": lambda n: chr(0x215F + min(n, 12)),
    "dice": lambda n: chr(0x267F + min(n, 6)),
    "strokes": lambda n: "|" * n,
    "ones": lambda n: "1 " * n,
    "words repeated": lambda n: "la " * n,
    "marks": lambda n: "!" * (n + 2),
    "blanks": lambda n: " " * n,
    "zero width": lambda n: "\u200b" * n,
    "accents": lambda n: "z" + "\u0335" * n,
    "variation selectors": lambda n: "z" + chr(0xFE00 + n),
    "tags": lambda n: chr(0xE0030 + min(n, 9)),
}


@pytest.mark.parametrize("code", CODES)
def test_a_user_that_knows_the_number_cannot_tell_it(code: str) -> None:
    assert len({redact(f"it is {CODES[code](n)} then", NONE) for n in range(1, 15)}) == 1


TITLES = (
    "Brynilmora Controller Skin Classic 516 | Textured and Silicone | for Left and Right, 12-Pack",
    "Skillet, Carbon Steel Essential, with Lid - Navy (2-Pack)",
    "Noruforge Vista 974 USB Microphone - Studio, Cardioid (Teal, XLR)",
    "Guitar Strap Plus | Woven & Padded | 3 in Wide",
    "D'Addario EXL110 Nickel Wound Electric Guitar Strings, Regular Light, 10-46",
    "Kind of Blue",
    "Café del Mar: Música Volumen Dos",
    "Puzzle Puzzle Puzzle for 2 to 4 Players",
)


def shop() -> Items:
    n = len(TITLES)
    paths = [("Music", "Guitar Straps")] * n
    return Items([f"B0{i}X{i}" for i in range(n)], TITLES, ["Brynilmora"] * n, paths, [1.0] * n, [""] * n)


def shouted(title: str) -> str:
    return title.upper()


def spread(title: str) -> str:
    return " 1 ".join(re.findall(r"\w+", title))


def chopped(title: str) -> str:
    return re.sub(r"(\w\w)", r"\1-", title)


def glued(title: str) -> str:
    return re.sub(r"[\W_]+", "", title)


def beheaded(title: str) -> str:
    return title.partition(" ")[2]


@pytest.mark.parametrize("spelling", [str, shouted, spread, glued])
def test_a_user_that_says_the_title_says_nothing(spelling: Callable[[str], str]) -> None:
    names = Names.of(shop(), range(len(TITLES)))
    assert {letters(redact(f"I want {spelling(title)} now", names)) for title in TITLES} == {"Iwantnow"}


@pytest.mark.parametrize("spelling", [chopped, beheaded])
def test_most_of_a_title_or_its_pieces_say_nothing(spelling: Callable[[str], str]) -> None:
    names = Names.of(shop(), range(len(TITLES)))
    assert {letters(redact(f"I want {spelling(title)} now", names)) for title in TITLES[:4]} == {"Iwantnow"}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_an_id_passes_in_no_spelling(items: Items, names: Names, data: st.DataObject) -> None:
    item_id = items.ids[data.draw(st.integers(0, 19))]
    hidden = "".join(character + data.draw(st.sampled_from(SEPARATORS)) for character in item_id)
    assert (
        letters(redact(f"please take {data.draw(st.sampled_from((str, str.lower)))(hidden)}!", names)) == "pleasetake"
    )


def test_ids_of_letters_and_short_titles_are_names_too() -> None:
    items = Items(
        ["apple", "pear"],
        ["Kind of Blue", "Aja"],
        ["Miles", None],
        [("Jazz", "Kind of Blue Notes"), ()],
        [1.0, 2.0],
        ["", ""],
    )
    names = Names.of(items, [0, 1])
    assert redact("the apple, or Aja, not kind of blue", names) == "the …, or …, not …"
    assert (
        redact("pineapple by Miles, jazz, of the kind of blue notes", names)
        == "pineapple by Miles, jazz, of the kind of blue notes"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Kitchen & Dining",
        "I'd like something cheap, it's for a friend; not red!",
        "Etwas für die Küche, bitte",
        "Ernie Ball",
        "often the weight of the stone money phone",
        "ゴルフ用品",
        "mid-priced (or cheap)",
    ],
)
def test_plain_words_pass(text: str) -> None:
    assert redact(text, NONE) == text


def test_what_is_empty_or_long() -> None:
    assert redact("", NONE) == ""
    assert not has_words(redact("1 2 3!", NONE))
    assert len(redact("word another " * 1000, NONE)) <= LIMIT
