"""Speed of a whole step of multi-turn GRPO: ours beside TRL's GRPOTrainer, and beside ours without shared prefixes.

    python benchmarks/speed/grpo_step.py [--size 1m 3m] [--rounds 5] [--quick] [--out FILE.json]
    python benchmarks/speed/grpo_step.py --device cuda --size 0.6b --dtype bfloat16
    python benchmarks/speed/grpo_step.py --growth [--learners ours "plain rows"] [--out FILE.json]

A step plays 8 groups of 8 conversations (prompts of 1,024 tokens of which about 500 are one system message, three turns
with a tool call whose answers are 200 to 300 tokens, one more turn; 28 tokens a turn), and learns from all of them:

- ours: `agents.llm.engine.Engine`, then `algos.update.Updater` with `algos.listwise_grpo.ListwiseGRPO`;
- plain rows: the same code, but each conversation reads its own prompt in the rollout, and an update computes rows,
  padded to the longest of a micro-batch, with the attention of transformers;
- trl: `GRPOTrainer(environment_factory=…).train()` of one step, from its beginning to the end of the optimizer's step.
  Before the clock starts it tries how many rows an update takes at a time, each number once and none that memory will
  not hold, and goes on with the fastest. What is not tried is another engine for its rollouts, which are by `generate`:
  vLLM (`use_vllm`), which is what TRL has for fast rollouts on GPUs, or the continuous batching of transformers. So a
  ratio of rollouts is against TRL's default and not against the best that TRL can be set up to do.

What is equal: weights, their type, prompts, tool texts, rewards, loss (token mean over the step, clip at 0.2 / 0.28, no
divergence, rewards less their group's mean), AdamW. Tokens are the likeliest ones, so that all write the same: in every
round, every id of every transcript is compared with the script, and the norm of the gradient with ours. Before the
clock starts, all play and learn from two groups in float32, and the run fails where one gradient is not the other.
What is not: TRL reads and writes text with its own templates and parser, and logs the length, reward and entropy that
ours counts too. What flatters ours: as all members of a group write the same first turn, an update computes it once a
group (28 tokens and the header behind them, 3 % of what it would compute otherwise). What does not: rewards differ
within each group; where they are all the same, ours leaves the group out and TRL does not.

Seconds are split where tokens, rewards and advantages are there. Each learner has a process of its own, which gives its
peak of memory, and they take turns; figures are medians of the rounds with minimum and maximum, ratios are medians of
ratios. On a GPU a learner does all its rounds before the next begins.

`--growth` varies one thing at a time: members of a group, tokens of a prompt, size of the model (from the middle of the
first two, and the first size). Beside the seconds stands the least work (`benchmarks.speed.ceilings`): different
tokens, and their arithmetic at the rate of a large matrix product, as the rule of thumb has it (6 x tokens x weights)
and counted with attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch

from algos.memory import STATES, available
from benchmarks.speed.learners import LEARNERS, OPTIMIZATION, Setup
from benchmarks.speed.steppers import OURS, PARTS, ROWS, TRL, Agreement, Layouts, Stepper
from benchmarks.speed.workers import Memory, Worker, cell, machine, ratios, spread, take_turns, write_figures
from benchmarks.speed.workload import SHAPES, Plan

GRADIENT_TOLERANCE = 1e-4
"""Length of the difference of two gradients in float32, over the length of one."""
NORM_TOLERANCE: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 0.1}
STEP: Mapping[str, Any] = {"size": ["1m"], "rounds": 5, "members": [8], "prompt": [1024], "learners": list(LEARNERS)}
GROWTH: Mapping[str, Any] = {
    "size": ["1m", "3m", "8m"],
    "rounds": 3,
    "members": [4, 8, 16],
    "prompt": [512, 1024, 2048],
    "learners": [OURS],
}
"""What is done where the command line does not say."""


@dataclass(frozen=True)
class Result:
    """Of one setup."""

    setup: Setup
    gradient_difference: Mapping[str, float]
    """By learner, from ours, over the length of ours."""
    times: Mapping[str, Mapping[str, Sequence[float]]]
    """By `PARTS` and learner, round by round; "processor" is seconds of all cores."""
    norm_difference: float
    """Largest difference of the norm of a gradient from ours in the same round, over ours."""
    memory: Mapping[str, Memory]
    work: Mapping[str, Any]
    """`Stepper` has it."""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        table: dict[str, dict[str, Any]] = {name: {"memory": asdict(memory)} for name, memory in self.memory.items()}
        for part, seconds in self.times.items():
            for name, values in seconds.items():
                table[name][part] = {"seconds": spread(values), "rounds": list(values)}
            for name, ratio in ratios(seconds, OURS).items():
                table[name][part]["times_ours"] = ratio
        return {
            "setup": asdict(self.setup),
            "parameters": SHAPES[self.setup.size].parameters,
            "gradient_difference": dict(self.gradient_difference),
            "norm_difference": self.norm_difference,
            "learners": table,
            "work": dict(self.work),
            "reached": self.reached(),
        }

    def reached(self) -> dict[str, float]:
        """Shares of our seconds that the least work takes at the ceilings."""
        known, update, rollout = self.work["ceilings"], self.work["update"], self.work["rollout"]
        least = rollout["prefill_flops"] / known["flops_per_s"] + rollout["decode_bytes"] / known["bytes_per_s"]
        return {
            "rollout": least / self.seconds("rollout"),
            "update_rule": update["rule_flops"] / known["flops_per_s"] / self.seconds("update"),
            "update": update["flops"] / known["flops_per_s"] / self.seconds("update"),
        }

    def seconds(self, part: str) -> float:
        """Our median."""
        return spread(self.times[part][OURS])["median"]

    def __str__(self) -> str:
        setup, plan, update = self.setup, self.setup.plan, self.work["update"]
        agree = "".join(
            f"; gradient of {name} {value:.1e} from ours" for name, value in self.gradient_difference.items()
        )
        lines = [
            f"{setup.size}, {setup.dtype}: {SHAPES[setup.size].parameters:,} parameters, {plan.groups} groups of"
            f" {plan.members}, prompts of {plan.prompt:,} tokens{agree}",
            f"  {'':12}{'rollout, s':>20}{'update, s':>20}{'in all, s':>20}{'in all, times ours':>22}"
            f"{'rollout':>9}{'update':>9}{'processor':>11}{'peak MB':>9}{'before':>8}",
        ]
        for name, memory in self.memory.items():
            line = f"  {name:12}" + "".join(f"{cell(spread(self.times[part][name])):>20}" for part in PARTS[:3])
            if name != OURS:
                times = {part: ratios(self.times[part], OURS)[name] for part in PARTS}
                line += f"{cell(times['all']):>22}{times['rollout']['median']:9.2f}{times['update']['median']:9.2f}"
                line += f"{times['processor']['median']:11.2f}"
            else:
                line += " " * 51
            lines.append(
                f"{line}{memory.peak_mb:9,.0f}{memory.before_mb:8,.0f}"
                + (f"  GPU {memory.device_mb:,.0f}" if memory.device_mb else "")
            )
        reached = self.reached()
        lines.append(
            f"  ours reads {self.work['computed_tokens']:,} tokens in an update; {update['tokens']:,} of"
            f" {update['tokens_unshared']:,} are different. Share of a large matrix product's rate: update"
            f" {reached['update']:.0%} (6 x tokens x weights: {reached['update_rule']:.0%}), rollout"
            f" {reached['rollout']:.0%} of that rate and a large copy's"
        )
        return "\n".join(lines)


def gradient_differences(setup: Setup, names: Sequence[str], threads: int) -> dict[str, float]:
    """By learner other than ours: how far its gradient from two groups is from ours, in float32.

    Raises:
        SystemExit: Too far.
    """
    small = replace(setup, dtype="float32", plan=replace(setup.plan, groups=min(2, setup.plan.groups)))
    with Worker(Agreement, (small,), threads) as worker:
        difference = {name: float(worker.work(name)) for name in names}
    del difference[OURS]
    if any(not value <= GRADIENT_TOLERANCE for value in difference.values()):
        raise SystemExit(f"gradients differ from ours by {difference} of its length, over {GRADIENT_TOLERANCE}")
    return difference


def compare(setup: Setup, names: Sequence[str], rounds: int, threads: int) -> Result:
    """Check that all learn the same, then take turns."""
    difference = gradient_differences(setup, names, threads) if len(names) > 1 else {}
    times: dict[str, dict[str, list[float]]] = {part: {name: [] for name in names} for part in (*PARTS, "norm")}
    memory: dict[str, Memory] = {}
    work: dict[str, Any] = {}

    def play(name: str, worker: Worker) -> None:
        for part, value in worker.work("step").items():
            times[part][name].append(value)

    def finish(name: str, worker: Worker) -> None:
        memory[name] = worker.memory()
        if name == OURS:
            work.update(worker.work("work"))

    makers = {name: partial(Worker, Stepper, (name, setup), threads) for name in names}
    take_turns(makers, rounds, setup.device == "cpu", lambda worker: worker.work("step"), play, finish)
    norms = times.pop("norm")
    apart = max([abs(ratio[end] - 1) for ratio in ratios(norms, OURS).values() for end in ("min", "max")], default=0.0)
    if not apart <= NORM_TOLERANCE[setup.dtype]:
        raise SystemExit(f"the norms of the gradients differ by {apart:.1e} of ours: {norms}")
    return Result(setup, difference, times, apart, memory, work)


class FewGroups(Layouts):
    """TRL with different numbers of rows at a time; on a CPU with two groups, or as many as such a number needs."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._plan = setup.plan

    def __call__(self, rows: int) -> float:
        """Seconds of an update of all groups, by those of the groups that were updated."""
        every, members = self._plan.groups, self._plan.members
        least = every if self._setup.device != "cpu" else min(2, every)
        groups = next(groups for groups in range(least, every + 1) if groups * members % rows == 0)
        self._setup = replace(self._setup, plan=replace(self._plan, groups=groups))
        return super().__call__(rows) * every / groups


def fastest_layout(setup: Setup, threads: int) -> int:
    """How many rows at a time TRL is fastest with."""
    allowed = [rows for rows in ROWS if setup.plan.rows % rows == 0] or [1]
    held = [rows for rows in allowed if holds(setup, rows)] or allowed[:1]
    with Worker(FewGroups, (setup,), threads) as worker:
        seconds = {rows: worker.work(rows) for rows in held}
    best = min(seconds, key=seconds.__getitem__)
    tried = ", ".join(f"{rows}: {value:.2f} s" for rows, value in seconds.items())
    left = "".join(f", {rows}: left out for memory" for rows in allowed if rows not in held)
    print(f"{setup.size}: TRL's update by rows at a time: {tried}{left}; goes on with {best}", flush=True)
    return best


def holds(setup: Setup, rows: int) -> bool:
    """Whether memory should hold so many rows at a time; a GPU says so itself, on a CPU the process would be killed."""
    free = available(torch.device(setup.device))
    if setup.device != "cpu" or free is None:
        return True
    shape = SHAPES[setup.size]
    states = shape.layers * (STATES * shape.hidden + 3 * shape.intermediate) + 3 * shape.vocabulary
    return 4.0 * rows * setup.plan.longest * states < free * 2**30


def one_at_a_time(base: tuple[Any, ...], *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Points that differ from `base` in one coordinate, which is on its axis, and `base` where it is on an axis."""
    points = [(*base[:n], value, *base[n + 1 :]) for n, values in enumerate(axes) for value in values]
    return list(dict.fromkeys(points))


def describe_growth(results: Sequence[Result]) -> str:
    """A line for each result, and what the seconds went with."""
    others = [name for name in results[0].memory if name != OURS]
    lines = [
        f"{'size':>6}{'members':>9}{'prompt':>8}{'rollout, s':>12}{'of ceilings':>13}{'update, s':>11}{'different':>11}"
        f"{'of tokens':>11}{'6 t w':>8}{'counted':>9}" + "".join(f"{name + ', all':>18}" for name in others)
    ]
    for result in results:
        plan, update, reached = result.setup.plan, result.work["update"], result.reached()
        lines.append(
            f"{result.setup.size:>6}{plan.members:9}{plan.prompt:8,}{result.seconds('rollout'):12.2f}"
            f"{reached['rollout']:13.0%}{result.seconds('update'):11.2f}{update['tokens']:11,}"
            f"{update['tokens_unshared']:11,}{reached['update_rule']:8.0%}{reached['update']:9.0%}"
            + "".join(f"{ratios(result.times['all'], OURS)[name]['median']:12.2f} x ours" for name in others)
        )
    for part, quantities in variation(results).items():
        known = ", ".join(f"{name} {value:.2f}" for name, value in quantities.items())
        lines.append(f"largest over smallest seconds of {part} per unit of: {known}")
    return "\n".join(lines)


def variation(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """By part and quantity: largest over smallest of our seconds per unit; 1 is exact proportion."""
    quantities: dict[str, dict[str, list[float]]] = {
        "rollout": {
            "sampled tokens": [result.work["rollout"]["decode_tokens"] for result in results],
            "different tokens read": [result.work["rollout"]["prefill_tokens"] for result in results],
            "seconds at the ceilings": [result.reached()["rollout"] * result.seconds("rollout") for result in results],
        },
        "update": {
            "tokens": [result.work["update"]["tokens_unshared"] for result in results],
            "different tokens": [result.work["update"]["tokens"] for result in results],
            "6 x different tokens x weights": [result.work["update"]["rule_flops"] for result in results],
            "counted arithmetic": [result.work["update"]["flops"] for result in results],
        },
    }
    found: dict[str, dict[str, float]] = {}
    for part, table in quantities.items():
        seconds = [result.seconds(part) for result in results]
        for name, amounts in table.items():
            each = [second / amount for second, amount in zip(seconds, amounts, strict=True)]
            found.setdefault(part, {})[name] = max(each) / min(each)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(SHAPES), help="default: 1m; with --growth 1m 3m 8m")
    parser.add_argument("--rounds", type=int, help="default: 5; with --growth 3")
    parser.add_argument("--groups", type=int, default=Plan.groups)
    parser.add_argument("--members", nargs="+", type=int, help="of a group; default: 8; with --growth 4 8 16")
    parser.add_argument("--prompt", nargs="+", type=int, help="tokens; default: 1024; with --growth 512 1024 2048")
    parser.add_argument("--shared", type=int, help="tokens of the system message, about; default: half of the prompt")
    parser.add_argument("--observation", type=int, default=Plan.observation, help="tokens of a tool's answer, mean")
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), help="default: all; with --growth ours")
    parser.add_argument("--micro-tokens", type=int, default=Setup.micro_tokens, help="that ours computes at a time")
    parser.add_argument("--trl-rows", type=int, help="that TRL computes at a time; default: the fastest number")
    parser.add_argument("--dtype", choices=list(NORM_TOLERANCE), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", action="store_true", help="one thing changed at a time")
    parser.add_argument("--quick", action="store_true", help="two groups, one round: to see that all works")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    for name, value in (GROWTH if args.growth else STEP).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    names = [OURS, *(name for name in args.learners if name != OURS)]
    if TRL in names and not (find_spec("trl") and find_spec("datasets")):
        names.remove(TRL)
        print("trl is left out: pip install 'trl==1.16.*' datasets")
    if args.quick:
        args.groups, args.rounds = min(args.groups, 2), 1
    axes = (args.members, args.prompt, args.size)
    base = (args.members[len(args.members) // 2], args.prompt[len(args.prompt) // 2], args.size[0])
    points = one_at_a_time(base, *axes) if args.growth else list(product(*axes))
    where = machine(["torch", "transformers", "trl"])
    results = []
    for members, prompt, size in points:
        plan = Plan(args.groups, members, prompt, args.shared or prompt // 2, args.observation)
        setup = Setup(size, plan, args.dtype, args.device, args.seed, micro_tokens=args.micro_tokens)
        if TRL in names:
            setup = replace(setup, trl_rows=args.trl_rows or fastest_layout(setup, args.threads))
        results.append(compare(setup, names, args.rounds, args.threads))
        print(results[-1], flush=True)
    if args.growth:
        print(describe_growth(results))
    if args.out:
        record = {
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "optimization": asdict(OPTIMIZATION),
            "interleaved": args.device == "cpu",
            "machine": where,
            "results": [result.record() for result in results],
            **({"largest_over_smallest": variation(results)} if args.growth else {}),
        }
        write_figures(record, args.out)


if __name__ == "__main__":
    main()
