"""From a source's name to a Dataset: what is found, joined, kept in the cache, and said when nothing is found."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from agentrec_env.data import cache
from agentrec_env.data.cache import cache_dir
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.load import DATASETS, load, read, resolve, stamp
from agentrec_env.data.report import DataError, Limits
from agentrec_env.data.world import World
from agentrec_env.vector import RecVectorEnv
from tests.conftest import random_dataset

TIME = 1_600_000_000_000


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def review(user: int, item: int, **fields: Any) -> dict[str, Any]:
    return {"user_id": f"U{user}", "parent_asin": f"I{item}", "rating": 4.0, "timestamp": TIME + user + item, **fields}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Three users, four reviewed items of which one has no metadata, one item that no one reviewed, one repeat."""
    folder = tmp_path / "shop"
    folder.mkdir()
    pairs = [(0, 0), (0, 1), (1, 1), (1, 0), (2, 2), (2, 3), (0, 1)]
    lines(folder / "reviews.jsonl", [review(u, i, text=str(row)) for row, (u, i) in enumerate(pairs)])
    details = {"store": "Acme", "categories": ["Toys", "Puzzles"], "price": 9.5, "description": ["Good."]}
    lines(
        folder / "meta.jsonl",
        [{"parent_asin": f"I{item}", "title": f"Thing {item}", **details} for item in (9, 2, 1, 0)],
    )
    return folder


def made() -> Dataset:
    """For `tests.data.test_load:made`, with each user's last interaction twice."""
    once = random_dataset()
    last = once.indptr[1:] - 1
    users, items = (np.append(column, column[last]) for column in (once.user, once.item))
    return Dataset.build("made", once.items, once.user_ids, users, items)


READY = random_dataset()


def test_datasets_of_ones_own_by_module_and_attribute() -> None:
    repeats = load("tests.data.test_load:made", drop_repeats=False)
    assert len(repeats) - len(load("tests.data.test_load:made")) == repeats.num_users
    assert load("tests.data.test_load:READY").fingerprint == READY.drop_repeats().fingerprint
    assert stamp("tests.data.test_load:made") == ()
    assert load("tests.data.test_load:READY", k_core=4).num_items < READY.num_items
    envs = RecVectorEnv(2, dataset="tests.data.test_load:READY", num_candidates=5)
    assert envs.world.key == World(READY, num_candidates=5).key


def test_a_registered_dataset_goes_by_its_name() -> None:
    DATASETS.register("our shop", made)
    try:
        assert load("our shop").name == "made"
        with pytest.raises(DataError, match="Did you mean 'our shop'"):
            load("our shp")
    finally:
        DATASETS.unregister("our shop")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tests.data.test_load:mde", "Did you mean 'made'"),
        ("no_such_module_x:made", "cannot be imported"),
        ("tests.data.test_load:TIME", "is a int; it must be"),
        ("tests.data.test_load:Path", "returned a .*Path; it must be"),
    ],
)
def test_what_is_no_dataset_is_told(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(source)


def test_a_folder_is_joined(shop: Path) -> None:
    dataset, report = read(shop)
    assert (dataset.name, len(dataset), dataset.num_users, dataset.num_items) == ("shop", 7, 3, 4)
    items = dataset.items.take(np.array([dataset.items.index[item] for item in ("I0", "I1", "I2", "I3")]))
    assert items.titles == ["Thing 0", "Thing 1", "Thing 2", None]
    assert items.brands[3] is None
    assert items.categories == [("Toys", "Puzzles")] * 3 + [()]
    np.testing.assert_array_equal(items.prices, [9.5, 9.5, 9.5, np.nan])
    assert items.descriptions[2:] == ["Good.", ""]
    assert report.items_without_metadata == 1
    assert report.metadata is not None
    assert report.metadata.dropped == {"on items that no one reviewed": 1}
    assert dataset.time is not None
    assert (np.diff(dataset.time)[np.diff(dataset.user) == 0] >= 0).all()


def test_repeats_and_the_core(shop: Path) -> None:
    assert len(load(shop)) == 6
    assert len(load(shop, drop_repeats=False)) == 7
    core = load(shop, k_core=2)
    assert (len(core), list(core.user_ids), list(core.items.ids)) == (4, ["U0", "U1"], ["I0", "I1"])
    with pytest.raises(DataError, match="survives the 5-core filter; use a smaller k"):
        load(shop, k_core=5)


def test_the_folders_of_real_data(shared_data: Path) -> None:
    for name, users, items, interactions in (("office", 3231, 3317, 22447), ("cds", 2991, 5590, 26000)):
        dataset, report = read(shared_data / name)
        assert (dataset.num_users, dataset.num_items, len(dataset)) == (users, items, interactions)
        assert report.items_without_metadata == 0
        again = np.asarray(dataset.user)
        assert (np.diff(again) >= 0).all()
    beauty = load(shared_data / "beauty")
    assert (beauty.num_users, beauty.num_items, len(beauty)) == (22363, 12101, 198502)
    assert beauty.time is None
    first = [
        json.loads(line) for line, _ in zip(_unpacked(shared_data / "beauty/reviews.jsonl.gz"), range(5), strict=False)
    ]
    mine = [
        beauty.items.ids[item] for item in beauty.item[beauty.rows(list(beauty.user_ids).index(first[0]["user_id"]))]
    ]
    assert mine[: len(first)] == [record["parent_asin"] for record in first if record["user_id"] == first[0]["user_id"]]


def _unpacked(path: Path) -> list[bytes]:
    import gzip

    return gzip.decompress(path.read_bytes()).splitlines()


def test_a_review_file_finds_its_metadata_beside_it(shared_data: Path) -> None:
    dataset, report = read(shared_data / "raw/Gift_Cards_5.json.gz")
    assert (dataset.name, len(dataset), dataset.num_users, dataset.num_items) == ("Gift_Cards", 2972, 458, 148)
    assert report.metadata is not None
    assert (report.metadata.lines, report.metadata.kept, report.items_without_metadata) == (1547, 148, 0)
    assert np.isfinite(dataset.items.prices).sum() == 107
    alone, report = read(shared_data / "raw/reviews_Musical_Instruments_5.json.gz")
    assert (alone.name, report.metadata, alone.items.titles[0]) == ("Musical_Instruments", None, None)


def test_a_folder_with_several_review_files_names_them(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"4 review files and 1 metadata files.*Give the path of one review file"):
        load(shared_data / "raw")


def test_order_stands_in_for_times(tmp_path: Path) -> None:
    records = [review(0, item, timestamp=None, order=order) for item, order in ((3, 2), (1, 0), (2, 1))]
    dataset = load(lines(tmp_path / "reviews.jsonl", records))
    assert dataset.time is None
    assert [dataset.items.ids[item] for item in dataset.item] == ["I1", "I2", "I3"]


def test_tables_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "interactions.csv").write_text("user,item,timestamp\nu1,b,2\nu1,a,1\nu2,a,1\n")
    pl.DataFrame({"item": ["a", "z"], "title": ["A", "Z"], "price": [1.5, 2.0]}).write_parquet(folder / "items.parquet")
    (folder / "README.md").write_text("notes")
    for dataset in (
        load(folder),
        load(folder / "interactions.csv"),
        load(folder / "interactions.csv", metadata=folder / "items.parquet"),
    ):
        assert (dataset.num_users, dataset.num_items, len(dataset)) == (2, 2, 3)
        assert dict(zip(dataset.items.ids, dataset.items.titles, strict=True)) == {"a": "A", "b": None}
        assert [dataset.items.ids[item] for item in dataset.item] == ["a", "b", "a"]
    with pytest.raises(DataError, match="holds interactions"):
        load(folder, metadata=folder / "interactions.csv")
    with pytest.raises(DataError, match="describes items"):
        load(folder / "items.parquet")


def test_the_embedded_world() -> None:
    assert load("synthetic").choice_model is not None


# Nothing found


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "synthetik",
            r"unknown dataset 'synthetik'. Did you mean 'synthetic'\? Allowed: .*Gift_Cards.*Or give the path",
        ),
        ("Gift_Crads", r"Did you mean 'Gift_Cards'\?"),
        ("gift cards", r"Gift_Cards has not been downloaded .* download Gift_Cards --edition 2023"),
        ("2014/Beauty", r"download Beauty --edition 2014"),
        ("Luxury Beauty", r"download Luxury_Beauty --edition 2018"),
        ("/no/such/place", r"no such file or folder: /no/such/place"),
        ("", r"holds no review file"),
    ],
)
def test_an_unknown_source_says_what_is_allowed(source: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load(source)


def test_a_missing_file_names_the_nearest(shop: Path) -> None:
    with pytest.raises(DataError, match=r"unknown file or folder 'review.jsonl'. Did you mean 'reviews.jsonl'\?"):
        load(shop / "review.jsonl")


def test_a_folder_without_reviews_says_what_it_saw(tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text("<html>")
    with pytest.raises(DataError, match=r"holds no review file .*page.json is a web page"):
        load(tmp_path)
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(DataError, match="empty"):
        load(tmp_path / "empty.json")


def test_a_downloaded_category_is_found_by_name(shop: Path, empty_cache: Path) -> None:
    for edition in ("2018", "2023"):
        shutil.copytree(shop, empty_cache / "downloads" / edition / "Gift_Cards")
    assert load("gift cards").name == "Gift_Cards"
    assert resolve("Gift_Cards").reviews.parts[-3] == "2023"
    assert resolve("2018/gift_cards").reviews.parts[-3] == "2018"


# Cache


def test_a_second_load_gives_the_same_from_the_cache(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, report = read(shop)
    monkeypatch.setattr("agentrec_env.data.load.read_reviews", None)  # would fail if it were called
    again, report_again = read(shop)
    assert again.fingerprint == dataset.fingerprint
    assert report_again == report
    assert (again.items.ids, again.user_ids) == (dataset.items.ids, dataset.user_ids)


def test_a_second_load_of_real_data_is_the_same(shared_data: Path) -> None:
    dataset = load(shared_data / "beauty")
    assert load(shared_data / "beauty").fingerprint == dataset.fingerprint


def test_the_cache_knows_content_not_places(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(shop)
    moved = shop.parent / "elsewhere" / "shop"
    shutil.copytree(shop, moved)
    monkeypatch.setattr("agentrec_env.data.load.read_reviews", None)
    assert read(moved)[1].reviews.source == str(moved / "reviews.jsonl")


def test_changed_files_limits_and_readers_are_read_anew(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read(shop)[0]) == 7
    with open(shop / "reviews.jsonl", "a") as file:
        file.write(json.dumps(review(0, 3)) + "\n")
    assert len(read(shop)[0]) == 8
    read(shop, limits=Limits(line_bytes=1000))
    monkeypatch.setattr(cache, "READER_VERSION", -1)
    read(shop)
    assert len(list((cache_dir() / "datasets").iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest", "empty manifest"])
def test_a_damaged_entry_is_built_again(shop: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    dataset, report = read(shop)
    (entry,) = (cache_dir() / "datasets").iterdir()
    victim = entry / "interactions.arrow"
    data = bytearray(victim.read_bytes())
    if damage == "cut":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "missing":
        victim.unlink()
    else:
        (entry / "manifest.json").write_bytes(b"" if damage.startswith("empty") else b'{"name": 1}')
    with caplog.at_level(logging.WARNING):
        again, report_again = read(shop)
    assert "will be built again" in caplog.text
    assert (again.fingerprint, report_again) == (dataset.fingerprint, report)
    caplog.clear()
    read(shop)
    assert not caplog.text


def test_no_cache_leaves_nothing(shop: Path, empty_cache: Path) -> None:
    read(shop, cache=False)
    assert not empty_cache.exists()


def test_a_cache_that_cannot_be_written_is_a_warning(
    shop: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty_cache.write_text("a file where the folder should be")
    assert len(read(shop)[0]) == 7
    assert "set AGENTREC_CACHE" in caplog.text


def test_an_error_leaves_nothing_half_written(shop: Path, empty_cache: Path) -> None:
    (shop / "reviews.jsonl").write_bytes((shop / "reviews.jsonl").read_bytes() + b"?\n" * 20)
    with pytest.raises(DataError, match="20 of the first 27 lines are bad"):
        load(shop)
    assert not list(empty_cache.rglob("*"))


def test_a_killed_load_leaves_no_entry_and_the_next_one_cleans_up(shop: Path, empty_cache: Path) -> None:
    """The process dies by SIGKILL after the tables were written and before the entry is renamed into place."""
    code = (
        "import os, signal, pathlib, agentrec_env.data.load as load;"
        "pathlib.Path.rename = lambda *a: os.kill(os.getpid(), signal.SIGKILL);"
        f"load.read({str(shop)!r})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -signal.SIGKILL
    left = list((empty_cache / "datasets").iterdir())
    assert [path.name[0] for path in left] == ["."]
    assert len(read(shop)[0]) == 7
    assert [path.name[0] != "." for path in (empty_cache / "datasets").iterdir()] == [True]


def test_bad_lines_are_a_warning_in_the_log(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open(shop / "reviews.jsonl", "a") as file:
        file.write("{broken\n")
    with caplog.at_level(logging.INFO):
        read(shop)
    assert "7 of 8 records kept; left out: 1 bad (line 8: JSON is malformed" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_item_numbers_do_not_tell_what_came_first(tmp_path: Path) -> None:
    rows = [f"u{row % 7},item{row % 31},{row}" for row in range(200)]
    for name, order in (("early", rows), ("late", rows[::-1])):
        (tmp_path / f"{name}.csv").write_text("user,item,timestamp\n" + "\n".join(order) + "\n")
    ids = load(tmp_path / "early.csv").items.ids
    assert list(ids) == list(load(tmp_path / "late.csv").items.ids)
    assert list(ids) not in (sorted(ids), [f"item{i}" for i in range(31)])
