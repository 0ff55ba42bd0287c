"""Play one episode by hand: read the task, call a tool, answer, and see where the positive stood."""

from __future__ import annotations

import gymnasium as gym

import agentrec_env  # noqa: F401 - registers the ids


def main() -> None:
    """One episode of the embedded world."""
    env = gym.make("AgentRec-Amazon-v0", task_split="test", render_mode="ansi")
    env.reset(seed=0)
    env.step('<tool_call>{"name": "score_candidates", "arguments": {}}</tool_call>')
    _, reward, _, _, info = env.step(r"<answer>\boxed{[8, 3, 15]}</answer>")
    print(env.render())
    print(f"reward {reward:.3f}, stop {info['stop']}, rank of the positive {info['rank']} (0: not in the list)")


if __name__ == "__main__":
    main()
