"""Warnings: said once, with a remedy, and said again when the trouble comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from algos.collapse import Watch

WELL: dict[str, float] = {
    "sampled_entropy": 1.0,
    "flat_groups": 0.2,
    "dropped_groups": 0.1,
    "invalid": 0.05,
    "no_calls": 0.0,
    "first/get_user_profile": 0.6,
    "first/get_similar_items": 0.4,
    "mismatch_kl": 1e-7,
    "lost": 0.0,
}


@pytest.mark.parametrize(
    ("change", "sign", "remedy"),
    [
        ({"sampled_entropy": 0.1}, "entropy fell to 0.100 nats", "temperature"),
        ({"flat_groups": 0.9}, "90 % of groups have one reward", "group-size"),
        ({"dropped_groups": 0.9}, "90 % of groups are dropped", "algos.sft"),
        ({"invalid": 0.5, "why/no_action": 0.4, "why/mixed": 0.1}, "most by no_action", "transcripts/"),
        ({"first/get_user_profile": 1.0}, "begins with get_user_profile", "Lower lr|lower lr"),
        ({"mismatch_kl": 0.1}, "disagree on what was sampled by 0.100", "float32"),
        ({"lost": 0.2}, "20 % of episodes were lost", "Episode.error"),
    ],
)
def test_a_sign_is_told_once_with_its_remedy(change: dict[str, Any], sign: str, remedy: str) -> None:
    watch = Watch()
    assert watch.look(WELL) == []
    (told,) = watch.look(WELL | change)
    assert sign in told
    assert any(word in told for word in remedy.split("|"))
    assert watch.look(WELL | change) == []
    assert watch.look(WELL) == []
    assert watch.look(WELL | change) == [told]


def test_a_resumed_run_remembers_how_it_began_and_what_it_said() -> None:
    watch = Watch()
    watch.look(WELL)
    assert watch.look(WELL | {"flat_groups": 0.9})
    resumed = Watch()
    resumed.restore(json.loads(json.dumps(watch.state())))
    (told,) = resumed.look(WELL | {"flat_groups": 0.9, "sampled_entropy": 0.1})
    assert "entropy fell" in told
