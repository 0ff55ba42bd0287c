"""What a practitioner would ship: a gradient-boosted ranker over every number that the tools can give.

It is the bar for an agent that reads the same evidence as words. LightGBM's lambdarank (Burges, MSR-TR-2010-82) learns
on the valid tasks, whose evidence (fold 0) is the one that test tasks have; test tasks are never touched. Neither the
place of a candidate in the list nor anything derived from it is a feature.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import agentrec_env
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.tools.signals import SIGNALS, matrix
from agentrec_env.types import FloatArray, IntArray
from agents.models import load_model, save_model, source_digest
from agents.protocol import ScoringAgent

CATALOG_POOL = 100
"""Pool size for training where the whole catalogue is ranked."""
PREDICT_ROWS = 50_000
"""Candidates scored at a time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FusionConfig:
    """How the ranker is trained."""

    draws: int = 3
    """Pools drawn for each valid task: the evaluation pool and fresh negatives."""
    max_rows: int = 100_000
    """Candidates trained on, over all pools; more tasks than fit are sampled."""
    members: int = 5
    """Rankers whose scores are added; each is stopped early on another part of the users."""
    rounds: int = 1000
    patience: int = 30
    learning_rate: float = 0.1
    num_leaves: int = 15
    min_data_in_leaf: int = 100
    feature_fraction: float = 0.3
    lambda_l2: float = 5.0
    seed: int = 0


class Fusion(ScoringAgent):
    """LightGBM lambdarank over signals of each pool, raw and standardised within the pool.

    Args:
        signals: names from ``agentrec_env.tools.signals.SIGNALS`` or ``"module:attr"`` (``"agents.sasrec:signal"`` adds
            SASRec's score); None: all registered ones.
        seed: of the parts of users that stop each member early, and of LightGBM.
        **settings: other fields of :class:`FusionConfig`.

    Raises:
        ImportError: LightGBM is not installed.
        ValueError: on binding, where there are too few valid tasks to learn from.
    """

    def __init__(self, signals: Sequence[str] | None = None, seed: int = 0, **settings: Any) -> None:
        self.config = FusionConfig(seed=seed, **settings)
        self.signals = tuple(SIGNALS.names() if signals is None else signals)
        for name in self.signals:
            SIGNALS.get(name)
        self.metrics: dict[str, float] = {}
        self._members: list[Any] = []

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns that the ranker sees."""
        return [*self.signals, *(f"{name} (within pool)" for name in self.signals)]

    def fit(self, world: World) -> None:
        """Train on the valid tasks of ``world``, or take from the cache what was trained on the same."""
        lightgbm = _lightgbm()
        begin = time.perf_counter()
        key = _key(world, self.signals, self.config, lightgbm.__version__)
        texts = _load(key, self.config.members)
        if texts is None:
            texts = _train(lightgbm, world, self.signals, self.config)
            save_model("fusion", key, json.dumps(texts).encode())
        self._members = [lightgbm.Booster(model_str=text) for text in texts]
        gain = sum(member.feature_importance("gain") for member in self._members)
        order = np.argsort(-gain, kind="stable")[:10]
        self.metrics = {"fit_seconds": time.perf_counter() - begin}
        self.metrics |= {f"gain/{self.feature_names[i]}": float(gain[i] / max(gain.sum(), 1e-12)) for i in order}

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return self.score_many([view], [items])[0]

    def score_many(self, views: Sequence[View], pools: Sequence[IntArray]) -> list[FloatArray]:
        """One prediction for many pools; each candidate's score depends on its own pool alone."""
        scores: list[FloatArray] = []
        for part in _portions([len(pool) for pool in pools]):
            blocks = [features(view, pool, self.signals) for view, pool in zip(views[part], pools[part], strict=True)]
            rows = np.concatenate(blocks)
            total = sum(member.predict(rows, num_threads=1) for member in self._members)
            scores += np.split(np.asarray(total), np.cumsum([len(block) for block in blocks])[:-1])
        return scores


def features(view: View, items: IntArray, signals: Sequence[str]) -> NDArray[np.float32]:
    """float32 [M, 2 S]: the signals of ``items``, and the same standardised within the pool (mean 0, deviation 1).

    Computed in the order of item indices and put back, so that a candidate's row is the same to the last bit wherever
    it stands in the list.
    """
    order = np.argsort(items, kind="stable")
    raw = matrix(view, items[order], signals)
    known = ~np.isnan(raw)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, raw, 0.0).sum(axis=0) / count
    deviation = np.sqrt((np.where(known, raw - mean, 0.0) ** 2).sum(axis=0) / count)
    within = np.divide(raw - mean, deviation, out=np.where(known, 0.0, np.nan), where=deviation > 1e-9)
    result = np.empty((len(items), 2 * raw.shape[1]), np.float32)
    result[order] = np.hstack([raw, within])
    return result


@dataclass(frozen=True, eq=False)
class TrainingPools:
    """Pools of the valid tasks, as LightGBM reads them."""

    features: NDArray[np.float32]
    """float32 [G, C, F]."""
    relevance: NDArray[np.int8]
    """int8 [G, C], 1 for the target."""
    user: IntArray
    """int64 [G]."""


def training_pools(world: World, signals: Sequence[str], config: FusionConfig) -> TrainingPools:
    """Features and targets of valid tasks; candidates of each pool in a random order of their own."""
    size = CATALOG_POOL if world.catalog else int(world.num_candidates)
    size = min(size, world.dataset.num_items // 2) if world.catalog else size
    # A plain world over the same split: whatever order a caller's world lists candidates in, training is the same.
    plain = World(world.dataset, world.split, size, world.negatives, world.history_length, world.seed)
    generator = np.random.default_rng(1)  # not the seed: agents of several seeds share the pools
    requests = [(index, draw) for draw in range(config.draws) for index in range(plain.num_tasks("valid"))]
    keep = config.max_rows // size
    if len(requests) > keep:
        fewer = plain.num_tasks("valid") > keep
        requests = requests[: plain.num_tasks("valid")] if fewer else requests
        requests = [requests[i] for i in np.sort(generator.choice(len(requests), keep, replace=False))]
    name = f"fusion pools {plain.key} {signals!r} {requests!r}"
    cache = plain.split.evidence(0).cache
    if name not in cache:
        blocks, relevance, users = [], [], []
        for index, draw in requests:
            task = plain.task("valid", index, seed=None if draw == 0 else draw)
            pool = np.sort(task.candidates)
            pool = np.random.default_rng([index, draw]).permutation(pool)
            blocks.append(features(plain.view(task), pool, signals))
            relevance.append(pool == task.target)
            users.append(task.user)
        cache[name] = TrainingPools(np.array(blocks), np.array(relevance, np.int8), np.array(users, np.int64))
    pools = cache[name]
    assert isinstance(pools, TrainingPools)
    return pools


def _train(lightgbm: Any, world: World, signals: Sequence[str], config: FusionConfig) -> list[str]:
    """The members as LightGBM text: each learns on all users but a part, on which it is stopped."""
    pools = training_pools(world, signals, config)
    part = np.random.default_rng([config.seed, 2]).integers(config.members, size=world.dataset.num_users)[pools.user]
    if len(np.unique(part)) < config.members or np.bincount(part).min() * config.members < 50:
        raise ValueError(
            f"fusion learns on valid tasks and {world.dataset.name!r} has {len(np.unique(pools.user))} users with one; "
            "use more data, or an agent that needs no training"
        )
    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "feature_fraction": config.feature_fraction,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": config.lambda_l2,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # several processes share the cores, and LightGBM's threads spin
        "verbose": -1,
    }
    texts = []
    for member in range(config.members):
        held_out = part == member
        train = _lightgbm_data(lightgbm, pools, ~held_out)
        check = _lightgbm_data(lightgbm, pools, held_out, train)
        booster = lightgbm.train(
            parameters | {"seed": 1000 * config.seed + member},
            train,
            config.rounds,
            valid_sets=[check],
            callbacks=[lightgbm.early_stopping(config.patience, verbose=False)],
        )
        texts.append(booster.model_to_string(num_iteration=booster.best_iteration))
    return texts


def _lightgbm_data(lightgbm: Any, pools: TrainingPools, mask: NDArray[np.bool_], like: Any = None) -> Any:
    rows = pools.features[mask]
    return lightgbm.Dataset(
        rows.reshape(-1, rows.shape[2]),
        pools.relevance[mask].ravel(),
        group=np.full(len(rows), rows.shape[1]),
        reference=like,
    )


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError("fusion needs LightGBM: pip install 'agentrec-env[bench]'") from error
    return lightgbm


def _portions(lengths: Sequence[int]) -> Iterator[slice]:
    """Runs of pools with at most ``PREDICT_ROWS`` candidates together, or one pool."""
    start = total = 0
    for at, length in enumerate(lengths):
        if at > start and total + length > PREDICT_ROWS:
            yield slice(start, at)
            start, total = at, 0
        total += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def _key(world: World, signals: Sequence[str], config: FusionConfig, lightgbm_version: str) -> str:
    """What the trained model depends on, the code that makes its features included."""
    package = Path(agentrec_env.__file__).parent
    sources = {str(path) for folder in ("data", "tools") for path in (package / folder).glob("*.py")}
    sources |= {__file__, *(inspect.getmodule(SIGNALS.get(name)).__file__ or "" for name in signals)}  # type: ignore[union-attr]
    content: Mapping[str, Any] = {
        "world": world.key,
        "signals": list(signals),
        "config": asdict(config),
        "lightgbm": lightgbm_version,
        "code": source_digest(sorted(sources)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _load(key: str, members: int) -> list[str] | None:
    data = load_model("fusion", key)
    if data is None:
        return None
    texts = json.loads(data)
    return texts if isinstance(texts, list) and len(texts) == members else None
