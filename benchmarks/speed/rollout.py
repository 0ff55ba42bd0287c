"""Speed of multi-turn rollouts: our engine beside Hugging Face `generate` and TRL's GRPOTrainer.

    python benchmarks/speed/rollout.py [--size 1m 3m] [--rounds 5] [--quick] [--out FILE.json]
    python benchmarks/speed/rollout.py --device cuda --size 0.6b --dtype bfloat16 --groups 32

Every contender plays the same rollout with the same random weights: 8 groups of 8 conversations, prompts of 1,024
tokens of which about 500 are one system message, three turns with a tool call, whose answers are 200 to 300 tokens, and
one more turn. Each turn samples 28 tokens at temperature 1. The contenders are

- ours: `agents.llm.engine.Engine`, its taking over of changed weights included;
- generate: `model.generate` on the whole conversations, padded on the left, anew each turn;
- generate-cached: `model.generate` with its DynamicCache passed on from turn to turn;
- trl: `GRPOTrainer(environment_factory=...)` on `generate`, from the reset of its environments to the last completion;
  its padding, log-probabilities and rewards are not in the time. Left out where TRL is not installed.

What is equal: weights, prompts, tool texts, and hence every id of every transcript, which is checked in every round.
What is not: ours gives the log-probability of each sampled id as well, the others none; TRL reads and writes text
with its own templates and parser where the others use ours. Before the clock starts, the contenders play greedily with
a model that is unsure of its next token, ids are compared again, and our log-probabilities with those of the model's
own forward pass on each whole transcript, in float32.

Each contender has a process of its own, which gives its peak of memory, and they take turns; figures are medians of the
rounds with minimum and maximum, ratios are medians of ratios. On a GPU a contender plays all its rounds before the next
begins, as they would not fit beside one another. The seconds of one more of our rollouts are split into reading and
decoding and set against what the device was measured to do at best.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.llm.transcript import Transcript
from benchmarks.speed import ceilings
from benchmarks.speed.contenders import CONTENDERS, Ours, Setup
from benchmarks.speed.workers import Memory, Worker, cell, machine, ratios, spread, take_turns, write_figures
from benchmarks.speed.workload import SCRIPT, SHAPES, Plan

OURS = "ours"
TOLERANCE = 1e-3
"""Of log-probabilities in float32."""


class Player:
    """A contender in its own process, asked by word.

    Args:
        name: Of `CONTENDERS`.
        setup: What it is made with.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self._contender = CONTENDERS[name](setup)
        self._expected = self._contender.workload.transcripts()
        self._setup = setup

    def __call__(self, word: str) -> Any:
        """What was asked for.

        Args:
            word: "play": seconds and processor seconds of a rollout; "warm": of one of one group; "agree": the largest
                difference of log-probabilities, None where there are none; "split": seconds by part, ceilings, and what
                was reached.
        """
        if word == "split":
            return self._split()
        rows = self._setup.plan.members if word == "warm" else self._setup.plan.rows
        used = time.process_time()
        played = self._contender.play(rows)
        used = time.process_time() - used
        wrong = sum(a != b for a, b in zip(played.transcripts, self._expected[:rows], strict=True))
        if wrong:
            raise RuntimeError(f"{wrong} of {rows} transcripts are not what the script says")
        if word != "agree":
            return played.seconds, used
        return self._difference(played.records) if played.records else None

    def _difference(self, records: Sequence[Transcript]) -> float:
        worst = 0.0
        for record in records:
            ids = torch.tensor(record.ids, device=self._setup.device)
            places = torch.from_numpy(np.flatnonzero(record.mask)).to(ids.device)
            with torch.inference_mode():
                logits = self._contender.model(ids[None]).logits[0].float()
            whole = logits.log_softmax(-1)[places - 1, ids[places]]
            worst = max(worst, float(np.abs(whole.cpu().numpy() - record.logprobs[record.mask]).max()))
        return worst

    def _split(self) -> dict[str, Any]:
        if not isinstance(self._contender, Ours):
            raise TypeError("only our engine is taken apart")
        dtype = getattr(torch, self._setup.dtype)
        parts = self._contender.split()
        known = ceilings.measure(self._setup.device, dtype)
        work = ceilings.least(SHAPES[self._setup.size], self._contender.workload, dtype.itemsize)
        shares = ceilings.shares(work, known, parts["prefill"], parts["decode"])
        return {"seconds": parts, "ceilings": asdict(known), "least_work": asdict(work), "reached": shares}


class Agreement:
    """Contenders that play in one process, one after the other, to see that they do the same."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def __call__(self, name: str) -> Any:
        """The largest difference of log-probabilities; None where the contender has none."""
        difference = Player(name, self._setup)("agree")
        gc.collect()  # the next contender wants the GPU's memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return difference


@dataclass(frozen=True)
class Result:
    """Of one size."""

    size: str
    parameters: int
    rows: int
    sampled: int
    """Tokens of a rollout."""
    logprob_difference: float
    """Largest, between our engine and the model's own forward pass."""
    seconds: Mapping[str, Sequence[float]]
    """By contender, round by round."""
    processor: Mapping[str, Sequence[float]]
    """Seconds of all cores; they depend less on what else the machine does."""
    memory: Mapping[str, Memory]
    split: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        table = {name: {"seconds": spread(values), "rounds": list(values)} for name, values in self.seconds.items()}
        for key, clock in (("times_ours", self.seconds), ("processor_times_ours", self.processor)):
            for name, ratio in ratios(clock, OURS).items():
                table[name][key] = ratio
        for name, values in self.seconds.items():
            table[name]["sampled_tokens_per_s"] = spread(self.sampled / value for value in values)
            table[name]["processor_seconds"] = spread(self.processor[name])
            table[name]["memory"] = asdict(self.memory[name])
        return {
            "size": self.size,
            "parameters": self.parameters,
            "rows": self.rows,
            "sampled_tokens": self.sampled,
            "logprob_difference": self.logprob_difference,
            "contenders": table,
            "ours_split": dict(self.split),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.size}: {self.parameters:,} parameters, {self.rows} conversations, {self.sampled:,} sampled tokens; "
            f"log-probabilities to within {self.logprob_difference:.1e}",
            f"  {'':26}{'seconds':>26}{'times ours':>22}{'processor':>12}{'tokens/s':>12}{'peak MB':>10}{'before':>9}",
        ]
        known, processor = ratios(self.seconds, OURS), ratios(self.processor, OURS)
        for name, values in self.seconds.items():
            ratio = cell(known[name]) if name in known else ""
            used = f"{processor[name]['median']:.2f}" if name in known else ""
            speed = spread(self.sampled / value for value in values)["median"]
            memory = self.memory[name]
            lines.append(
                f"  {name:26}{cell(spread(values)):>26}{ratio:>22}{used:>12}{speed:12,.0f}{memory.peak_mb:10,.0f}"
                f"{memory.before_mb:9,.0f}" + (f"  GPU {memory.device_mb:,.0f}" if memory.device_mb else "")
            )
        seconds, reached = self.split["seconds"], self.split["reached"]
        lines.append("  ours: " + ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items()))
        lines.append(
            f"  reading {reached['prefill_tokens_per_s']:,.0f} tokens/s, {reached['prefill_flops_per_s'] / 1e9:,.1f}"
            f" GFLOP/s: {reached['prefill_share_of_ceiling']:.0%} of a large matrix product's"
        )
        lines.append(
            f"  decoding {reached['decode_tokens_per_s']:,.0f} tokens/s, {reached['decode_bytes_per_s'] / 1e9:,.2f}"
            f" GB/s of what must be fetched: {reached['decode_share_of_ceiling']:.0%} of a large copy's"
        )
        return "\n".join(lines)


def compare(setup: Setup, names: Sequence[str], rounds: int, threads: int) -> Result:
    """Check that all do the same, then take turns."""
    unsure = replace(setup, greedy=True, dtype="float32", plan=replace(setup.plan, groups=min(2, setup.plan.groups)))
    difference = 0.0
    with Worker(Agreement, (unsure,), threads) as worker:
        for name in names:
            difference = worker.work(name) or difference
    if difference > TOLERANCE:
        raise SystemExit(f"our log-probabilities differ from the model's by {difference:.2e}, over {TOLERANCE}")

    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, Memory] = {}
    split: dict[str, Any] = {}

    def play(name: str, worker: Worker) -> None:
        taken, used = worker.work("play")
        seconds[name].append(taken)
        processor[name].append(used)

    def finish(name: str, worker: Worker) -> None:
        memory[name] = worker.memory()
        if name == OURS:
            split.update(worker.work("split"))

    makers = {name: partial(Worker, Player, (name, setup), threads) for name in names}
    together = setup.device == "cpu"
    warm = "warm" if together else "play"
    take_turns(makers, rounds, together, lambda worker: worker.work(warm), play, finish)
    shape, plan = SHAPES[setup.size], setup.plan
    return Result(
        size=setup.size,
        parameters=shape.parameters,
        rows=plan.rows,
        sampled=plan.rows * (plan.turns + 1) * len(SCRIPT),
        logprob_difference=difference,
        seconds=seconds,
        processor=processor,
        memory=memory,
        split=split,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(SHAPES), default=["1m", "3m"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=Plan.groups)
    parser.add_argument("--members", type=int, default=Plan.members, help="conversations of a group")
    parser.add_argument("--prompt", type=int, default=Plan.prompt, help="tokens of a prompt")
    parser.add_argument("--shared", type=int, default=Plan.shared, help="tokens of the system message, about")
    parser.add_argument("--observation", type=int, default=Plan.observation, help="tokens of a tool's answer, mean")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--peer-rows", type=int, help="rows that generate gets at once, where memory is short")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two groups, one round: to see that all works")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    names = [OURS, *(name for name in args.contenders if name != OURS)]
    if "trl" in names and not (find_spec("trl") and find_spec("datasets")):
        names.remove("trl")
        print("trl is left out: pip install 'trl==1.16.*' datasets")
    if args.quick:
        args.groups, args.rounds = min(args.groups, 2), 1
    plan = Plan(args.groups, args.members, args.prompt, args.shared, args.observation)
    where = machine(["torch", "transformers", "trl"])
    results = []
    for size in args.size:
        setup = Setup(size, plan, args.dtype, args.device, args.seed, args.peer_rows)
        result = compare(setup, names, args.rounds, args.threads)
        print(result, flush=True)
        results.append(result.record())
        if args.out:  # after each, as the next may take long
            record = {
                "settings": {**{k: v for k, v in vars(args).items() if k != "out"}, "contenders": names},
                "plan": asdict(plan),
                "interleaved": args.device == "cpu",
                "machine": where,
                "results": results,
            }
            write_figures(record, args.out)


if __name__ == "__main__":
    main()
