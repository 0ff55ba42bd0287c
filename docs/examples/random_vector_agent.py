"""Step many episodes at once, each row at its own pace: the loop to start from where `agents.play` is not enough."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

import agentrec_env  # noqa: F401 - registers the ids
from agentrec_env.vector import RecVectorEnv


def main(rows: int = 8, seed: int = 0) -> None:
    """Some rows call a tool first, all answer at random, and no row waits for another."""
    envs = gym.make_vec("AgentRec-Amazon-v0", num_envs=rows, task_split="test").unwrapped
    assert isinstance(envs, RecVectorEnv)
    generator = np.random.default_rng(seed)
    envs.reset(seed=seed)
    running, rewards = list(range(rows)), np.zeros(rows)
    while running:
        calls = generator.random(len(running)) < 0.5
        lists = [generator.permutation(20)[:10] + 1 for _ in running]
        envs.send(
            [
                '<tool_call>{"name": "get_user_profile", "arguments": {}}</tool_call>'
                if call
                else f"<answer>{order.tolist()}</answer>"
                for call, order in zip(calls, lists, strict=True)
            ],
            running,
        )
        _, paid, terminated, truncated, _, received = envs.recv()
        rewards[received] += paid
        running = received[~(terminated | truncated)].tolist()
    print(f"mean reward of {rows} rows: {rewards.mean():+.3f}")


if __name__ == "__main__":
    main()
