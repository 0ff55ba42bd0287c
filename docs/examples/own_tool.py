"""Give agents a tool of your own, check that it cannot look ahead, and call it in an episode."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

import agentrec_env  # noqa: F401 - registers the ids
from agentrec_env.check import check_tool
from agentrec_env.data.view import View
from agentrec_env.tools import tool


@tool(register=False)
def compare_prices(view: View) -> str:
    """Say which candidates cost what the user usually pays."""
    usual = np.nanmedian(view.items.prices[view.known]) if len(view.known) else np.nan
    if np.isnan(usual):
        return "The user's prices are unknown."
    prices = view.items.prices[view.candidates]
    near = np.flatnonzero(np.abs(np.log(prices / usual)) < np.log(1.5)) + 1
    return f"The user usually pays {usual:.2f}. Candidates within half as much again: {near.tolist()}"


def main() -> None:
    """Check the tool on the embedded world, then let an episode call it."""
    for point in check_tool(compare_prices, tasks=2):
        print("holds:", point)
    env = gym.make("AgentRec-Amazon-v0", tools=[compare_prices, "score_candidates"])
    env.reset(seed=0)
    observation, *_ = env.step('<tool_call>{"name": "compare_prices", "arguments": {}}</tool_call>')
    print(observation["text"])


if __name__ == "__main__":
    main()
