"""An immutable table of who took what, when, with what is known of each item.

Everything above (splits, views, tools, agents) reads this one structure; readers and the synthetic world build it
through ``Dataset.build``, which sorts, validates and freezes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ChoiceModel(Protocol):
    """The true choice probabilities of a synthetic world, up to a constant: P(choice = c) ∝ exp(utility)."""

    def utilities(self, row: int, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [C]: of ``items``, for the user and at the moment of dataset row ``row``."""
        ...

    def select(self, rows: NDArray[np.int64], items: NDArray[np.int64]) -> ChoiceModel:
        """The model of a dataset that keeps only ``rows`` and ``items`` of this one, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class Items:
    """What is known of each item; one entry an item, index 0..I-1. None, () or nan where the source says nothing."""

    ids: Sequence[str]
    titles: Sequence[str | None]
    brands: Sequence[str | None]
    categories: Sequence[tuple[str, ...]]
    """Category path, general to specific."""
    prices: NDArray[np.float64]
    """float64 [I], in the source's currency."""
    descriptions: Sequence[str]
    """Features and description paragraphs, joined by line breaks; "" where unknown."""

    def __post_init__(self) -> None:
        count = len(self.ids)
        object.__setattr__(self, "prices", _frozen(np.asarray(self.prices, dtype=np.float64)))
        for name in ("titles", "brands", "categories", "prices", "descriptions"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"Items.{name} has {len(getattr(self, name))} entries for {count} ids")

    @classmethod
    def bare(cls, ids: Sequence[str], titles: Sequence[str | None] | None = None) -> Items:
        """Items of which nothing is known but the id, and perhaps the title."""
        n = len(ids)
        return cls(ids, titles or [None] * n, [None] * n, [()] * n, np.full(n, np.nan), [""] * n)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id -> index."""
        index = {item_id: i for i, item_id in enumerate(self.ids)}
        if len(index) != len(self.ids):
            raise ValueError(f"{len(self.ids) - len(index)} item ids occur twice; ids must be unique")
        return index

    @cached_property
    def cache(self) -> dict[str, Any]:
        """Indexes that others derive from the metadata alone (title search, say), built once."""
        return {}

    def take(self, indices: NDArray[np.int64]) -> Items:
        """The items at ``indices``, in that order."""

        def pick(column: Sequence[Any]) -> list[Any]:
            return [column[i] for i in indices]

        return Items(
            pick(self.ids),
            pick(self.titles),
            pick(self.brands),
            pick(self.categories),
            self.prices[indices],
            pick(self.descriptions),
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions sorted by user, within a user by time; ties keep the order of the file.

    Make one with :meth:`build`. Arrays are read-only.
    """

    name: str
    items: Items
    user_ids: Sequence[str]
    user: NDArray[np.int32]
    """int32 [N], non-decreasing."""
    item: NDArray[np.int32]
    """int32 [N]."""
    rating: NDArray[np.float32]
    """float32 [N], nan where unknown."""
    time: NDArray[np.int64] | None
    """int64 [N], ms since the epoch; None where the source has no times."""
    indptr: NDArray[np.int64]
    """int64 [U+1]: the rows of user u are indptr[u]:indptr[u+1]."""
    choice_model: ChoiceModel | None = None

    @classmethod
    def build(
        cls,
        name: str,
        items: Items,
        user_ids: Sequence[str],
        user: ArrayLike,
        item: ArrayLike,
        rating: ArrayLike | None = None,
        time: ArrayLike | None = None,
        order: ArrayLike | None = None,
        choice_model: ChoiceModel | None = None,
    ) -> Dataset:
        """Sort, validate and freeze columns given in file order.

        Args:
            name: what reports call the data.
            items: metadata, one entry an item.
            user_ids: one id a user, unique.
            user: int [N], index into ``user_ids``.
            item: int [N], index into ``items``.
            rating: float [N] or None; nan where unknown.
            time: int [N] ms since the epoch, or None where the source has no times.
            order: int [N] place in the user's own history, used to break ties of time, or None for file order.
            choice_model: the synthetic world's; its rows are those after sorting.

        Raises:
            ValueError: columns of unequal length, or indices out of range.
        """
        user_column = np.asarray(user, dtype=np.int64)
        item_column = np.asarray(item, dtype=np.int64)
        n = len(user_column)
        if n == 0:
            raise ValueError(f"dataset {name!r} has no interactions; check the source and the k-core filter")
        ratings = np.full(n, np.nan, np.float32) if rating is None else np.asarray(rating, dtype=np.float32)
        times = None if time is None else np.asarray(time, dtype=np.int64)
        orders = None if order is None else np.asarray(order, dtype=np.int64)
        for column, given in (("item", item_column), ("rating", ratings), ("time", times), ("order", orders)):
            if given is not None and len(given) != n:
                raise ValueError(f"column {column!r} has {len(given)} values for {n} interactions")
        for column, index, limit in (("user", user_column, len(user_ids)), ("item", item_column, len(items))):
            if index.min() < 0 or index.max() >= limit:
                raise ValueError(f"column {column!r} must lie in 0..{limit - 1}; it spans {index.min()}..{index.max()}")
        keys = [key for key in (orders, times, user_column) if key is not None]
        sorting = np.lexsort(keys)  # stable, the last key first
        user_column = user_column[sorting]
        counts = np.bincount(user_column, minlength=len(user_ids))
        return cls(
            name=name,
            items=items,
            user_ids=user_ids,
            user=_frozen(user_column.astype(np.int32)),
            item=_frozen(item_column[sorting].astype(np.int32)),
            rating=_frozen(ratings[sorting]),
            time=None if times is None else _frozen(times[sorting]),
            indptr=_frozen(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
            choice_model=choice_model,
        )

    def __len__(self) -> int:
        return len(self.item)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.items)

    def rows(self, user: int) -> slice:
        """The rows of ``user``, oldest first."""
        return slice(int(self.indptr[user]), int(self.indptr[user + 1]))

    def keep(self, mask: NDArray[np.bool_]) -> Dataset:
        """The interactions where ``mask`` (bool [N]) is true; users and items stay, so indices keep their meaning."""
        counts = np.bincount(self.user[mask], minlength=self.num_users)
        return replace(
            self,
            user=_frozen(self.user[mask]),
            item=_frozen(self.item[mask]),
            rating=_frozen(self.rating[mask]),
            time=None if self.time is None else _frozen(self.time[mask]),
            indptr=_frozen(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
            choice_model=self._choices(np.flatnonzero(mask), np.arange(self.num_items)),
        )

    def with_items(self, rows: NDArray[np.int64], items: NDArray[np.int64]) -> Dataset:
        """The same interactions, but at ``rows`` the user took ``items``: what the leak tests rewrite."""
        item = self.item.copy()
        item[rows] = items
        return replace(self, item=_frozen(item), choice_model=None)

    def drop_repeats(self) -> Dataset:
        """Only each user's first interaction with each item."""
        key = self.user.astype(np.int64) * self.num_items + self.item
        _, first = np.unique(key, return_index=True)
        mask = np.zeros(len(self), dtype=bool)
        mask[first] = True
        return self if mask.all() else self.keep(mask)

    def k_core(self, k: int) -> Dataset:
        """Users and items with at least ``k`` interactions each, repeated until none falls out; the rest is dropped.

        Raises:
            ValueError: nothing is left.
        """
        mask = np.ones(len(self), dtype=bool)
        while True:
            users = np.bincount(self.user[mask], minlength=self.num_users)
            items = np.bincount(self.item[mask], minlength=self.num_items)
            new = mask & (users[self.user] >= k) & (items[self.item] >= k)
            if not new.any():
                raise ValueError(f"no interaction of {self.name!r} survives the {k}-core filter; use a smaller k")
            if new.sum() == mask.sum():
                return self.keep(mask)._without_unused()
            mask = new

    def _without_unused(self) -> Dataset:
        users = np.unique(self.user)
        items = np.unique(self.item).astype(np.int64)
        if len(users) == self.num_users and len(items) == self.num_items:
            return self
        user_map = np.full(self.num_users, -1)
        user_map[users] = np.arange(len(users))
        item_map = np.full(self.num_items, -1)
        item_map[items] = np.arange(len(items))
        return replace(
            self,
            items=self.items.take(items),
            user_ids=[self.user_ids[u] for u in users],
            user=_frozen(user_map[self.user].astype(np.int32)),
            item=_frozen(item_map[self.item].astype(np.int32)),
            indptr=_frozen(np.concatenate([[0], np.cumsum(np.bincount(user_map[self.user]))]).astype(np.int64)),
            choice_model=self._choices(np.arange(len(self)), items),
        )

    def _choices(self, rows: NDArray[np.int64], items: NDArray[np.int64]) -> ChoiceModel | None:
        return None if self.choice_model is None else self.choice_model.select(rows, items)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything in the dataset but its name; equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for array in (self.user, self.item, self.rating, self.time, self.items.prices):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        texts = (self.user_ids, self.items.ids, self.items.titles, self.items.brands, self.items.categories)
        for column in (*texts, self.items.descriptions):
            for value in column:
                digest.update(repr(value).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()[:16]


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
