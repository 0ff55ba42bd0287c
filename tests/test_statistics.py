"""Intervals and tests do what their names promise: coverage and error rates, hand references, scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env import statistics


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_coverage_is_near_the_level(method: statistics.Method) -> None:
    # Reciprocal ranks of a random agent in a pool of 20: skewed, with the known mean H(20)/20.
    truth = float(np.mean(1 / np.arange(1, 21)))
    draws = rng(1)
    trials = 400
    covered = 0
    for _ in range(trials):
        values = 1 / draws.integers(1, 21, size=150)
        interval = statistics.PairedBootstrap({"a": values}, draws, resamples=500).interval("a", method)
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / trials <= 0.975


def test_sharing_the_draws_makes_differences_narrow() -> None:
    shared = rng(2).normal(size=400)
    values = {"a": shared + 0.1 + rng(3).normal(scale=0.1, size=400), "b": shared}
    bootstrap = statistics.PairedBootstrap(values, rng(4))
    difference = bootstrap.difference("a", "b")
    assert difference.mean == pytest.approx(0.1, abs=0.02)
    assert difference.high - difference.low < 0.03
    assert bootstrap.interval("a").high - bootstrap.interval("a").low > 0.15
    # The percentile interval of a mean of 400 differences is close to the normal one.
    half = 1.96 * bootstrap.per_task("a", "b").std(ddof=1) / 20
    assert difference.high - difference.mean == pytest.approx(half, rel=0.1)


def test_bca_equals_scipys() -> None:
    values = rng(5).exponential(size=60)
    ours = statistics.PairedBootstrap({"a": values}, rng(6), resamples=40_000).interval("a", "bca")
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=40_000, method="BCa", rng=rng(7)).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_seeds_that_disagree_widen_the_interval() -> None:
    tasks = rng(8).normal(scale=0.1, size=500)
    agree = np.stack([tasks] * 4)
    disagree = agree + np.array([[-0.1], [-0.03], [0.04], [0.09]])
    bootstrap = statistics.PairedBootstrap({"agree": agree, "disagree": disagree, "once": tasks}, rng(9))
    width = {name: bootstrap.interval(name).high - bootstrap.interval(name).low for name in bootstrap.values}
    assert width["agree"] == pytest.approx(width["once"], rel=1e-9)
    assert width["disagree"] > 5 * width["once"]
    spread = statistics.seed_spread(disagree)
    assert spread.seeds == 4
    assert spread.sd == pytest.approx(np.std([-0.1, -0.03, 0.04, 0.09], ddof=1))
    assert spread.high - spread.low == pytest.approx(0.19)
    assert np.isnan(statistics.seed_spread(tasks).sd)


@given(st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=8))
def test_few_differences_are_tested_exactly(differences: list[float]) -> None:
    p, exact = statistics.sign_flip_test(differences, rng())
    observed = abs(sum(differences))
    signs = list(itertools.product([-1, 1], repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(pattern, differences, strict=True))) for pattern in signs]
    assert exact
    assert p == pytest.approx(sum(total >= observed - 1e-9 for total in sums) / len(signs))


def test_many_differences_agree_with_scipy() -> None:
    differences = rng(10).normal(loc=0.15, size=120)
    p, exact = statistics.sign_flip_test(differences, rng(11), permutations=40_000)
    theirs = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=40_000, rng=rng(12)
    )
    assert not exact
    assert p == pytest.approx(theirs.pvalue, abs=0.01)


def test_tests_made_together_equal_tests_made_alone() -> None:
    few, many = np.zeros(80), rng(19).normal(loc=0.1, size=80)
    few[:5] = [0.5, -0.25, 0.5, 1.0, 0.125]
    together = statistics.sign_flip_tests([few, many, -many], rng(20))
    assert together[0] == statistics.sign_flip_test(few, rng())
    assert together[1] == together[2] == statistics.sign_flip_test(many, rng(20))


def test_type_one_error_is_near_five_percent() -> None:
    draws = rng(13)
    metric = 1 / np.log2(np.arange(1, 21) + 1)
    metric[10:] = 0
    trials = 500
    rejected = 0
    for _ in range(trials):
        first, second = metric[draws.integers(0, 20, size=(2, 60))]
        rejected += statistics.sign_flip_test(first - second, draws, permutations=400)[0] <= 0.05
    assert 0.028 <= rejected / trials <= 0.075


def test_holm_by_hand_and_by_definition() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - step) > alpha:
            break
        rejected.add(index)
    adjusted = statistics.holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


def test_effect_size() -> None:
    assert statistics.standardised_difference([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert statistics.standardised_difference([0.0, 0.0]) == 0.0
    assert statistics.standardised_difference([-1.0, -1.0]) == -np.inf


def test_position_uniformity_equals_scipy_and_sees_a_favourite_place() -> None:
    positions = rng(14).integers(0, 20, size=2_000)
    ours = statistics.position_uniformity(positions, 20)
    theirs = scipy.stats.chisquare(np.bincount(positions, minlength=20))
    assert ours.statistic == pytest.approx(theirs.statistic)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.degrees == 19
    assert statistics.position_uniformity(np.zeros(100, dtype=int), 20).p < 1e-10


def test_position_uniformity_joins_places_that_are_too_rare() -> None:
    sparse = statistics.position_uniformity(rng(15).integers(0, 1_000, size=300), 1_000)
    assert sum(sparse.counts) == 300
    assert sparse.degrees == 59
    assert sparse.p > 0.001
    uneven = [statistics.position_uniformity(rng(s).integers(0, 7, size=22), 7).p for s in range(300)]
    assert 0.01 <= np.mean(np.array(uneven) <= 0.05) <= 0.09
    assert statistics.position_uniformity([1, 0, 1], 20).p == 1.0


def test_comparison_holds_everything() -> None:
    values = {"a": [1.0, 0.5, 1.0, 0.0], "b": [0.5, 0.5, 0.5, 0.0]}
    bootstrap = statistics.PairedBootstrap(values, rng(16))
    (comparison,) = statistics.compare(bootstrap, [("a", "b")], rng(17))
    assert comparison.difference.mean == 0.25
    assert comparison.p == 0.5
    assert comparison.exact
    assert comparison.effect == pytest.approx(0.25 / np.std([0.5, 0, 0.5, 0], ddof=1))
    assert comparison.tasks == 4


def test_the_seed_decides_the_draws() -> None:
    values = {"a": rng(18).normal(size=50)}
    intervals = [statistics.PairedBootstrap(values, rng(seed)).interval("a") for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_bad_input_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        statistics.PairedBootstrap({"a": [1.0], "b": [1.0, 2.0]}, rng())
    with pytest.raises(ValueError, match="a failed episode counts 0"):
        statistics.PairedBootstrap({"a": [np.nan]}, rng())
    with pytest.raises(ValueError, match="at least one"):
        statistics.PairedBootstrap({"a": []}, rng())
    with pytest.raises(ValueError, match="level"):
        statistics.PairedBootstrap({"a": [1.0]}, rng(), level=95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        statistics.holm([1.2])
    with pytest.raises(ValueError, match="pool of 20"):
        statistics.position_uniformity([20], 20)


def chained(gain: float, noise: float, draws: np.random.Generator) -> dict[str, np.ndarray]:
    """float64 [3, 300]: "after" was trained from "before", seed by seed; the seeds differ by .012, gains by `noise`."""
    common = draws.normal(0.5, 0.3, 300) + draws.normal(0, 0.012, (3, 1))
    gains = gain + draws.normal(0, noise, (3, 1))
    return {
        "before": common + draws.normal(0, 0.05, (3, 300)),
        "after": common + gains + draws.normal(0, 0.05, (3, 300)),
    }


def test_what_a_seed_does_to_all_that_comes_of_it_drops_out() -> None:
    draws = rng(21)
    common = draws.normal(0.5, 0.3, 1_500) + np.array([[-0.012], [0.0], [0.012]])
    rows = {name: common + gain + draws.normal(0, 0.05, (3, 1_500)) for name, gain in (("a", 0.0), ("b", 0.008))}
    shared = statistics.PairedBootstrap(rows, rng(22), seeds={"a": "chain", "b": "chain"})
    alone = statistics.PairedBootstrap(rows, rng(22))
    together, apart = (each.difference("b", "a") for each in (shared, alone))
    assert together.mean == apart.mean
    assert together.low > 0 > apart.low
    # Tasks, seeds and single values each add the variance of a mean of 4,500 differences: Owen's two-way resampling.
    assert (together.high - together.low) / 2 == pytest.approx(1.96 * 0.05 * np.sqrt(2 / 4_500) * np.sqrt(3), rel=0.25)
    assert shared.p_value("b", "a") < 0.01 < 0.2 < alone.p_value("b", "a")
    assert [each.p < 0.01 for b in (shared, alone) for each in statistics.compare(b, [("b", "a")], rng())] == [
        True,
        False,
    ]


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_differences_of_chains_are_covered_and_not_found_where_there_are_none(noise: float) -> None:
    draws = rng(23)
    covered, found, power = [], [], []
    for _ in range(150):
        gain = 0.02
        rows = chained(gain, noise, draws)
        bootstrap = statistics.PairedBootstrap(rows, draws, 400, seeds=dict.fromkeys(rows, 0))
        interval = bootstrap.difference("after", "before")
        covered.append(interval.low <= gain <= interval.high)
        power.append(bootstrap.p_value("after", "before") <= 0.05)
        bootstrap = statistics.PairedBootstrap(chained(0.0, noise, draws), draws, 400, seeds=dict.fromkeys(rows, 0))
        found.append(bootstrap.p_value("after", "before") <= 0.05)
    assert np.mean(covered) >= 0.93
    assert np.mean(found) <= 0.07
    assert np.mean(power) >= 0.8


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=5), st.integers(0, 2**32 - 1))
def test_no_offset_of_the_seeds_moves_a_difference_of_those_that_share_them(offsets: list[float], seed: int) -> None:
    draws = rng(seed)
    rows = {name: draws.normal(size=(len(offsets), 12)) for name in ("a", "b")}
    moved = {name: table + np.array(offsets)[:, None] for name, table in rows.items()}
    plain, shifted = (
        statistics.PairedBootstrap(each, rng(seed), 50, seeds={"a": None, "b": None}) for each in (rows, moved)
    )
    first, second = plain.difference("a", "b"), shifted.difference("a", "b")
    assert (first.mean, first.low, first.high) == pytest.approx((second.mean, second.low, second.high), abs=1e-9)


def test_only_keys_of_one_group_share_their_seeds() -> None:
    rows = {name: rng(24).normal(size=(3, 40)) for name in ("a", "b", "c", "d")}
    before = statistics.PairedBootstrap(rows, rng(25))
    for seeds in ({}, {"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2, "d": 3}):
        after = statistics.PairedBootstrap(rows, rng(25), seeds=seeds)
        assert all((after.means[name] == before.means[name]).all() for name in rows)
    grouped = statistics.PairedBootstrap(rows, rng(25), seeds={"a": 0, "c": 0, "b": 1, "d": 1})
    # All rows hold the same values, so that only the draws of seeds tell them apart.
    equal = {pair: (grouped.means[pair[0]] == grouped.means[pair[1]]).all() for pair in itertools.combinations(rows, 2)}
    assert {pair for pair, same in equal.items() if same} == {("a", "c"), ("b", "d")}
    once = {"a": rng(26).normal(size=40), "b": rng(27).normal(size=40)}
    assert (
        statistics.PairedBootstrap(once, rng(28), seeds={"a": 0, "b": 0}).means["b"]
        == statistics.PairedBootstrap(once, rng(28)).means["b"]
    ).all()


def test_keys_that_share_seeds_have_as_many() -> None:
    rows = {"a": np.zeros((3, 4)), "b": np.zeros((2, 4))}
    with pytest.raises(ValueError, match=r"the same seeds have as many of them, given \{'a': 3, 'b': 2\}"):
        statistics.PairedBootstrap(rows, rng(), seeds={"a": 0, "b": 0})
    with pytest.raises(ValueError, match="no values of c"):
        statistics.PairedBootstrap(rows, rng(), seeds={"c": 0})


def test_luck_of_the_seeds_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        rows = {
            name: 0.5 + rng.normal(0, 0.01, (3, 1)) + rng.normal(0, 0.1, 300) + rng.normal(0, 0.05, (3, 300))
            for name in ("first", "second")
        }
        bootstrap = statistics.PairedBootstrap(rows, rng, resamples=1000)
        found.append(statistics.compare(bootstrap, [("first", "second")], rng)[0].p)
    assert np.mean(np.array(found) < 0.05) < 0.15  # the sign-flip test alone, which takes the models as given: over .3
