"""Compare an agent of your own with baselines on the same tasks: means, 95 % intervals, and a paired test.

`benchmarks/run_all.py --agent compare_agents:by_scores` makes the same comparison with every baseline, and a report.
"""

from __future__ import annotations

import re

import numpy as np

from agentrec_env.statistics import PairedBootstrap, compare
from agentrec_env.vector import RecVectorEnv
from agents import play
from agents.protocol import Observation


def by_scores(observation: Observation) -> str:
    """Ask once for the collaborative scores, then name the candidates in the order in which they are mentioned."""
    if observation["turn"] == 0:
        return '<tool_call>{"name": "score_candidates", "arguments": {}}</tool_call>'
    mentioned = dict.fromkeys(int(number) for number in re.findall(r"\[(\d+)\]", observation["text"]))
    return f"<answer>{list(mentioned)[:10]}</answer>"


def main(tasks: int = 100) -> None:
    """Play the first test tasks with each agent and print a table."""
    envs = RecVectorEnv(32, task_split="test")
    agents = {"by_scores": by_scores, "item_knn": "item_knn", "popularity": "popularity", "random": "random"}
    values = {
        name: np.array([episode.metrics["ndcg@10"] for episode in play(envs, agent, tasks=range(tasks))])
        for name, agent in agents.items()
    }
    generator = np.random.default_rng(0)
    draws = PairedBootstrap(values, generator)
    others = [name for name in values if name != "by_scores"]
    print(envs.world.protocol)
    for name in values:
        interval = draws.interval(name)
        print(f"{name:11} N@10 {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    for other, found in zip(others, compare(draws, [("by_scores", other) for other in others], generator), strict=True):
        print(f"by_scores - {other:11} {found.difference.mean:+.3f}, p {found.p:.4f}")


if __name__ == "__main__":
    main()
