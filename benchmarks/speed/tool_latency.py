"""How long each tool takes, argument check and output handling included: p50 and p99 on the tasks of one dataset.

Indexes are built before the clock starts, and the time of building them is told apart. Times are of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agentrec_env.data.load import load
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.tools import TOOLS, Tool, call_tool
from agentrec_env.tools.signals import SIGNALS, matrix

ROUNDS = 3
"""Each call is made this often; the fastest counts, which leaves out what other work on the machine adds."""


def arguments(tool: Tool, view: View, generator: np.random.Generator) -> dict[str, Any]:
    """Arguments as a model gives them: a title from the history or the pool, or a few of its words."""
    values = {}
    for name in tool.schema["function"]["parameters"]["properties"]:
        at_hand = np.append(view.history, view.candidates)
        item = int(generator.choice(at_hand))
        title = view.items.titles[item] or view.items.ids[item]
        values[name] = " ".join(title.split()[:4]) if name == "query" else title
    return values


def measure(world: World, tasks: int, seed: int) -> dict[str, dict[str, float]]:
    """Seconds by tool: "build" (the first call, with its indexes); of the others "p50", "p99" on the clock and
    "cpu_p50", "cpu_p99" on the processor, which are the same on a machine with nothing else to do."""
    generator = np.random.default_rng(seed)
    count = world.num_tasks("test")
    chosen = generator.permutation(count)[: min(tasks, count)]
    views = [world.view(world.task("test", int(index))) for index in chosen]
    report: dict[str, dict[str, float]] = {}
    for name in TOOLS.names():
        tool = TOOLS.get(name)
        report[name] = _timed([partial(call_tool, tool, view, arguments(tool, view, generator)) for view in views])
    everything = [partial(matrix, view, _items(view)) for view in views]
    report[f"(all {len(SIGNALS.names())} signals)"] = _timed(everything)
    return report


def _timed(calls: Sequence[Callable[[], object]]) -> dict[str, float]:
    started = time.perf_counter()
    calls[0]()
    build = time.perf_counter() - started
    wall, cpu = np.full(len(calls), np.inf), np.full(len(calls), np.inf)
    for _ in range(ROUNDS):
        for place, call in enumerate(calls):
            started, used = time.perf_counter(), time.thread_time()
            call()
            cpu[place] = min(cpu[place], time.thread_time() - used)
            wall[place] = min(wall[place], time.perf_counter() - started)
    parts = {"p50": (wall, 50), "p99": (wall, 99), "cpu_p50": (cpu, 50), "cpu_p99": (cpu, 99)}
    return {"build": build} | {name: float(np.percentile(times, share)) for name, (times, share) in parts.items()}


def _items(view: View) -> np.ndarray[Any, np.dtype[np.int64]]:
    return view.candidates if len(view.candidates) else np.arange(len(view.items))


def main() -> None:
    """Print a table; with --out, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="synthetic", help="a dataset name, folder or file")
    parser.add_argument("--split", help="temporal or leave_one_out; by default temporal where there are times")
    parser.add_argument("--candidates", default="20", help='pool size, or "catalog"')
    parser.add_argument("--tasks", type=int, default=300, help="tasks that each tool is called on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    dataset = load(options.dataset)
    split = options.split or ("leave_one_out" if dataset.time is None else "temporal")
    candidates = options.candidates if options.candidates == "catalog" else int(options.candidates)
    world = World(dataset, split, candidates)
    report = measure(world, options.tasks, options.seed)
    print(f"{world.protocol}\n{dataset.num_users} users, {dataset.num_items} items, {len(dataset)} interactions")
    print(f"{'':<24}{'clock, ms':>16}{'processor, ms':>18}")
    print(f"{'tool':<22}{'p50':>9}{'p99':>9}{'p50':>9}{'p99':>9}{'first call, s':>16}")
    for name, row in report.items():
        times = "".join(f"{row[part] * 1e3:9.3f}" for part in ("p50", "p99", "cpu_p50", "cpu_p99"))
        print(f"{name:<22}{times}{row['build']:16.3f}")
    if options.out is not None:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "processor": platform.machine()}
        record = {"protocol": world.protocol, "machine": machine, "seconds": report}
        with tempfile.NamedTemporaryFile("w", dir=options.out.parent, delete=False, suffix=".part") as file:
            json.dump(record, file, indent=2)
        os.replace(file.name, options.out)


if __name__ == "__main__":
    main()
