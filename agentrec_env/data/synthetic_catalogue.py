"""The shop of the embedded world: what each item is, what the shop says of it, and what only the choice model knows.

Hidden facts (style, trend, launch, partners) are numpy arrays that cost O(items); names and texts are made from blocks
of items on demand, so that a catalogue of a million items never has to sit in memory as Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.synthetic_names import (
    COLORS,
    DESCRIPTIONS,
    FEATURES,
    LEAVES,
    PACKS,
    SERIES,
    brand_name,
)

NUM_LEAVES = len(LEAVES)
NUM_STYLES = 8
"""Latent styles: who buys what across categories; no field of an item tells its style."""
SHELF_SIZE = 128
"""Most items on one shelf. A leaf category with more is cut into shelves, which keeps a choice cheap at any size."""
MIN_LEAF = 10
TEXT_BLOCK = 4096

_PATHS = [leaf.path for leaf in LEAVES]
_AISLES = sorted({path[:-1] for path in _PATHS})
DEPARTMENTS = tuple(dict.fromkeys(path[0] for path in _PATHS))
LEAF_DEPARTMENT = np.array([DEPARTMENTS.index(path[0]) for path in _PATHS])
LEAF_AISLE = np.array([_AISLES.index(path[:-1]) for path in _PATHS])
"""int64[L]: place of the category one above the leaf."""
_LEAF_OF_NAME = {path[-1]: number for number, path in enumerate(_PATHS)}
LEAF_PARTNERS = np.array([[_LEAF_OF_NAME[name] for name in leaf.goes_with] for leaf in LEAVES])
"""int64[L, 2]: leaf categories whose items are bought after one of this leaf."""

_ASIN_CODES = 36**8
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def asin(seed: int, number: int) -> str:
    """Ten-character product id in Amazon's shape; distinct for distinct numbers below 36**8 under one seed."""
    code = (1_999_981_000_007 * number + 688_846_502_389 * (seed + 1)) % _ASIN_CODES
    characters = []
    for _ in range(8):
        code, digit = divmod(code, 36)
        characters.append(_ALPHABET[digit])
    return "B0" + "".join(reversed(characters))


@dataclass(frozen=True, slots=True)
class ItemText:
    """What the shop's page of one item shows. `None`, `()` and `""` stand for what the page leaves out."""

    title: str | None
    store: str | None
    categories: tuple[str, ...]
    price: float | None
    description: tuple[str, ...]
    features: tuple[str, ...]
    main_category: str | None
    details: dict[str, str]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All items of a world, I of them on S shelves of at most M items; index = the item's number in the world."""

    seed: int
    leaf: NDArray[np.int64]
    """[I] leaf category."""
    brand: NDArray[np.int64]
    """[I] brand number; a brand belongs to one department."""
    price: NDArray[np.float64]
    """[I] US dollars, known to the choice model also where the page does not say."""
    band: NDArray[np.float64]
    """[I] price band: standard score of the log price within the leaf, clipped to [-2, 2]."""
    style: NDArray[np.float64]
    """[I, K] latent style, a distribution."""
    quality: NDArray[np.float64]
    """[I] standard normal times one half."""
    appeal: NDArray[np.float64]
    """[I] lasting popularity: exponential, so that counts are Zipf-like."""
    launch: NDArray[np.float64]
    """[I] launch as a fraction of the world's time; negative: there from the start."""
    trend: NDArray[np.float64]
    """[3, I] height, peak and width of the item's popularity wave (fractions of the world's time)."""
    partners: NDArray[np.int64]
    """[I, P] items that people buy after this one."""
    shelf: NDArray[np.int64]
    """[I] shelf number."""
    place: NDArray[np.int64]
    """[I] place on the shelf."""
    shelves: NDArray[np.int64]
    """[S, M] items by shelf and place, -1 where a shelf ends."""
    leaf_shelves: NDArray[np.int64]
    """[L + 1] first shelf of each leaf."""

    @property
    def num_items(self) -> int:
        return len(self.leaf)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """[L] items of each leaf."""
        return np.bincount(self.leaf, minlength=NUM_LEAVES)

    @cached_property
    def department_brands(self) -> list[NDArray[np.int64]]:
        """Brands of each department, largest first."""
        items = np.bincount(self.brand)
        largest = np.argsort(-items, kind="stable")[: np.count_nonzero(items)]
        home = np.zeros(len(items), dtype=np.int64)
        home[self.brand] = LEAF_DEPARTMENT[self.leaf]
        return [largest[home[largest] == number] for number in range(len(DEPARTMENTS))]

    @cached_property
    def stock(self) -> NDArray[np.int64]:
        """[L] items of each leaf that are there from the start."""
        return np.bincount(self.leaf[self.launch < 0], minlength=NUM_LEAVES)

    @cached_property
    def shelf_share(self) -> NDArray[np.float64]:
        """[S] log share of each shelf within its leaf."""
        size = (self.shelves >= 0).sum(axis=1)
        share: NDArray[np.float64] = np.log(size / self.sizes[self.leaf[self.shelves[:, 0]]])
        return share

    def texts(self) -> Iterator[ItemText]:
        """The pages of all items in order, made block by block; equal on every call."""
        for start in range(0, self.num_items, TEXT_BLOCK):
            yield from self._text_block(start, min(start + TEXT_BLOCK, self.num_items))

    def _text_block(self, start: int, stop: int) -> Iterator[ItemText]:
        count = stop - start
        rng = np.random.default_rng([self.seed, 11, start])
        draws = rng.integers(0, 1 << 30, size=(count, 12)).tolist()
        shows = (rng.random((count, 8)) >= [0.002, 0.06, 0.03, 0.18, 0.35, 0.15, 0.03, 0.2]).tolist()
        days = np.datetime64("2022-10-01") + (np.minimum(self.launch[start:stop], 1.0) * 365).astype(np.int64)
        for offset in range(count):
            item = start + offset
            yield _page(
                int(self.leaf[item]), brand_name(int(self.brand[item])), float(self.price[item]),
                draws[offset], shows[offset], str(days[offset]),
            )  # fmt: skip


def _page(leaf_number: int, brand: str, price: float, draw: list[int], show: list[bool], day: str) -> ItemText:
    leaf = LEAVES[leaf_number]

    def pick(words: tuple[str, ...], place: int) -> str:
        return words[draw[place] % len(words)]

    series = pick(SERIES, 0) + (f" {100 + draw[1] % 900}" if draw[1] % 3 else "")
    noun, kind, spec = pick(leaf.nouns, 2), pick(leaf.kinds, 3), pick(leaf.specs, 4)
    color, pack = pick(COLORS, 5), pick(PACKS, 6)
    words: dict[str, Any] = {
        "brand": brand, "series": series, "noun": noun, "kind": kind, "spec": spec,
        "color": color, "pack": pack, "leaf": leaf.path[-1],
    }  # fmt: skip
    other = leaf.kinds[(draw[3] + 1 + draw[7] % (len(leaf.kinds) - 1)) % len(leaf.kinds)]
    title = (
        f"{brand} {kind} {noun}, {spec}, {color}, {pack}",
        f"{brand} {series} {noun} - {kind}, {other} ({color}, {spec})",
        f"{noun}, {kind} {series}, {spec} - {color} ({pack})",
        f"{brand} {noun} {series} | {other} and {kind} | {spec}, {pack}",
    )[draw[8] % 4]
    paragraphs = tuple(
        DESCRIPTIONS[(draw[9] + step) % len(DESCRIPTIONS)].format(**words) for step in range(1 + draw[9] % 7 // 5)
    )
    features = tuple(
        FEATURES[(draw[10] + 2 * step) % len(FEATURES)].format(**words) for step in range(2 + draw[10] % 3)
    )
    details = {"Color": color, "Size": spec, "Date First Available": day}
    if show[1]:
        details["Brand"] = brand
    return ItemText(
        title=title if show[0] else None,
        store=brand if show[1] else None,
        categories=leaf.path if show[2] else (),
        price=price if show[3] else None,
        description=paragraphs if show[4] else (),
        features=features if show[5] else (),
        main_category=leaf.path[0] if show[6] else None,
        details=details if show[7] else {},
    )


def make_catalogue(num_items: int, seed: int) -> Catalogue:
    """Draw a catalogue of `num_items` items, at least `MIN_LEAF` to each leaf category.

    Raises:
        ValueError: `num_items` is below `MIN_LEAF * NUM_LEAVES`.
    """
    if num_items < MIN_LEAF * NUM_LEAVES:
        raise ValueError(
            f"num_items={num_items} is too small: the world has {NUM_LEAVES} product types with at least "
            f"{MIN_LEAF} items each; ask for {MIN_LEAF * NUM_LEAVES} or more"
        )
    rng = np.random.default_rng([seed, 1])
    counts = MIN_LEAF + rng.multinomial(num_items - MIN_LEAF * NUM_LEAVES, rng.dirichlet(np.full(NUM_LEAVES, 4.0)))
    leaf = rng.permutation(np.repeat(np.arange(NUM_LEAVES), counts))
    brand, tier = _brands(leaf, rng)
    level = 0.7 * tier[brand] + 0.7 * rng.standard_normal(num_items)
    median = np.array([entry.price for entry in LEAVES])[leaf]
    price = np.maximum(np.round(median * np.exp(0.45 * level)), 1.0) - np.where(rng.random(num_items) < 0.8, 0.01, 0.51)
    shelf, place, shelves, leaf_shelves = _shelves(leaf)

    style = np.exp(2.5 * rng.standard_normal((num_items, NUM_STYLES)))
    style /= style.sum(axis=1, keepdims=True)
    quality = 0.5 * rng.standard_normal(num_items)
    appeal = np.minimum(rng.exponential(size=num_items), 7.0) + 0.5 * quality
    late = (rng.random(num_items) < 0.18) & (place >= MIN_LEAF // 2)
    launch = np.where(late, rng.uniform(0.0, 0.95, num_items), -1.0)
    rises = late | (rng.random(num_items) < 0.3)
    trend = np.stack(
        [
            np.where(rises, rng.uniform(1.0, 3.0, num_items), 0.0),
            np.where(late, launch + rng.uniform(0.02, 0.1, num_items), rng.uniform(0.0, 1.0, num_items)),
            rng.uniform(0.05, 0.15, num_items),
        ]
    )
    partners = _partners(leaf, appeal, rng)
    return Catalogue(
        seed, leaf, brand, price, np.clip(level, -2.0, 2.0), style, quality, appeal, launch, trend, partners,
        shelf, place, shelves, leaf_shelves,
    )  # fmt: skip


def _brands(leaf: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Brand of each item and price tier of each brand: few large brands, each at home in half of its department."""
    brand = np.zeros(len(leaf), dtype=np.int64)
    total = 0
    for department in range(len(DEPARTMENTS)):
        members = np.flatnonzero(LEAF_DEPARTMENT[leaf] == department)
        count = max(10, round(1.8 * len(members) ** 0.5))
        weight = np.arange(1, count + 1) ** -0.7
        for number in np.flatnonzero(department == LEAF_DEPARTMENT):
            sells = rng.random(count) < 0.5
            sells[rng.integers(count)] = True
            here = members[leaf[members] == number]
            share = weight * sells
            brand[here] = total + rng.choice(count, size=len(here), p=share / share.sum())
        total += count
    return brand, rng.standard_normal(total)


def _shelves(
    leaf: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    counts = np.bincount(leaf, minlength=NUM_LEAVES)
    per_leaf = -(-counts // SHELF_SIZE)
    first = np.concatenate([[0], np.cumsum(per_leaf)])
    order = np.argsort(leaf, kind="stable")
    rank = np.empty(len(leaf), dtype=np.int64)
    rank[order] = np.arange(len(leaf)) - np.repeat(np.cumsum(counts) - counts, counts)
    within = rank * per_leaf[leaf] // counts[leaf]
    shelf = first[leaf] + within
    place = rank - -(-within * counts[leaf] // per_leaf[leaf])
    shelves = np.full((first[-1], int(place.max()) + 1), -1, dtype=np.int64)
    shelves[shelf, place] = np.arange(len(leaf))
    return shelf, place, shelves, first


def _partners(leaf: NDArray[np.int64], appeal: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    order = np.argsort(leaf, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(leaf, minlength=NUM_LEAVES))[:-1])
    partners = np.empty((len(leaf), 4), dtype=np.int64)
    for number in range(NUM_LEAVES):
        for side, other in enumerate(LEAF_PARTNERS[number]):
            weight = np.exp(1.0 * appeal[members[other]])
            chosen = rng.choice(members[other], size=(len(members[number]), 2), p=weight / weight.sum())
            partners[members[number], 2 * side : 2 * side + 2] = chosen
    return partners
