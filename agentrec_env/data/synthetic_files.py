"""The embedded world as McAuley-2023 files: reviews and metadata, streamed, so that their size is not bound by memory.

The two files appear under their names only when whole, and equal worlds give equal bytes.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.synthetic_catalogue import asin
from agentrec_env.data.synthetic_names import LEAVES, REVIEW_TEXTS, REVIEW_TITLES

if TYPE_CHECKING:
    from agentrec_env.data.synthetic import Histories, SyntheticWorld


def write_world(world: SyntheticWorld, folder: Path) -> tuple[Path, Path]:
    """Write `reviews.jsonl.gz` and `meta.jsonl.gz` of `world` into `folder`, made where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews, meta = folder / "reviews.jsonl.gz", folder / "meta.jsonl.gz"
    count = np.zeros(world.catalogue.num_items, dtype=np.int64)
    stars = np.zeros(world.catalogue.num_items)
    with _whole_file(reviews) as review_file, _whole_file(meta) as meta_file:
        for block in world.histories():
            np.add.at(count, block.item, 1)
            np.add.at(stars, block.item, block.rating)
            review_file.write(msgspec.json.Encoder().encode_lines(_reviews(world, block)))
        _write_meta(world, meta_file, count, stars)
    return reviews, meta


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as raw:
            # no name and no time in the header: equal worlds, equal bytes
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
                yield file  # type: ignore[misc]
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _reviews(world: SyntheticWorld, block: Histories) -> list[dict[str, Any]]:
    from agentrec_env.data.synthetic import user_id

    rng = np.random.default_rng([world.seed, 5, block.first_user])
    size = len(block.item)
    users = [user_id(world.seed, number) for number in range(block.first_user, int(block.user[-1]) + 1)]
    variant = np.where(rng.random(size) < 0.1, world.catalogue.num_items, 0)  # size or colour bought: another asin
    votes = np.where(rng.random(size) < 0.2, rng.geometric(0.4, size), 0).tolist()
    verified = (rng.random(size) < 0.93).tolist()
    words = rng.integers(0, 1 << 30, size=(size, 2)).tolist()
    leaves = world.catalogue.leaf[block.item].tolist()
    records = []
    for place, (user, item, stars, time, offset) in enumerate(
        zip(
            (block.user - block.first_user).tolist(), block.item.tolist(), block.rating.tolist(),
            block.time.tolist(), variant.tolist(), strict=True,
        )
    ):  # fmt: skip
        titles, texts = REVIEW_TITLES[int(stars)], REVIEW_TEXTS[int(stars)]
        leaf = LEAVES[leaves[place]].path[-1].lower()
        parent = asin(world.seed, item)
        records.append(
            {
                "rating": stars,
                "title": titles[words[place][0] % len(titles)],
                "text": texts[words[place][1] % len(texts)].format(leaf=leaf),
                "images": [],
                "asin": asin(world.seed, item + offset) if offset else parent,
                "parent_asin": parent,
                "user_id": users[user],
                "timestamp": time,
                "helpful_vote": votes[place],
                "verified_purchase": verified[place],
            }
        )
    return records


def _write_meta(world: SyntheticWorld, file: IO[bytes], count: NDArray[np.int64], stars: NDArray[np.float64]) -> None:
    encoder = msgspec.json.Encoder()
    for item, page in enumerate(world.catalogue.texts()):
        number = int(count[item])
        unknown_price = "None" if item % 3 == 0 else None  # the dump writes a missing price both ways
        record: dict[str, Any] = {
            "main_category": page.main_category,
            "title": page.title,
            "average_rating": round(float(stars[item]) / number, 1) if number else None,
            "rating_number": number,
            "features": page.features,
            "description": page.description,
            "price": unknown_price if page.price is None else page.price,
            "images": [],
            "videos": [],
            "store": page.store,
            "categories": page.categories,
            "details": page.details,
            "parent_asin": asin(world.seed, item),
            "bought_together": None,
        }
        file.write(encoder.encode(record) + b"\n")
