"""Rewards against the numbers that the paper fixes, and the registry that plug-ins use."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.registry import UnknownNameError
from agentrec_env.rewards import REWARDS, Outcome
from agentrec_env.types import StopReason

NDCG = [1, 0.631, 0.5, 0.431, 0.387, 0.356, 0.333, 0.315, 0.301, 0.289]


def reward(name: str, rank: int, calls: int = 0, stop: StopReason = StopReason.ANSWERED) -> float:
    return math.fsum(REWARDS.get(name)(Outcome(stop, rank, 10, calls)).values())


@pytest.mark.parametrize(("rank", "expected"), list(enumerate(NDCG, 1)))
def test_agenticrec_by_rank(rank: int, expected: float) -> None:
    assert reward("agenticrec", rank) == pytest.approx(expected, abs=5e-4)
    assert reward("agenticrec", rank) == pytest.approx(1 / math.log2(rank + 1))


def test_agenticrec_bonus_and_penalties() -> None:
    assert reward("agenticrec", 1, calls=0) == 1.0
    assert reward("agenticrec", 1, calls=3) == pytest.approx(1.1)
    assert reward("agenticrec", 2, calls=3) == reward("agenticrec", 2)
    assert reward("agenticrec", 0, calls=3) == -0.5
    for stop in set(StopReason) - {StopReason.ANSWERED}:
        assert reward("agenticrec", 0, calls=11, stop=stop) == -1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ndcg@10", [1, 0.631, 0.5, 0]), ("hit@1", [1, 0, 0, 0]), ("mrr", [1, 0.5, 1 / 3, 0]), ("pair", [1, 0, 0, 0])],
)
def test_others_by_rank(name: str, expected: list[float]) -> None:
    assert [reward(name, rank) for rank in (1, 2, 3, 0)] == pytest.approx(expected, abs=5e-4)


def test_others_where_invalid() -> None:
    assert [reward(name, 0, stop=StopReason.INVALID) for name in ("ndcg@10", "hit@1", "mrr", "pair")] == [0, 0, 0, -1]


@given(st.sampled_from(StopReason), st.integers(0, 10), st.integers(0, 12))
def test_bounds_and_stable_terms(stop: StopReason, rank: int, calls: int) -> None:
    outcome = Outcome(stop, rank if stop is StopReason.ANSWERED else 0, 10, calls)
    for name in REWARDS.names():
        terms = REWARDS.get(name)(outcome)
        assert -1 <= math.fsum(terms.values()) <= 1.1
        assert terms.keys() == REWARDS.get(name)(Outcome(StopReason.INVALID, 0, 0, 0)).keys()


def calls_only(outcome: Outcome) -> dict[str, float]:
    return {"calls": -0.01 * outcome.calls}


def test_a_reward_of_ones_own() -> None:
    assert reward("tests.test_rewards:calls_only", 1, calls=4) == pytest.approx(-0.04)
    with pytest.raises(UnknownNameError, match="Did you mean 'agenticrec'"):
        REWARDS.get("agentic_rec")
