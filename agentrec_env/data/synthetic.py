"""The embedded world: an Amazon-like shop with planted tastes and a known choice model.

It is the default dataset, the ceiling row of every table (the best possible ranking is computable), and the source of
McAuley-2023 files of any size. People differ in what moves them (categories, brands, the crowd, complements, or a
latent style that no metadata shows), so no single signal serves everyone.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.dataset import Dataset, Items
from agentrec_env.data.synthetic_catalogue import Catalogue, ItemText, asin, make_catalogue
from agentrec_env.data.synthetic_choice import (
    MAX_LENGTH,
    SIGNALS,
    SPAN,
    START,
    USER_BLOCK,
    Choice,
    Moments,
    People,
    Strengths,
    make_people,
)

MIN_LENGTH = 5


def user_id(seed: int, number: int) -> str:
    """28-character reviewer id in Amazon's shape."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=20).digest()
    return "A" + base64.b32encode(digest).decode("ascii")[:27]


@dataclass(frozen=True, eq=False)
class Histories:
    """The interactions of one block of users, sorted by user and time; N of them."""

    first_user: int
    people: People
    user: NDArray[np.int64]
    """[N] number of the user in the world."""
    item: NDArray[np.int64]
    """[N] number of the item in the world."""
    rating: NDArray[np.float64]
    """[N] stars 1..5."""
    time: NDArray[np.int64]
    """[N] ms since the epoch, strictly increasing within a user."""


@dataclass(frozen=True, eq=False)
class SyntheticChoices:
    """The `choice_model` of a synthetic dataset: the true log probability of every choice made in it.

    It remembers the whole history of the world even where rows or items were filtered out of the dataset.
    """

    choice: Choice
    people: People
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    rows: NDArray[np.int64]
    """[N'] row of the world behind each row of the dataset."""
    items: NDArray[np.int64]
    """[I'] item of the world behind each item of the dataset."""

    def utilities(self, row: int, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """True log weight (float64 [C]) of choosing each of `items`, for the user of row `row` just before that row.

        These are log probabilities over the shop's catalogue, so P(choice = c | pool) ∝ exp(utility). Where the pool is
        the choice and negatives drawn uniformly, the Bayes-optimal order is by utility; where a negative c is drawn
        with probability q(c), it is by utility − log q(c): the pool is then likely to hold c whatever was chosen.
        What the user owns already or what is not on sale yet is far down (about -1000), but finite.

        Raises:
            IndexError: no such row or item.
        """
        if not 0 <= row < len(self.rows):
            raise IndexError(f"row {row}: the dataset has rows 0..{len(self.rows) - 1}")
        at = int(self.rows[row])
        user = int(self.user[at])
        first = int(np.searchsorted(self.user, user))
        time = self.time[at : at + 1]
        owned = self.item[first:at][None]
        moments = Moments(self.people.take(np.array([user])), time, owned, time[:, None] - self.time[first:at][None])
        return self.choice.log_probability(moments, self.items[np.asarray(items, dtype=np.int64)])

    def mover(self, row: int) -> str:
        """What moves the user of row `row` most, one of `SIGNALS`: a fact about them that no agent may see."""
        return SIGNALS[int(self.people.weight[self.user[self.rows[row]]].argmax())]

    def select(self, rows: NDArray[np.int64], items: NDArray[np.int64]) -> SyntheticChoices:
        """The model of a dataset that keeps only `rows` and `items` of this one, in that order."""
        return SyntheticChoices(
            self.choice, self.people, self.user, self.item, self.time, self.rows[rows], self.items[items]
        )


@dataclass(frozen=True, eq=False)
class SyntheticWorld:
    """A shop, its customers and all they bought in a year; make one with :func:`make_world`.

    Nothing but the catalogue's numbers (O(items)) is held: customers come in blocks of `USER_BLOCK`, drawn anew and
    equal on each pass. `dataset` holds everything in memory; `write` streams.
    """

    num_users: int
    seed: int
    catalogue: Catalogue
    strengths: Strengths

    def histories(self) -> Iterator[Histories]:
        """The interactions, block of users by block of users."""
        for first in range(0, self.num_users, USER_BLOCK):
            yield self._block(first, min(USER_BLOCK, self.num_users - first))

    def _block(self, first: int, count: int) -> Histories:
        rng = np.random.default_rng([self.seed, 3, first])
        choice = Choice(self.catalogue, self.strengths)
        length = np.minimum(MIN_LENGTH + rng.negative_binomial(1.2, 1.2 / (1.2 + 5.5), count), MAX_LENGTH)
        length = -np.sort(-length)  # so that the users who still buy are the first ones
        people = make_people(self.catalogue, count, rng)
        time = _times(length, rng)
        owned = np.full((count, MAX_LENGTH), -1, dtype=np.int64)
        for step in range(int(length[0])):
            active = np.arange(np.count_nonzero(length > step))
            now = time[active, step]
            moments = Moments(people.take(active), now, owned[active, :step], now[:, None] - time[active, :step])
            owned[active, step] = choice.draw(moments, rng)
        bought = np.arange(MAX_LENGTH) < length[:, None]
        shuffled = rng.permutation(count)
        people, owned, time, bought = people.take(shuffled), owned[shuffled], time[shuffled], bought[shuffled]
        local = np.repeat(np.arange(count), bought.sum(axis=1))
        item = owned[bought]
        rating = choice.rate(people.take(local), item, rng)
        return Histories(first, people, first + local, item, rating, time[bought])

    @cached_property
    def dataset(self) -> Dataset:
        """All interactions with the metadata that the shop shows; items that nobody bought are left out.

        Rows are sorted by user and time already, so row n of the dataset is the n-th interaction of `histories`.
        """
        blocks = list(self.histories())
        user, item, time = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("user", "item", "time"))
        rating = np.concatenate([block.rating for block in blocks])
        kept, compact = np.unique(item, return_inverse=True)
        everything = np.arange(len(item))
        model = SyntheticChoices(
            Choice(self.catalogue, self.strengths), People.join([b.people for b in blocks]),
            user, item, time, everything, kept,
        )  # fmt: skip
        user_ids = [user_id(self.seed, number) for number in range(self.num_users)]
        return Dataset.build("synthetic", self._items(kept), user_ids, user, compact, rating, time, choice_model=model)

    def _items(self, kept: NDArray[np.int64]) -> Items:
        wanted = np.zeros(self.catalogue.num_items, dtype=bool)
        wanted[kept] = True
        pages = [page for page, keep in zip(self.catalogue.texts(), wanted.tolist(), strict=True) if keep]
        return Items(
            ids=[asin(self.seed, number) for number in kept.tolist()],
            titles=[page.title for page in pages],
            brands=[page.store for page in pages],
            categories=[page.categories or _department(page) for page in pages],
            prices=np.array([np.nan if page.price is None else page.price for page in pages]),
            descriptions=["\n".join((*page.description, *page.features)) for page in pages],
        )

    def write(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Stream the world to `reviews.jsonl.gz` and `meta.jsonl.gz` (McAuley-2023 fields) in `folder`.

        Equal worlds give equal bytes. Memory stays O(items) however many reviews there are; a file appears under its
        name only when it is whole. `meta` lists all items, also those that nobody bought.
        """
        from agentrec_env.data.synthetic_files import write_world

        return write_world(self, Path(folder))


def make_world(
    num_users: int = 3000, num_items: int = 2000, seed: int = 0, strengths: Strengths | None = None
) -> SyntheticWorld:
    """Draw a world; equal arguments give an equal world, in any process.

    Args:
        num_users: customers; each buys 5 to 40 items, 10 on average.
        num_items: items in the shop, at least ten to each of its product types.
        seed: of everything, from brands to choices.
        strengths: how much each planted signal counts; the defaults leave room between one signal, all of them, and the
            best possible ranking.

    Raises:
        ValueError: a number out of range.
    """
    for name, value, least in (("num_users", num_users, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
    return SyntheticWorld(num_users, seed, make_catalogue(num_items, seed), strengths or Strengths())


def _department(page: ItemText) -> tuple[str, ...]:
    """All that the page says of the category where the path is missing, as the readers see it."""
    return () if page.main_category is None else (page.main_category,)


def _times(length: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 [B, MAX_LENGTH] ms: visits spread over each user's part of the year, minutes apart within a visit.

    Only the first `length[b]` of line b mean anything; they increase strictly.
    """
    size = (len(length), MAX_LENGTH)
    steps = np.arange(MAX_LENGTH)
    joined = rng.beta(0.8, 2.0, len(length))
    visits = np.sort(np.where(steps < length[:, None], rng.uniform(joined[:, None], 1.0, size), 2.0), axis=1)
    same = rng.random(size) < 0.4
    same[:, 0] = False
    start = np.maximum.accumulate(np.where(same, 0, steps), axis=1)
    visit = np.take_along_axis(visits, start, axis=1)
    time = (visit * (SPAN - 86_400_000)).astype(np.int64)
    wait = np.where(same, rng.exponential(15 * 60_000, size), 0.0).astype(np.int64)
    walked = np.cumsum(wait, axis=1)
    time += walked - np.take_along_axis(walked, start, axis=1)
    return START + np.maximum.accumulate(time, axis=1) + steps


__all__ = ["Histories", "SyntheticChoices", "SyntheticWorld", "make_world", "user_id"]
