"""The signals planted in the embedded world: none is enough alone, together they do better, and the truth is far above.

The recommenders here are a few lines each and independent of the project's tools, so that the world is judged by
itself. `pytest -m slow -k fusion` prints the table.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from agentrec_env.data.synthetic import SyntheticChoices, SyntheticWorld, make_world
from agentrec_env.data.world import World

TRAITS = ("taste", "brand", "crowd", "complement", "style")
"""What may move a user, in the order of `People.weight`."""
SERVED_BY = {"taste": "category", "brand": "brand", "crowd": "popularity"}


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return make_world()


def traits(world: SyntheticWorld, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [M]: what moves each user most."""
    model = world.dataset.choice_model
    assert isinstance(model, SyntheticChoices)
    most: NDArray[np.int64] = model.people.weight[users].argmax(axis=1)
    return most


def ndcg(scores: NDArray[np.float64], target: NDArray[np.int64]) -> NDArray[np.float64]:
    """NDCG@10 [M] of the target among scores [M, C], expected over random orders of ties."""
    own = scores[np.arange(len(scores)), target][:, None]
    above, ties = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    gain = np.where(np.arange(scores.shape[1]) < 10, 1 / np.log2(np.arange(scores.shape[1]) + 2.0), 0.0)
    total = np.concatenate([[0.0], np.cumsum(gain)])
    expected: NDArray[np.float64] = (total[above + ties] - total[above]) / ties
    return expected


def signals(world: World, split: str, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], list[str]]:
    """[M, C, F] what a few simple recommenders say of each pool, and their names; the last one is the truth."""
    items = world.dataset.items
    words = [set(re.findall(r"[a-z0-9]+", (title or "").lower())) for title in items.titles]
    vocabulary = {word: number for number, word in enumerate(sorted(set().union(*words)))}
    rare = np.zeros((len(items), len(vocabulary)), dtype=np.float32)
    for item, of_item in enumerate(words):
        rare[item, [vocabulary[word] for word in of_item]] = 1.0
    rare *= np.log(len(items) / rare.sum(axis=0))
    rare /= np.linalg.norm(rare, axis=1, keepdims=True) + 1e-9
    alike = rare @ rare.T
    codes = {}
    for name, column in (
        ("department", [path[:1] for path in items.categories]),
        ("aisle", [path[:-1] for path in items.categories]),
        ("leaf", list(items.categories)),
        ("brand", [() if brand is None else (brand,) for brand in items.brands]),
    ):
        kinds = {kind: number for number, kind in enumerate(sorted(set(column)))}
        codes[name] = np.array([kinds[kind] if kind else -1 for kind in column])
    price = np.log(items.prices)
    near: dict[int, NDArray[np.float32]] = {}
    lines = []
    model = world.dataset.choice_model
    assert model is not None
    for index in indices.tolist():
        task = world.task(split, index)
        view = world.view(task)
        known, pool = view.known, view.candidates
        fading = 0.85 ** np.arange(len(known))[::-1]
        match = {name: (code[known][:, None] == code[pool]) & (code[pool] >= 0) for name, code in codes.items()}
        match["brand"] &= match["department"] | (codes["brand"][pool] >= 0)
        if task.fold not in near:
            near[task.fold] = view.evidence.cooccurrence.toarray()
        together = near[task.fold][known[:, None], pool]
        vectors = view.evidence.embedding
        recent = {name: fading @ same for name, same in match.items()}
        distance = np.abs(price[pool] - price[known][:, None])
        row = int(world.dataset.indptr[task.user]) + task.position
        lines.append(
            np.stack(
                [
                    view.popularity(pool), view.recent_popularity(pool, 30.0), together.sum(axis=0), fading @ together,
                    vectors[pool] @ vectors[known].sum(axis=0), fading @ alike[known[:, None], pool],
                    recent["department"] + recent["aisle"] + recent["leaf"], recent["leaf"], recent["brand"],
                    -np.where(np.isnan(distance), 0.7, distance).mean(axis=0), model.utilities(row, pool),
                ],
                axis=1,
            )
        )  # fmt: skip
    return np.array(lines), [
        "popularity", "trend", "co-occurrence", "recent co-occurrence", "embedding", "title", "category", "leaf",
        "brand", "price", "truth",
    ]  # fmt: skip


def answers(world: World, split: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    tasks = [world.task(split, int(index)) for index in indices]
    return np.array([int(np.flatnonzero(task.candidates == task.target)[0]) for task in tasks])


def clearly_above(better: NDArray[np.float64], worse: NDArray[np.float64], margin: float) -> bool:
    """Whether the paired difference exceeds `margin`, and zero by more than four standard errors."""
    gap = better - worse
    return bool(gap.mean() > margin and gap.mean() > 4 * gap.std() / np.sqrt(len(gap)))


def standardised(features: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = features - features.mean(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = centred / (features.std(axis=1, keepdims=True) + 1e-9)
    return scaled


@pytest.fixture(scope="module")
def judged(world: SyntheticWorld) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """N@10 [M] of each signal and of a plain sum of them on some test tasks, and the user of each."""
    shop = World(world.dataset)
    indices = np.random.default_rng(0).choice(shop.num_tasks("test"), 900, replace=False)
    features, names = signals(shop, "test", indices)
    target = answers(shop, "test", indices)
    scores = {name: ndcg(features[:, :, column], target) for column, name in enumerate(names)}
    weights = [0.5, 0.3, 0.4, 0.4, 0.6, 0.3, 0.6, 0.2, 0.6, 0.5]  # by hand: nothing is fitted on the test tasks
    scores["sum"] = ndcg(standardised(features[:, :, :-1]) @ weights, target)
    return scores, shop.positions("test")[indices, 0]


def test_one_signal_is_under_a_plain_sum_which_is_under_the_truth(
    judged: tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]],
) -> None:
    scores, _ = judged
    best = max(scores.keys() - {"truth", "sum"}, key=lambda name: scores[name].mean())
    assert 0.33 < scores["popularity"].mean() < 0.45
    assert 0.38 < scores[best].mean() < 0.5
    assert clearly_above(scores["sum"], scores[best], 0.03)
    assert clearly_above(scores["truth"], scores["sum"], 0.15)
    assert 0.7 < scores["truth"].mean() < 0.85


@pytest.mark.parametrize(("trait", "signal"), SERVED_BY.items())
def test_a_signal_serves_those_best_whom_it_moves(
    world: SyntheticWorld, judged: tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]], trait: str, signal: str
) -> None:
    scores, users = judged
    moved = traits(world, users) == TRAITS.index(trait)
    assert scores[signal][moved].mean() > scores[signal][~moved].mean() + 0.05


@pytest.mark.slow
def test_one_signal_is_under_a_learned_fusion_which_is_under_the_truth(
    world: SyntheticWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    shop = World(world.dataset)
    rng = np.random.default_rng(0)

    def table(split: str, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str], NDArray[np.int64]]:
        indices = rng.choice(shop.num_tasks(split), min(count, shop.num_tasks(split)), replace=False)
        features, names = signals(shop, split, indices)
        return features, answers(shop, split, indices), names, shop.positions(split)[indices, 0]

    def columns(features: NDArray[np.float64]) -> NDArray[np.float64]:
        seen = features[:, :, :-1]
        return np.concatenate([seen, standardised(seen)], axis=2).reshape(-1, 2 * seen.shape[2])

    train, train_target, names, _ = table("train", 6000)
    test, target, _, users = table("test", 3200)
    labels = np.zeros(train.shape[:2], dtype=np.int64)
    labels[np.arange(len(train)), train_target] = 1
    settings = {
        "objective": "lambdarank", "learning_rate": 0.03, "num_leaves": 15, "min_child_samples": 50,
        "colsample_bytree": 0.5, "seed": 0, "num_threads": 1, "verbose": -1, "deterministic": True,
    }  # fmt: skip
    pools = lightgbm.Dataset(columns(train), labels.ravel(), group=[20] * len(train))
    ranker = lightgbm.train(settings, pools, num_boost_round=200)
    fused = ndcg(ranker.predict(columns(test), num_threads=1).reshape(test.shape[:2]), target)
    scores = {name: ndcg(test[:, :, column], target) for column, name in enumerate(names)}
    scores["fusion"] = fused
    moved_by = traits(world, users)
    groups = {"all": moved_by >= 0} | {trait: moved_by == number for number, trait in enumerate(TRAITS)}
    with capsys.disabled():
        print(f"\n{shop.protocol}, {len(target)} tasks; N@10, of all users and by what moves them most:")
        print(" " * 22 + "".join(f"{group:>12}" for group in groups))
        for name, score in sorted(scores.items(), key=lambda pair: -pair[1].mean()):
            print(f"{name:22}" + "".join(f"{score[group].mean():12.3f}" for group in groups.values()))
    best = max(scores.keys() - {"truth", "fusion"}, key=lambda name: scores[name].mean())
    assert clearly_above(fused, scores[best], 0.05)
    assert clearly_above(scores["truth"], fused, 0.15)
    for trait, signal in SERVED_BY.items():
        rivals = set(SERVED_BY.values()) - {signal}
        assert all(scores[signal][groups[trait]].mean() > scores[rival][groups[trait]].mean() for rival in rivals)
