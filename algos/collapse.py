"""Signs that a run is going wrong, each with what helps: said once when it shows, again when it comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Sign:
    """One way to go wrong."""

    shows: Callable[[Figures, Figures], bool]
    """Whether figures of now, given those of the first step, show it."""
    text: Callable[[Figures], str]
    """What it is, and what helps."""


def _above(name: str, limit: float) -> Callable[[Figures, Figures], bool]:
    return lambda now, first: now.get(name, 0.0) > limit


def _entropy(now: Figures, first: Figures) -> bool:
    entropy, before = now.get("sampled_entropy"), first.get("sampled_entropy")
    return entropy is not None and before is not None and entropy < 0.2 * before


def _worst(now: Figures, prefix: str) -> tuple[str, float]:
    """The most frequent of some shares."""
    shares = {name.removeprefix(prefix): share for name, share in now.items() if name.startswith(prefix)}
    return max(shares.items(), key=lambda pair: pair[1], default=("unknown", 0.0))


def _always_first(now: Figures, first: Figures) -> bool:
    tools = sum(name.startswith("first/") for name in now)
    return tools > 1 and now.get("no_calls", 1.0) < 0.5 and _worst(now, "first/")[1] > 0.98 > _worst(first, "first/")[1]


SIGNS: Mapping[str, Sign] = {
    "entropy": Sign(
        _entropy,
        lambda now: (
            f"entropy fell to {now['sampled_entropy']:.3f} nats a token, a fifth of what it was: the policy hardly "
            "explores. Lower lr, raise temperature or clip-high, or hold it to the reference (kl reward)"
        ),
    ),
    "spread": Sign(
        _above("flat_groups", 0.8),
        lambda now: (
            f"{100 * now['flat_groups']:.0f} % of groups have one reward for all members and teach nothing. Raise "
            "group-size or temperature, or train on harder tasks (env.negatives hard, a larger env.num-candidates)"
        ),
    ),
    "dropped": Sign(
        _above("dropped_groups", 0.8),
        lambda now: (
            f"{100 * now['dropped_groups']:.0f} % of groups are dropped: none of their members earned anything. "
            "Warm up with algos.sft first, raise group-size, or set drop none"
        ),
    ),
    "invalid": Sign(
        _above("invalid", 0.3),
        lambda now: (
            f"{100 * now['invalid']:.0f} % of episodes end without a valid list, most by {_worst(now, 'why/')[0]}. "
            "Read the run's transcripts/; warm up with algos.sft, raise max-turn-tokens or max-episode-tokens where "
            "budgets run out, or lower lr where it was better before"
        ),
    ),
    "one tool": Sign(
        _always_first,
        lambda now: (
            f"every episode now begins with {_worst(now, 'first/')[0]}, which was not so at first. "
            "Raise temperature, lower lr, or hold the policy to the reference (kl reward); fine where that tool is "
            "simply the best"
        ),
    ),
    "mismatch": Sign(
        _above("mismatch_kl", 0.01),
        lambda now: (
            f"sampler and policy disagree on what was sampled by {now['mismatch_kl']:.3f} nats a token. "
            "Use dtype float32, or bfloat16 for both"
        ),
    ),
    "lost": Sign(
        _above("lost", 0.05),
        lambda now: (
            f"{100 * now['lost']:.0f} % of episodes were lost to errors of tools or of the agent and not learnt from. "
            "Play a few tasks with agents.play and look at Episode.error"
        ),
    ),
}


class Watch:
    """Looks at the figures of each step."""

    def __init__(self) -> None:
        self._first: Figures | None = None
        self._shown: set[str] = set()

    def look(self, now: Figures) -> list[str]:
        """Warnings that are new at this step."""
        self._first = first = self._first or now
        shown = {name for name, sign in SIGNS.items() if sign.shows(now, first)}
        new = [SIGNS[name].text(now) for name in SIGNS if name in shown - self._shown]
        self._shown = shown
        return new

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""
        first = {name: value for name, value in (self._first or {}).items() if math.isfinite(value)}
        return {"first": first, "shown": sorted(self._shown)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._first = {name: float(value) for name, value in state["first"].items()} or None
        self._shown = set(state["shown"])
