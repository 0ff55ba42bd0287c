"""The categories of the three McAuley releases, and where each release keeps its files.

Sources: 2014 http://jmcauley.ucsd.edu/data/amazon/links.html, 2018 https://nijianmo.github.io/amazon/, 2023
https://amazon-reviews-2023.github.io/. The 5-core review files of 2014 and 2018, the full ones of 2023.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentrec_env.data.cache import cache_dir

_SHARED = (
    "Automotive Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics"
    " Grocery_and_Gourmet_Food Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products"
    " Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"
)
_SINCE_2018 = (
    "All_Beauty Appliances Arts_Crafts_and_Sewing Gift_Cards Industrial_and_Scientific Magazine_Subscriptions Software"
)
_ONLY = {
    "2014": "Amazon_Instant_Video Apps_for_Android Baby Beauty Health_and_Personal_Care",
    "2018": f"{_SINCE_2018} AMAZON_FASHION Luxury_Beauty Prime_Pantry",
    "2023": f"{_SINCE_2018} Amazon_Fashion Baby_Products Beauty_and_Personal_Care Handmade_Products"
    " Health_and_Household Health_and_Personal_Care Subscription_Boxes Unknown",
}
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    edition: tuple(sorted(f"{_SHARED} {only}".split())) for edition, only in _ONLY.items()
}
"""Edition -> its categories, under the names that its file names use."""


@dataclass(frozen=True)
class Edition:
    """Where a release lies: `base_url` and the two files of a category below it."""

    base_url: str
    reviews: str
    metadata: str


EDITIONS: Mapping[str, Edition] = {
    "2014": Edition(
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles",
        "reviews_{}_5.json.gz",
        "meta_{}.json.gz",
    ),
    "2018": Edition(
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
        "categoryFilesSmall/{}_5.json.gz",
        "metaFiles2/meta_{}.json.gz",
    ),
    "2023": Edition(
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw",
        "review_categories/{}.jsonl.gz",
        "meta_categories/meta_{}.jsonl.gz",
    ),
}


def find_category(name: str, edition: str) -> str | None:
    """The category that `name` means, whatever its case and whether it is written with blanks, & or underscores."""
    wanted = _plain(name)
    return next((category for category in CATEGORIES[edition] if _plain(category) == wanted), None)


def _plain(name: str) -> str:
    return "_".join(re.findall(r"[a-z0-9]+", name.lower().replace("&", " and ")))


def category_folder(edition: str, category: str) -> Path:
    """Where a category is downloaded to."""
    return cache_dir() / "downloads" / edition / category
