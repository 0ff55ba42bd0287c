"""Metrics against a slow reference by definition, against ranx, and over all orders of tied scores."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrec_env import metrics
from agentrec_env.registry import UnknownNameError

NAMES = [measure + cutoff for measure in metrics.MEASURES for cutoff in ("", "@1", "@3", "@10")]


def slow(name: str, ranked: list[str], grades: dict[str, float]) -> float:
    """One metric of one list, by the textbook: loops only."""
    measure, _, cutoff = name.partition("@")
    k = int(cutoff) if cutoff else len(ranked)
    top = ranked[:k]
    relevant = [item for item, grade in grades.items() if grade > 0]
    found = sum(item in relevant for item in top)
    if not relevant or not k:
        return 0.0
    match measure:
        case "hit":
            return float(found > 0)
        case "recall":
            return found / len(relevant)
        case "precision":
            return found / k
        case "f1":
            precision, recall = found / k, found / len(relevant)
            return 2 * precision * recall / (precision + recall) if found else 0.0
        case "mrr":
            return next((1 / place for place, item in enumerate(top, 1) if item in relevant), 0.0)
        case "map":
            hits, total = 0, 0.0
            for place, item in enumerate(top, 1):
                if item in relevant:
                    hits += 1
                    total += hits / place
            return total / len(relevant)
    best = sorted(grades.values(), reverse=True)[: int(cutoff) if cutoff else None]
    ideal = sum(grade / math.log2(place + 1) for place, grade in enumerate(best, 1))
    return sum(grades.get(item, 0.0) / math.log2(place + 1) for place, item in enumerate(top, 1)) / ideal


def orders(scores: dict[str, float]) -> list[list[str]]:
    """Every ranking that the scores allow: all orders within each group of ties."""
    levels = sorted(set(scores.values()), reverse=True)
    groups = [itertools.permutations([item for item in scores if scores[item] == level]) for level in levels]
    return [[item for group in chosen for item in group] for chosen in itertools.product(*groups)]


ITEMS = [f"item {letter}" for letter in "abcdefghij"]
grade_maps = st.dictionaries(st.sampled_from(ITEMS), st.integers(1, 4).map(float), min_size=1, max_size=6)
score_maps = st.dictionaries(st.sampled_from(ITEMS), st.integers(0, 2).map(float), min_size=0, max_size=5)
rankings = st.lists(st.sampled_from(ITEMS), unique=True, max_size=10)


@given(st.lists(st.tuples(grade_maps, rankings), min_size=1, max_size=5))
def test_rankings_equal_the_slow_reference(rows: list[tuple[dict[str, float], list[str]]]) -> None:
    qrels = {f"q{i}": grades for i, (grades, _) in enumerate(rows)}
    run = {f"q{i}": ranked for i, (_, ranked) in enumerate(rows)}
    values = metrics.evaluate(qrels, run, NAMES)
    by_row = metrics.evaluate([grades for grades, _ in rows], [ranked for _, ranked in rows], NAMES)
    for name in NAMES:
        expected = [slow(name, ranked, grades) for grades, ranked in rows]
        np.testing.assert_allclose(values[name], expected, atol=1e-12, err_msg=name)
        np.testing.assert_array_equal(values[name], by_row[name])


@settings(deadline=None)
@given(st.lists(st.tuples(grade_maps, score_maps), min_size=1, max_size=4))
def test_tied_scores_equal_the_mean_over_all_orders(
    rows: list[tuple[dict[str, float], dict[str, float]]],
) -> None:
    values = metrics.evaluate([grades for grades, _ in rows], [scores for _, scores in rows], NAMES)
    for name in NAMES:
        expected = [np.mean([slow(name, order, grades) for order in orders(scores)]) for grades, scores in rows]
        np.testing.assert_allclose(values[name], expected, atol=1e-10, err_msg=name)


@pytest.mark.slow  # ranx compiles for half a minute before its first number
@pytest.mark.filterwarnings("ignore:unsafe cast from uint64")
def test_tied_scores_equal_ranx_averaged_over_all_orders() -> None:
    ranx = pytest.importorskip("ranx", reason="the peer of this test comes with the dev extra")
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(40):
        grades = {ITEMS[i]: int(rng.integers(1, 5)) for i in rng.permutation(10)[: rng.integers(1, 7)]}
        scores = {ITEMS[i]: float(rng.integers(3)) for i in rng.permutation(10)[: rng.integers(1, 6)]}
        rows.append((grades, scores))
    ranked = [orders(scores) for _, scores in rows]
    keys = [f"{i:03} {j:03}" for i, orders_ in enumerate(ranked) for j in range(len(orders_))]
    flat = [order for orders_ in ranked for order in orders_]
    qrels = {key: rows[int(key[:3])][0] for key in keys}
    run = {key: {item: -float(p) for p, item in enumerate(order)} for key, order in zip(keys, flat, strict=True)}
    row_of = np.array([int(key[:3]) for key in sorted(keys)])
    ours = metrics.evaluate([grades for grades, _ in rows], [scores for _, scores in rows], NAMES)
    theirs = {name.replace("hit", "hit_rate"): name for name in NAMES}
    values = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(theirs), return_mean=False)
    for name, own in theirs.items():
        means = np.bincount(row_of, weights=values[name]) / np.bincount(row_of)
        np.testing.assert_allclose(ours[own], means, atol=1e-10, err_msg=own)


@given(
    st.integers(1, 6).flatmap(
        lambda rows: st.tuples(
            st.lists(rankings, min_size=rows, max_size=rows),
            st.lists(st.sampled_from(ITEMS), min_size=rows, max_size=rows),
        )
    )
)
def test_one_positive_has_a_fast_path_by_rank(lists_and_targets: tuple[list[list[str]], list[str]]) -> None:
    lists, targets = lists_and_targets
    ranks = [metrics.rank_of(ranked, target) for ranked, target in zip(lists, targets, strict=True)]
    names = [name for name in NAMES if name not in ("precision", "f1")]
    general = metrics.evaluate([[target] for target in targets], lists, names)
    batch = metrics.from_ranks(ranks, names)
    for name in names:
        np.testing.assert_allclose(batch[name], general[name], atol=1e-15)
        np.testing.assert_array_equal(batch[name], [metrics.value(name, rank) for rank in ranks])


@given(st.data())
def test_integer_arrays_equal_the_same_lists(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 5))
    drawn = [data.draw(st.lists(st.integers(0, 8), unique=True, max_size=6)) for _ in range(2 * rows)]
    padded = np.array([row + [-1] * (6 - len(row)) for row in drawn])
    by_array = metrics.evaluate(padded[:rows], padded[rows:], NAMES)
    by_list = metrics.evaluate(drawn[:rows], drawn[rows:], NAMES)
    for name in NAMES:
        np.testing.assert_allclose(by_array[name], by_list[name], atol=1e-15, err_msg=name)


@given(st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=6), st.data())
def test_expected_metrics_are_the_mean_over_all_orders(scores: list[list[int]], data: st.DataObject) -> None:
    target = [data.draw(st.integers(0, 4)) for _ in scores]
    names = ["hit@1", "ndcg@3", "ndcg", "mrr", "precision@3"]
    values = metrics.expected_metrics(scores, target, names)
    ranks = metrics.expected_ranks(scores, target)
    for i, row in enumerate(scores):
        ranked = orders({str(j): float(score) for j, score in enumerate(row)})
        places = [metrics.rank_of(order, str(target[i])) for order in ranked]
        assert ranks[i] == pytest.approx(np.mean(places))
        for name in names:
            assert values[name][i] == pytest.approx(np.mean([metrics.value(name, place) for place in places]))


def test_constant_scores_are_worth_random_order() -> None:
    # PAPER: a random ranking of 20 gives H@1 .050, H@5 .250, H@10 .500, N@5 .1474, N@10 .2272.
    names = ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10"]
    values = metrics.expected_metrics(np.zeros((3, 20)), [0, 7, 19], names)
    for name, expected in zip(names, [0.05, 0.25, 0.5, 0.1474, 0.2272], strict=True):
        np.testing.assert_allclose(values[name], expected, atol=5e-5)


def test_the_papers_values_of_ndcg_at_10() -> None:
    expected = [0, 1, 0.631, 0.5, 0.431, 0.387, 0.356, 0.333, 0.315, 0.301, 0.289, 0]
    assert [round(metrics.ndcg_at_k(rank, 10), 3) for rank in range(12)] == expected
    assert [metrics.hit_at_k(rank, 2) for rank in range(4)] == [0, 1, 1, 0]
    assert [metrics.mrr(rank) for rank in range(4)] == [0, 1, 1 / 2, 1 / 3]
    assert metrics.mrr(3, 2) == 0


def test_a_repeated_item_counts_once() -> None:
    values = metrics.evaluate([["a"]], [["b", "a", "a"]], ["recall", "map", "precision@3"])
    assert {name: value[0] for name, value in values.items()} == {
        "recall": 1,
        "map": 0.5,
        "precision@3": 1 / 3,
    }
    arrays = metrics.evaluate(np.array([[1]]), np.array([[2, 1, 1]]), ["recall", "map"])
    assert arrays["recall"][0] == 1
    assert arrays["map"][0] == 0.5


def test_a_query_without_a_list_is_missed_and_an_extra_one_refused() -> None:
    values = metrics.evaluate({"u1": ["a"], "u2": ["a"]}, {"u1": ["a"]}, "ndcg@10")
    assert values["ndcg@10"].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="'u3'"):
        metrics.evaluate({"u1": ["a"]}, {"u3": ["a"]}, ["mrr"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDCG@10", "Did you mean 'ndcg@10'"),
        ("hits@5", "Did you mean 'hit@5'"),
        ("ndcg@0", "whole number from 1"),
        ("ndcg@", "whole number from 1"),
        ("ndcg@²", "whole number from 1"),
        ("auc", "hit"),
    ],
)
def test_unknown_names_say_what_is_known(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        metrics.evaluate([["a"]], [["a"]], [name])


def test_bad_input_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.expected_metrics([[math.nan, 1.0]], [0], ["mrr"])
    with pytest.raises(ValueError, match="NaN"):
        metrics.evaluate([["a"]], [{"a": math.nan}], ["mrr"])
    with pytest.raises(ValueError, match="target columns are 0 … 1"):
        metrics.expected_metrics([[0.0, 1.0]], [2], ["mrr"])
    with pytest.raises(ValueError, match="grades"):
        metrics.evaluate([{"a": -1.0}], [["a"]], ["ndcg"])
    with pytest.raises(ValueError, match="same form"):
        metrics.evaluate({"u": ["a"]}, [["a"]], ["ndcg"])
    with pytest.raises(ValueError, match="2 rows and run 1"):
        metrics.evaluate([["a"], ["b"]], [["a"]], ["ndcg"])
    with pytest.raises(ValueError, match="twice"):
        metrics.evaluate(np.array([[1, 1]]), np.array([[1, 2]]), ["ndcg"])
    with pytest.raises(ValueError, match="rank -1"):
        metrics.ndcg_at_k(-1, 10)
    with pytest.raises(ValueError, match="needs a cut-off"):
        metrics.value("precision", 1)
