"""Runs made by hand for tests of the viewer: results folders and training folders with episodes of any kind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrec_env.episodes import Asker, Header, write
from agentrec_env.types import Episode, StopReason, ToolCall, Turn

HOSTILE = (
    '</script><script>window.ran = 1</script><img src=x onerror="window.ran = 1">'
    "<svg onload=window.ran=1> &lt;b&gt; {{constructor}} ' \" \\ <!--"
)
TOOLS = ("get_user_profile", "get_item_details", "score_candidates", "search_items")
ADJECTIVES = ("Walnut", "Compact", "Nordic", "Everyday", "Folding", "Alpine", "Studio", "Classic", "Foldable", "Matte")
NOUNS = (
    "desk lamp",
    "trail backpack",
    "espresso cup set",
    "garden hose reel",
    "phone stand",
    "wool blanket",
    "chef's knife",
    "travel adapter",
    "yoga mat",
    "wall clock",
)


def title(item: int) -> str:
    """The name of an item."""
    return f"{ADJECTIVES[item % 10]} {NOUNS[item // 10 % 10]}, series {item}"


def episode(task: int, agent: int, hostile: bool = False) -> Episode:
    """What agent `agent` did on task `task`: the better, the higher its number; some fail."""
    rng = np.random.default_rng([agent, task])
    pool = np.random.default_rng(task).permutation(500)[:20].tolist()
    target = pool[task % 20]
    text = HOSTILE if hostile else ""
    candidates = "\n".join(f"{n}. {title(item)}{text}" for n, item in enumerate(pool, 1))
    prompt = (
        "Rank the candidate items by how likely this user is to choose each of them next.\n\n"
        f"The user's latest items, oldest first:\n- {title(task)}{text} (rated 5 of 5)\n- {title(task + 31)}\n\n"
        f"The 20 candidates:\n{candidates}\n\nTools:\n" + "\n".join(f"- {tool}(): what it knows" for tool in TOOLS)
    )
    stop, error, turns, ranking = StopReason.ANSWERED, None, [], ()
    for number in range(int(rng.integers(0, 4)) if agent else 0):
        tool = TOOLS[int(rng.integers(len(TOOLS)))]
        arguments: dict[str, Any] = {"query": f"what goes with {title(task)}{text}"} if tool == "search_items" else {}
        call = ToolCall(tool, arguments)
        thought = "The user bought two things for a desk lately. " + (
            "Which of the candidates go with them? " * (number + 1)
        )
        asked = json.dumps({"name": tool, "arguments": arguments})
        action = f"<think>{thought}{text}</think>\n<tool_call>{asked}</tool_call>"
        lines = "\n".join(f"{title(int(i))}{text}: {rng.random():.3f}" for i in rng.integers(0, 500, 6 + 10 * number))
        told = f"<observation>{lines}</observation>"
        if rng.random() < 0.1:
            told = "<observation>Error: 'item' must be one of the candidates, 1 to 20.</observation>"
        turns.append(Turn(action, (call,), told, float(rng.exponential(0.4))))
    fate = rng.random()
    if fate < 0.08:
        stop, error = StopReason.INVALID, f"Neither a tool call nor an answer.{text}"
        turns.append(Turn(f"I would rather not say.{text}", (), "", 0.1))
    elif fate < 0.1:
        stop, error = StopReason.AGENT_ERROR, f"ValueError: the model is gone{text}"
    else:
        others = [item for item in rng.permutation(pool).tolist() if item != target][:9]
        place = int(min(rng.geometric(0.12 + 0.1 * agent), 14)) - 1
        ranked = [*others[:place], target, *others[place:]][:10] if place < 10 else others
        ranking = tuple(int(item) for item in ranked)
        numbers = [pool.index(item) + 1 for item in ranking]
        turns.append(
            Turn(f"{'<think>Enough is known.</think>' if agent else ''}<answer>{numbers}</answer>", (), "", 0.05)
        )
    rank = ranking.index(target) + 1 if target in ranking else 0
    ndcg = 1 / math.log2(rank + 1) if rank else 0.0
    reward = ndcg if stop is StopReason.ANSWERED else -1.0
    metrics = {"hit@1": float(rank == 1), "ndcg@10": ndcg, "mrr": 1 / rank if rank else 0.0}
    user = f"A{task:05d}{text}"
    info = {"tokens": 40 * len(turns)} if agent > 1 else {}
    return Episode(
        "test",
        task,
        user,
        None,
        prompt,
        tuple(turns),
        tuple(pool),
        ranking,
        target,
        reward,
        {"ndcg@10": ndcg, "format": reward - ndcg},
        metrics,
        stop,
        error,
        info,
    )


def header(about: Mapping[str, Any], hostile: bool = False, tasks: Sequence[int] = range(200)) -> Header:
    """The header of a file with such episodes."""
    kinds = ("taste", "brand", "crowd", "complement", "style")
    text = HOSTILE if hostile else ""
    return Header(
        about,
        {item: title(item) + text for item in range(500)},
        {task: Asker(1 + task * 7 % 37, kinds[task % 5]) for task in tasks},
    )


def results(
    folder: Path, tasks: int = 60, agents: Sequence[str] = ("popularity", "scripted", "llm:tiny"), hostile: bool = False
) -> Path:
    """A results folder, as run_all.py leaves one."""
    for number, agent in enumerate(agents):
        name = agent + (HOSTILE if hostile else "")
        about = {
            "dataset": "synthetic",
            "track": "pool-20",
            "agent": name,
            "role": "agent" if number else "baseline",
            "seed": 0,
        }
        for block in range(0, tasks, 128):
            numbers = range(block, min(tasks, block + 128))
            path = (
                folder
                / "units"
                / "synthetic"
                / "pool-20"
                / f"row{number}"
                / "seed0"
                / f"episodes-{block // 128:04}.jsonl.gz"
            )
            write(path, [episode(task, number, hostile) for task in numbers], header(about, hostile, numbers))
    return folder


def training(folder: Path, steps: int = 60, every: int = 20, tasks: int = 12) -> Path:
    """The folder of a training run."""
    rng = np.random.default_rng(0)
    lines = []
    for step in range(steps + 1):
        learnt = 1 - math.exp(-step / 20)
        if step % every == 0:
            ndcg = 0.2 + 0.35 * learnt
            lines.append(
                {
                    "step": step,
                    "valid/ndcg@10": ndcg,
                    "valid/ndcg@10/low": ndcg - 0.04,
                    "valid/ndcg@10/high": ndcg + 0.04,
                    "valid/reward": ndcg - 0.1,
                    "valid/calls": 2 + learnt,
                    "valid/tokens": 120.0,
                }
            )
            about = {"run": folder.name, "step": step, "dataset": "synthetic", "protocol": "synthetic, pool of 20"}
            played = [episode(task, step // every) for task in range(tasks)]
            write(folder / "episodes" / f"step-{step:08d}.jsonl.gz", played, header(about))
        if step < steps:
            noise = rng.normal(0, 0.05, 4)
            lines.append(
                {
                    "step": step,
                    "reward": -0.3 + 0.8 * learnt + noise[0],
                    "entropy": 2.2 - 1.4 * learnt + noise[1],
                    "calls": 1.5 + 1.2 * learnt + noise[2],
                    "invalid": max(0.0, 0.4 - 0.4 * learnt + noise[3]),
                    "loss": noise[3],
                    "gradient_norm": 1.2 + noise[1],
                    "tokens": 150.0,
                    "mismatch_kl": 1e-9,
                    "rate": 1.0,
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 60, "rew', "utf-8"
    )
    return folder
