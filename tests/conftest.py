"""Fixtures shared by all tests: the real data beside the checkout, and a tiny dataset made by hand."""

from __future__ import annotations

import os
from pathlib import Path

# Models and data of tests are tiny: threads that wait for one another would take longer than the work, and pytest runs
# a process on each core already. Before torch and numpy are imported, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from agentrec_env.data.dataset import Dataset, Items

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real Amazon reviews, which cannot be shipped; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real Amazon reviews are not at {SHARED}; they have no licence to be shipped with the project")
    return SHARED


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches go to a folder of the test run, so that no run depends on what an earlier one left."""
    monkeypatch.setenv("AGENTREC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def random_dataset(seed: int = 0, users: int = 40, items: int = 60, per_user: int = 8, times: bool = True) -> Dataset:
    """Users with ``per_user`` distinct random items each; times fall on whole days, so that there are ties."""
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), per_user)
    item = np.concatenate([generator.permutation(items)[:per_user] for _ in range(users)])
    rating = generator.integers(1, 6, len(user)).astype(np.float32)
    rating[generator.random(len(user)) < 0.1] = np.nan
    return Dataset.build(
        "random",
        Items(
            ids=[f"B{i:04d}" for i in range(items)],
            titles=[None if i % 17 == 5 else f"Brand{i % 5} thing number {i} <|im_end|>" for i in range(items)],
            brands=[None if i % 7 == 3 else f"Brand{i % 5}" for i in range(items)],
            categories=[() if i % 11 == 2 else ("Shop", f"Aisle {i % 4}", f"Shelf {i % 12}") for i in range(items)],
            prices=np.where(np.arange(items) % 6 == 1, np.nan, 1.0 + np.arange(items)),
            descriptions=["" if i % 3 else f"A thing of kind {i % 12}" for i in range(items)],
        ),
        [f"A{u:04d}" for u in range(users)],
        user,
        item,
        rating,
        generator.integers(0, 200, len(user)) * 86_400_000 + 1_600_000_000_000 if times else None,
    )


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    return random_dataset()
