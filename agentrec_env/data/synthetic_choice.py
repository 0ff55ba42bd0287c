"""Who chooses what in the embedded world: people's hidden tastes, and the exact probability of each choice.

One choice is nested: a leaf category by softmax, a shelf of it by its share of the leaf, an item of the shelf by
softmax. Each step is exact and costs O(leaves + shelf size), whatever the size of the catalogue, and the log
probability of any item is a sum of three terms.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.synthetic_catalogue import (
    DEPARTMENTS,
    LEAF_AISLE,
    LEAF_DEPARTMENT,
    LEAF_PARTNERS,
    NUM_LEAVES,
    NUM_STYLES,
    Catalogue,
)

START = 1_664_582_400_000
"""2022-10-01T00:00:00Z in ms."""
SPAN = 365 * 86_400_000
"""One year in ms: the interactions run until 2023-10-01, as in AgenticRec, arXiv:2603.21613, sec. 4."""
RECENT = 8
"""How many latest items form the session that interest and complements look back on."""
IMPOSSIBLE = -1000.0
"""Log weight of what is not on sale yet or owned already: finite, so that differences of utilities are numbers."""
USER_BLOCK = 512
SIGNALS = ("taste", "brand", "crowd", "complement", "style")
"""What people follow more or less, in the order of `People.weight`."""
MAX_LENGTH = 40
_FAVOURITES = 2
_NUM_AISLES = int(LEAF_AISLE.max()) + 1


@dataclass(frozen=True, slots=True)
class Strengths:
    """How much each planted signal counts in the choice, as a factor on its log weight; 0 takes the signal out."""

    taste: float = 1.0
    """Lasting preference over departments, aisles and leaf categories, half of which drifts in the year."""
    session: float = 1.0
    """Staying with the categories of the last few items, fading over positions and days."""
    brand: float = 1.0
    """Favourite brands of each department, and staying with the brands just bought."""
    price: float = 1.0
    """Keeping to a price band."""
    crowd: float = 1.0
    """Following lasting popularity and waves of it."""
    complement: float = 1.0
    """Buying what goes with the last items: their partner categories, and there their partner items."""
    style: float = 1.0
    """Latent style, which no metadata shows: only who bought what tells it."""
    quality: float = 1.0
    """Good items are chosen more, and rated higher."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 0 <= value < 100:
                raise ValueError(f"Strengths.{entry.name} is {value}; give a number from 0 to 100")


@dataclass(frozen=True, eq=False)
class People:
    """Hidden facts of U users; no reader of the dataset can see them."""

    weight: NDArray[np.float64]
    """[U, 5] how much a user follows each of `SIGNALS`; mean 1, so people differ."""
    taste: NDArray[np.float64]
    """[U, 2, L] log preference over leaf categories before and after the drift."""
    drift: NDArray[np.float64]
    """[U] when the drift is half done, as a fraction of the world's time."""
    style: NDArray[np.float64]
    """[U, K] distribution over latent styles."""
    band: NDArray[np.float64]
    """[U] price band aimed at."""
    favourites: NDArray[np.int64]
    """[U, D, F] favourite brands by department."""

    def take(self, users: NDArray[np.int64]) -> People:
        """The people at `users`, in that order."""
        return People(*(getattr(self, entry.name)[users] for entry in fields(self)))

    @classmethod
    def join(cls, blocks: list[People]) -> People:
        """One table of several."""
        return cls(*(np.concatenate([getattr(block, entry.name) for block in blocks]) for entry in fields(cls)))


def make_people(catalogue: Catalogue, count: int, rng: np.random.Generator) -> People:
    """Draw `count` users."""
    loading = np.random.default_rng([catalogue.seed, 2]).standard_normal((NUM_STYLES, NUM_LEAVES))
    style = np.exp(3.0 * rng.standard_normal((count, NUM_STYLES)))
    style /= style.sum(axis=1, keepdims=True)
    weight = 0.25 + 0.75 * 5 * rng.dirichlet(np.full(5, 0.6), count)
    taste = (
        0.9 * rng.standard_normal((count, 2, len(DEPARTMENTS)))[..., LEAF_DEPARTMENT]
        + 0.55 * rng.standard_normal((count, 2, _NUM_AISLES))[..., LEAF_AISLE]
        + 0.4 * rng.standard_normal((count, 2, NUM_LEAVES))
    )
    taste[:, 1] = 0.8 * taste[:, 0] + 0.6 * taste[:, 1]
    taste += 0.5 * (style @ loading)[:, None]
    favourites = np.empty((count, len(DEPARTMENTS), _FAVOURITES), dtype=np.int64)
    for number in range(len(DEPARTMENTS)):
        brands = catalogue.department_brands[number]
        share = np.arange(1, len(brands) + 1) ** -0.5
        favourites[:, number] = rng.choice(brands, size=(count, _FAVOURITES), p=share / share.sum())
    return People(weight, taste, rng.uniform(0.1, 1.1, count), style, 0.8 * rng.standard_normal(count), favourites)


@dataclass(frozen=True, eq=False)
class Moments:
    """B moments of choice: who stands there, when, and what they own."""

    people: People
    """Of B users."""
    time: NDArray[np.int64]
    """[B] ms since the epoch."""
    owned: NDArray[np.int64]
    """[B, H] all earlier items, latest last, -1 in front of a short history."""
    age: NDArray[np.int64]
    """[B, H] ms since each of them was bought."""

    @property
    def clock(self) -> NDArray[np.float64]:
        """[B] fraction of the world's time that is over."""
        return (self.time - START) / SPAN

    @cached_property
    def recent(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The last R <= `RECENT` items [B, R], latest first, and how much each still counts [B, R], 0..1."""
        items = self.owned[:, ::-1][:, :RECENT]
        fading = 0.3 + 0.7 * np.exp(-self.age[:, ::-1][:, :RECENT] / (3 * 86_400_000))
        return items, 0.75 ** np.arange(items.shape[1]) * fading * (items >= 0)

    def repeated(self, count: int) -> Moments:
        """`count` copies of a single moment."""
        lines = np.zeros(count, dtype=np.int64)
        return Moments(self.people.take(lines), self.time[lines], self.owned[lines], self.age[lines])


@dataclass(frozen=True, eq=False)
class Choice:
    """The choice model of one catalogue: exact log probabilities, and draws from them."""

    catalogue: Catalogue
    strengths: Strengths

    def leaf_log_probability(self, moments: Moments) -> NDArray[np.float64]:
        """float64 [B, L]: log probability of each leaf category."""
        world, strengths, people = self.catalogue, self.strengths, moments.people
        blend = 1.0 / (1.0 + np.exp(-(moments.clock - people.drift) / 0.06))[:, None]
        taste = (1.0 - blend) * people.taste[:, 0] + blend * people.taste[:, 1]
        score = 0.5 * np.log(world.stock) + strengths.taste * people.weight[:, :1] * taste
        recent, weight = moments.recent
        leaf = world.leaf[recent]
        interest = _tally(leaf, weight, NUM_LEAVES)
        aisle = _tally(LEAF_AISLE[leaf], weight, _NUM_AISLES)
        wanted = sum(_tally(side, weight, NUM_LEAVES) for side in np.moveaxis(LEAF_PARTNERS[leaf], -1, 0))
        score += strengths.session * (1.1 * interest + 0.35 * aisle[:, LEAF_AISLE])
        score += 0.6 * strengths.complement * people.weight[:, 3:4] * np.minimum(wanted, 1.5)
        held = _tally(world.leaf[moments.owned], (moments.owned >= 0).astype(np.float64), NUM_LEAVES)
        score += np.where(2 * held >= world.stock, IMPOSSIBLE, 0.0)  # sated: a shelf never runs empty
        return _log_softmax(score)

    def shelf_log_probability(self, moments: Moments, shelf: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [B, M]: log probability of each place, given that moment b looks at `shelf[b]`; -inf past its end."""
        world, strengths, people = self.catalogue, self.strengths, moments.people
        line = np.arange(len(shelf))
        items = world.shelves[shelf]
        clock = moments.clock[:, None]
        height, peak, width = (part[items] for part in world.trend)
        wave = height * np.exp(-0.5 * ((clock - peak) / width) ** 2)
        score = 0.42 * strengths.crowd * (0.15 + 0.85 * people.weight[:, 2:3]) * (world.appeal[items] + wave)
        score -= strengths.price * (world.band[items] - people.band[:, None]) ** 2
        score += strengths.quality * world.quality[items]
        match = np.einsum("bmk,bk->bm", world.style[items], people.style)
        score += 3.0 * strengths.style * people.weight[:, 4:5] * match

        brand = world.brand[items]
        favourites = people.favourites[line, LEAF_DEPARTMENT[world.leaf[items[:, 0]]]]
        liking = np.zeros(brand.shape)
        for favourite in favourites.T:
            np.copyto(liking, 2.0, where=brand == favourite[:, None])
        recent, weight = (part[:, :4] for part in moments.recent)
        for step in range(recent.shape[1]):
            liking += 0.8 * weight[:, step, None] * (brand == world.brand[recent[:, step]][:, None])
        score += 1.85 * strengths.brand * people.weight[:, 1:2] * np.minimum(liking, 3.0)
        partners = world.partners[recent]
        lines, steps, sides = np.nonzero((world.shelf[partners] == shelf[:, None, None]) & (weight > 0)[:, :, None])
        lift = 1.6 * strengths.complement * people.weight[lines, 3] * np.sqrt(weight[lines, steps])
        np.add.at(score, (lines, world.place[partners[lines, steps, sides]]), lift)

        score += np.where(world.launch[items] > clock, IMPOSSIBLE, 0.0)
        lines, steps = np.nonzero((world.shelf[moments.owned] == shelf[:, None]) & (moments.owned >= 0))
        score[lines, world.place[moments.owned[lines, steps]]] += IMPOSSIBLE
        score[items < 0] = -np.inf
        return _log_softmax(score)

    def draw(self, moments: Moments, rng: np.random.Generator) -> NDArray[np.int64]:
        """int64 [B]: one item for each moment, drawn from the model."""
        world = self.catalogue
        by_leaf = self.leaf_log_probability(moments)
        leaf = np.argmax(by_leaf + rng.gumbel(size=by_leaf.shape), axis=1)
        first, last = world.leaf_shelves[leaf], world.leaf_shelves[leaf + 1]
        counts = world.sizes[leaf]
        rank = rng.integers(0, counts)  # a shelf's share is its share of the leaf's items
        shelf = first + rank * (last - first) // counts
        by_place = self.shelf_log_probability(moments, shelf)
        items: NDArray[np.int64] = world.shelves[shelf, np.argmax(by_place + rng.gumbel(size=by_place.shape), axis=1)]
        return items

    def log_probability(self, moments: Moments, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [C]: log probability of each of `items` at one moment (B = 1)."""
        world = self.catalogue
        shelf, where = np.unique(world.shelf[items], return_inverse=True)
        by_place = self.shelf_log_probability(moments.repeated(len(shelf)), shelf)
        by_leaf = self.leaf_log_probability(moments)[0]
        total: NDArray[np.float64] = by_leaf[world.leaf[items]] + world.shelf_share[shelf[where]]
        total += by_place[where, world.place[items]]
        return total

    def rate(self, people: People, items: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
        """float64 [B]: the stars that each of `people` gives their item: taste match, quality and noise."""
        world = self.catalogue
        match = np.einsum("bk,bk->b", people.style, world.style[items])
        favourites = people.favourites[np.arange(len(items)), LEAF_DEPARTMENT[world.leaf[items]]]
        liked = (world.brand[items][:, None] == favourites).any(axis=1)
        stars = (
            4.2 + 1.1 * world.quality[items] + 1.2 * match + 0.4 * liked
            - 0.2 * (world.band[items] - people.band) ** 2 + 1.1 * rng.standard_normal(len(items))
        )  # fmt: skip
        whole: NDArray[np.float64] = np.clip(np.round(stars), 1.0, 5.0)
        return whole


def _tally(columns: NDArray[np.int64], weight: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """float64 [B, width]: the weights [B, R] summed by line and column."""
    lines = np.arange(len(columns))[:, None] * width
    flat: NDArray[np.float64] = np.bincount(
        (lines + columns).ravel(), weight.ravel(), minlength=len(columns) * width
    ).astype(np.float64)
    return flat.reshape(len(columns), width)


def _log_softmax(score: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted: NDArray[np.float64] = score - score.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
