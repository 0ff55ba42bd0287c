"""The embedded world: equal seeds, equal worlds; pages like a shop's; a true choice model; files read back whole."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agentrec_env.data.load import load
from agentrec_env.data.synthetic import SyntheticChoices, SyntheticWorld, make_world, user_id
from agentrec_env.data.synthetic_catalogue import LEAF_PARTNERS, MIN_LEAF, NUM_LEAVES, SHELF_SIZE, asin
from agentrec_env.data.synthetic_choice import START, Choice, Moments, Strengths, make_people
from agentrec_env.data.synthetic_names import LEAVES, brand_name
from agentrec_env.data.world import World


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return make_world()


@pytest.fixture(scope="module")
def small() -> SyntheticWorld:
    return make_world(num_users=200, num_items=600, seed=3)


def truth(world: SyntheticWorld) -> SyntheticChoices:
    """The choice model over all items of the catalogue, also those that nobody bought."""
    model = world.dataset.choice_model
    assert isinstance(model, SyntheticChoices)
    return replace(model, items=np.arange(world.catalogue.num_items))


def pools(world: SyntheticWorld, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """[M, 20] items of the world: the choice of each row first, then 19 others that the user did not own."""
    model = truth(world)
    pools = np.empty((len(rows), 20), dtype=np.int64)
    for line, row in enumerate(rows.tolist()):
        first = int(world.dataset.indptr[world.dataset.user[row]])
        free = np.delete(np.arange(world.catalogue.num_items), model.item[first : row + 1])
        pools[line] = np.append(model.item[row], rng.choice(free, 19, replace=False))
    return pools


def test_same_seed_same_world_also_in_another_process(small: SyntheticWorld) -> None:
    again = make_world(num_users=200, num_items=600, seed=3)
    assert again.dataset.fingerprint == small.dataset.fingerprint
    assert make_world(num_users=200, num_items=600, seed=4).dataset.fingerprint != small.dataset.fingerprint
    code = "from agentrec_env.data.synthetic import make_world as m; print(m(200, 600, 3).dataset.fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == small.dataset.fingerprint


def test_default_world_has_the_shape_of_a_shop(world: SyntheticWorld) -> None:
    data = world.dataset
    lengths = np.diff(data.indptr)
    assert lengths.min() == 5
    assert lengths.max() == 40
    assert 25_000 < len(data) < 40_000
    assert data.time is not None
    assert (np.diff(data.time)[np.diff(data.user) == 0] > 0).all()
    assert np.datetime64(int(data.time.min()), "ms") >= np.datetime64("2022-10-01")
    assert np.datetime64(int(data.time.max()), "ms") < np.datetime64("2023-10-01")
    assert World(data).num_tasks("test") >= 2000
    pairs = data.user.astype(np.int64) * data.num_items + data.item
    assert len(np.unique(pairs)) == len(data)  # nobody buys a thing twice

    counts = np.sort(np.bincount(data.item))[::-1]
    assert counts.min() >= 1
    assert data.num_items < world.catalogue.num_items
    assert counts[: len(counts) // 10].sum() > 0.25 * len(data)
    assert np.median(counts) < 15
    assert 0.5 < (data.rating == 5).mean() < 0.65


def test_default_world_is_made_in_reasonable_time(record_property: Callable[[str, object], None]) -> None:
    from time import perf_counter

    start = perf_counter()
    assert len(make_world(seed=9).dataset) > 0
    record_property("seconds", perf_counter() - start)  # reported, not asserted: the target is 5 on one idle core


def test_rows_of_the_choice_model_are_rows_of_the_dataset(world: SyntheticWorld) -> None:
    data, model = world.dataset, world.dataset.choice_model
    assert isinstance(model, SyntheticChoices)
    np.testing.assert_array_equal(model.user, data.user)
    np.testing.assert_array_equal(model.items[data.item], model.item)
    assert [asin(0, number) for number in model.items[:50].tolist()] == list(data.items.ids)[:50]


def test_pages_look_like_a_shop(world: SyntheticWorld) -> None:
    items = world.dataset.items
    titles = [title for title in items.titles if title is not None]
    assert len(titles) >= 0.99 * len(items)
    assert len(set(titles)) > 0.99 * len(titles)
    assert all(15 < len(title) < 150 for title in titles)
    assert all(re.fullmatch(r"B0[0-9A-Z]{8}", item) for item in items.ids)
    assert all(re.fullmatch(r"A[A-Z2-7]{27}", user) for user in world.dataset.user_ids)
    assert len(set(items.ids)) == len(items)
    assert len(set(world.dataset.user_ids)) == world.num_users
    shares = {
        "price": np.isnan(items.prices).mean(),
        "brand": np.mean([brand is None for brand in items.brands]),
        "description": np.mean([text == "" for text in items.descriptions]),
        "categories": np.mean([path == () for path in items.categories]),
    }
    assert 0.1 < shares["price"] < 0.25
    assert 0.03 < shares["brand"] < 0.1
    assert 0.02 < shares["description"] < 0.12
    assert shares["categories"] < 0.01  # the department stands in for most missing paths
    assert 0.01 < np.mean([len(path) < 3 for path in items.categories]) < 0.06
    assert np.nanmin(items.prices) > 0


def test_vocabulary_is_consistent() -> None:
    names = [leaf.path[-1] for leaf in LEAVES]
    assert len(set(names)) == len(names)
    departments = {leaf.path[-1]: leaf.path[0] for leaf in LEAVES}
    assert all(departments[other] == leaf.path[0] for leaf in LEAVES for other in leaf.goes_with)
    assert len({brand_name(number) for number in range(30_000)}) == 30_000


@given(st.integers(0, 10**6), st.lists(st.integers(0, 36**8 - 1), min_size=2, max_size=50, unique=True))
def test_ids_are_unique(seed: int, numbers: list[int]) -> None:
    assert len({asin(seed, number) for number in numbers}) == len(numbers)
    assert len({user_id(seed, number) for number in numbers}) == len(numbers)


@settings(deadline=None, max_examples=15)
@given(st.integers(MIN_LEAF * NUM_LEAVES, 30_000), st.integers(0, 5))
def test_each_item_has_its_own_place_on_a_shelf_of_its_leaf(num_items: int, seed: int) -> None:
    shop = make_world(num_users=1, num_items=num_items, seed=seed).catalogue
    np.testing.assert_array_equal(shop.shelves[shop.shelf, shop.place], np.arange(num_items))
    assert (shop.shelves >= 0).sum() == num_items
    assert (shop.shelves[:, 0] >= 0).all()
    assert shop.shelves.shape[1] <= SHELF_SIZE
    assert ((shop.leaf_shelves[shop.leaf] <= shop.shelf) & (shop.shelf < shop.leaf_shelves[shop.leaf + 1])).all()
    assert (shop.stock >= MIN_LEAF // 2).all()
    assert (LEAF_PARTNERS[shop.leaf][:, [0, 0, 1, 1]] == shop.leaf[shop.partners]).all()


@pytest.mark.parametrize("num_items", [600, 12_000])
def test_probabilities_sum_to_one(num_items: int) -> None:
    shop = make_world(num_users=40, num_items=num_items, seed=1)
    model = truth(shop)
    for row in np.random.default_rng(0).integers(0, len(shop.dataset), 20).tolist():
        log_probability = model.utilities(row, model.items)
        assert np.isfinite(log_probability).all()
        assert np.exp(log_probability).sum() == pytest.approx(1.0, abs=1e-9)
        first = int(shop.dataset.indptr[shop.dataset.user[row]])
        unavailable = np.union1d(
            model.item[first:row],
            np.flatnonzero(shop.catalogue.launch > (model.time[row] - START) / (365 * 86_400_000)),
        )
        assert (log_probability[unavailable] < -500).all()
        assert log_probability[model.item[row]] > -40


def test_draws_follow_the_log_probabilities(small: SyntheticWorld) -> None:
    model, copies = truth(small), 40_000
    row = int(small.dataset.indptr[5]) + 4
    first = int(small.dataset.indptr[5])
    owned = model.item[first:row][None]
    moment = Moments(
        model.people.take(np.array([5])),
        model.time[row : row + 1],
        owned,
        (model.time[row] - model.time[first:row])[None],
    )
    drawn = Choice(small.catalogue, small.strengths).draw(moment.repeated(copies), np.random.default_rng(0))
    expected = copies * np.exp(model.utilities(row, model.items))
    seen = np.bincount(drawn, minlength=small.catalogue.num_items)
    often = expected >= 10
    assert often.sum() > 20
    observed = np.append(seen[often], seen[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    freedom = len(wanted) - 1
    assert ((observed - wanted) ** 2 / wanted).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_choices_made_are_calibrated(world: SyntheticWorld) -> None:
    rng = np.random.default_rng(5)
    model = truth(world)
    rows = rng.choice(len(world.dataset), 1500, replace=False)
    pool = pools(world, rows, rng)
    utility = np.array([model.utilities(int(row), items) for row, items in zip(rows, pool, strict=True)])
    chance = np.exp(utility - utility.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)

    predicted = chance.max(axis=1)
    hits = (utility.argmax(axis=1) == 0).sum()
    assert abs(hits - predicted.sum()) < 3.3 * np.sqrt((predicted * (1 - predicted)).sum())
    for step in range(0, 10, 2):  # and in each class of predicted chance, over all candidates
        inside = (chance > step / 10) & (chance <= (step + 2) / 10)
        deviation = np.sqrt((chance * (1 - chance))[inside].sum())
        assert abs(inside[:, 0].sum() - chance[inside].sum()) < 3.7 * deviation


def test_a_selection_keeps_the_truth(small: SyntheticWorld) -> None:
    data, model = small.dataset, small.dataset.choice_model
    assert isinstance(model, SyntheticChoices)
    rows = np.flatnonzero(np.arange(len(data)) % 3 == 0)
    items = np.arange(data.num_items)[::-1]
    part = model.select(rows, items)
    np.testing.assert_array_equal(part.utilities(7, np.arange(9)), model.utilities(21, items[:9]))
    with pytest.raises(IndexError, match=f"rows 0..{len(rows) - 1}"):
        part.utilities(len(rows), items)


def test_a_signal_that_is_taken_out_no_longer_counts() -> None:
    rng = np.random.default_rng(0)
    shop = make_world(num_users=5, num_items=700, seed=2).catalogue
    silent = Choice(shop, Strengths(0, 0, 0, 0, 0, 0, 0, 0))
    people = make_people(shop, 6, rng)
    moments = Moments(people, np.full(6, START + 1000), np.full((6, 1), 3), np.full((6, 1), 60_000))
    shelf = np.full(6, shop.shelf[0])
    assert np.ptp(silent.leaf_log_probability(moments), axis=0).max() < 1e-9
    on_sale = (shop.shelves[shelf[0]] >= 0) & (shop.launch[shop.shelves[shelf[0]]] < 0) & (shop.shelves[shelf[0]] != 3)
    assert np.ptp(silent.shelf_log_probability(moments, shelf)[:, on_sale]) < 1e-9
    loud = Choice(shop, Strengths())
    assert np.ptp(loud.leaf_log_probability(moments), axis=0).min() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 100}, f"{MIN_LEAF * NUM_LEAVES} or more"),
        ({"num_users": 0}, "num_users is 0"),
        ({"num_users": 2.5}, "num_users is 2.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_sizes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_world(**arguments)


def test_bad_strengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Strengths.brand is -1"):
        Strengths(brand=-1)


def test_written_files_have_every_field_of_the_2023_format(small: SyntheticWorld, tmp_path: Path) -> None:
    reviews, meta = small.write(tmp_path / "made")
    assert sorted(path.name for path in reviews.parent.iterdir()) == ["meta.jsonl.gz", "reviews.jsonl.gz"]
    types = {
        "rating": float, "title": str, "text": str, "images": list, "asin": str, "parent_asin": str, "user_id": str,
        "timestamp": int, "helpful_vote": int, "verified_purchase": bool,
    }  # fmt: skip
    with gzip.open(reviews, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    assert len(records) == len(small.dataset)
    for record in records:
        assert {field: type(value) for field, value in record.items()} == types
    assert 0.05 < np.mean([record["asin"] != record["parent_asin"] for record in records]) < 0.15

    with gzip.open(meta, "rt", encoding="utf-8") as lines:
        pages = [json.loads(line) for line in lines]
    fields = [
        "main_category", "title", "average_rating", "rating_number", "features", "description", "price", "images",
        "videos", "store", "categories", "details", "parent_asin", "bought_together",
    ]  # fmt: skip
    assert len(pages) == small.catalogue.num_items
    assert all(list(page) == fields for page in pages)
    assert {type(page["price"]) for page in pages} == {float, str, type(None)}
    assert {page["price"] for page in pages if isinstance(page["price"], str)} == {"None"}
    assert sum(page["rating_number"] for page in pages) == len(records)
    parents = {page["parent_asin"] for page in pages}
    assert len(parents) == len(pages)
    assert {record["parent_asin"] for record in records} <= parents
    assert not {record["asin"] for record in records if record["asin"] != record["parent_asin"]} & parents


def test_written_world_is_read_back_whole_and_equal_worlds_give_equal_bytes(
    small: SyntheticWorld, tmp_path: Path
) -> None:
    reviews, meta = small.write(tmp_path / "one")
    again = make_world(num_users=200, num_items=600, seed=3).write(tmp_path / "two")
    assert (reviews.read_bytes(), meta.read_bytes()) == (again[0].read_bytes(), again[1].read_bytes())
    read, made = load(tmp_path / "one"), small.dataset
    assert list(read.user_ids) == list(made.user_ids)
    np.testing.assert_array_equal(read.user, made.user)
    np.testing.assert_array_equal(read.time, made.time)
    np.testing.assert_array_equal(read.rating, made.rating)
    assert [read.items.ids[item] for item in read.item] == [made.items.ids[item] for item in made.item]
    assert set(read.items.ids) == set(made.items.ids)
    there = [read.items.index[item] for item in made.items.ids]
    assert [read.items.titles[item] for item in there] == list(made.items.titles)
    assert [read.items.brands[item] for item in there] == list(made.items.brands)
    assert [tuple(read.items.categories[item]) for item in there] == list(made.items.categories)
    assert [read.items.descriptions[item] for item in there] == list(made.items.descriptions)
    np.testing.assert_array_equal(read.items.prices[there], made.items.prices)


def test_a_write_that_fails_leaves_nothing(
    small: SyntheticWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(small.catalogue), "texts", lambda self: iter([None]))
    with pytest.raises(AttributeError):
        small.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_large_world_is_written_in_bounded_memory(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc: elsewhere a process inherits the peak of its parent")
    code = (
        "import sys; from agentrec_env.data.synthetic import make_world\n"
        "make_world(int(sys.argv[1]), int(sys.argv[2])).write(sys.argv[3])\n"
        f"print(open({str(status)!r}).read().partition('VmHWM:')[2].split()[0])"
    )

    def peak(users: int, items: int) -> float:
        """Megabytes."""
        run = subprocess.run(
            [sys.executable, "-c", code, str(users), str(items), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(run.stdout) / 1024

    few, many = peak(1000, 20_000), peak(20_000, 20_000)
    assert many - few < 30  # twenty times the reviews
    assert peak(500, 1_000_000) < 700
