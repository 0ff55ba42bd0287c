"""Environment steps per second: `RecVectorEnv` beside Gymnasium's `SyncVectorEnv` of our own single environment.

    python benchmarks/speed/env_steps.py [--rows 64] [--episodes 20] [--repeats 7] [--out FILE.json]

Both play the same episodes (same seeds, same actions) in turns within one process, so that a slow moment of the machine
meets both; figures are medians over the repeats with minimum and maximum, ratios are medians of ratios. Time is
processor time of the one core used. The tool called is a cheap one, so what is timed is the environment itself:
parsing, budgets, the tool call's own checks, observations, infos and, in "with resets", the drawing of tasks and
writing of prompts. A profile of what is left follows.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import logging
import os
import platform
import pstats
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from agentrec_env.data.view import View
from agentrec_env.env import RecEnv
from agentrec_env.registration import register_envs
from agentrec_env.tools import tool
from agentrec_env.vector import RecVectorEnv

ENV_ID = "AgentRec-Amazon-v0"
CALL = '<think>First I look at the user.</think><tool_call>{"name": "count_known", "arguments": {}}</tool_call>'
ANSWER = "<answer>\\boxed{[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}</answer>"


@tool(guarded=False)
def count_known(view: View) -> str:
    """Say how many items of the user are known: about the cheapest answer a tool can give."""
    return f"{len(view.known)} items are known."


def episodes(envs: VectorEnv[Any, Any, Any], count: int, calls: int, seed: int) -> tuple[float, float]:
    """Processor seconds in `step` and in `reset` for `count` episodes a row: `calls` tool calls, then an answer."""
    rows = envs.num_envs
    everyone = np.ones(rows, np.bool_)
    stepping = resetting = 0.0
    for episode in range(count):
        start = time.process_time()
        envs.reset(seed=seed + rows * episode, options={"reset_mask": everyone})
        middle = time.process_time()
        for _ in range(calls):
            envs.step((CALL,) * rows)
        terminations = envs.step((ANSWER,) * rows)[2]
        stepping += time.process_time() - middle
        resetting += middle - start
        assert np.asarray(terminations).all()
    return stepping, resetting


def contenders(rows: int) -> dict[str, Callable[[], VectorEnv[Any, Any, Any]]]:
    """What is compared; all on one shared world."""
    kwargs: dict[str, Any] = {"tools": ["count_known"]}
    disabled = AutoresetMode.DISABLED
    return {
        "RecVectorEnv": lambda: RecVectorEnv(rows, **kwargs),
        "SyncVectorEnv, as make_vec gives it": lambda: gym.make_vec(
            ENV_ID, rows, vectorization_mode="sync", vector_kwargs={"autoreset_mode": disabled}, **kwargs
        ),
        "SyncVectorEnv, no wrappers": lambda: SyncVectorEnv([lambda: RecEnv(**kwargs)] * rows, autoreset_mode=disabled),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(rows: int, count: int, calls: int, repeats: int) -> dict[str, Any]:
    """Interleaved timings of all contenders."""
    envs = {name: build() for name, build in contenders(rows).items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in envs}
    for env in envs.values():
        episodes(env, 2, calls, seed=10**6)
    for repeat in range(repeats):
        for name, env in envs.items():
            times[name].append(episodes(env, count, calls, seed=repeat * 10**4))
    steps = rows * count * (calls + 1)
    ours, result = times["RecVectorEnv"], {}
    for name, pairs in times.items():
        result[name] = {
            "steps_per_s": spread([steps / stepping for stepping, _ in pairs]),
            "steps_per_s_with_resets": spread([steps / (a + b) for a, b in pairs]),
            "ratio": spread([a / mine for (a, _), (mine, _) in zip(pairs, ours, strict=True)]),
            "ratio_with_resets": spread([sum(pair) / sum(mine) for pair, mine in zip(pairs, ours, strict=True)]),
        }
    return result


def profile(rows: int, count: int, calls: int, lines: int = 16) -> str:
    """Where the time of `RecVectorEnv` goes, by own time."""
    envs = contenders(rows)["RecVectorEnv"]()
    episodes(envs, 2, calls, seed=0)
    profiler = cProfile.Profile()
    profiler.enable()
    episodes(envs, count, calls, seed=1)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(lines)
    return "\n".join(line for line in text.getvalue().splitlines() if line.strip())


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=20, help="episodes a row in each repeat")
    parser.add_argument("--calls", type=int, default=8, help="tool calls before the answer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    register_envs()

    result = measure(args.rows, args.episodes, args.calls, args.repeats)
    print(
        f"{args.rows} rows, episodes of {args.calls} tool calls and an answer; steps per second of one core, "
        f"median (min-max) of {args.repeats} interleaved repeats\n"
    )
    print(f"{'':38}{'steps/s':>26}{'steps/s with resets':>26}{'time against ours':>22}{'with resets':>20}")
    for name, row in result.items():
        print(
            f"{name:38}"
            + "".join(f"{_cell(c, ',.0f'):>26}" for c in (row["steps_per_s"], row["steps_per_s_with_resets"]))
            + f"{_cell(row['ratio'], '.2f'):>22}{_cell(row['ratio_with_resets'], '.2f'):>20}"
        )
    print("\nWhat is left in RecVectorEnv, by own time:")
    print(profile(args.rows, args.episodes, args.calls))
    if args.out:
        record = {"settings": {k: v for k, v in vars(args).items() if k != "out"}, "results": result}
        record["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version(), "gymnasium": gym.__version__}
        temporary = args.out.with_name(args.out.name + ".tmp")
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(temporary, args.out)


def _cell(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


if __name__ == "__main__":
    main()
