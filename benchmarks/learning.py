"""Does it learn? List-wise GRPO and PPO from one warm start, at equal episodes, several seeds, judged on test tasks.

    python benchmarks/learning.py --warm runs/warm/model --out results/learning [--dataset FOLDER --split leave_one_out]

Each run trains on training tasks, is judged every few steps on the same valid tasks, and its best policy there plays
the test tasks once, greedily, as the warm start does. Runs go on where they were stopped. The folder gets results.json
(settings, curves over sampled tokens, test results by task), learning.md and learning.svg (mean of the seeds, with a
band from the lowest to the highest).

What is equal between the algorithms: the warm start, episodes a step (GRPO: G of each task; PPO: one of each, so G
times the tasks, unless --ppo says otherwise), steps, pools, sampling, the optimizer but for its rate. Tokens differ as
far as the policies come to write more or less; they are counted, and the curves are over them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agentrec_env.statistics import Comparison, Interval, PairedBootstrap, compare, holm
from benchmarks.records import write_text
from benchmarks.speed.workers import machine
from benchmarks.suite import files_digest

TITLES = {"listwise_grpo": "list-wise GRPO", "ppo": "PPO"}
WARM = "warm start"
METRICS = ("ndcg@10", "hit@1", "answered", "calls", "tokens")


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    dataset: str
    split: str
    warm: str
    """A source for `Policy.from_pretrained`."""
    env: Mapping[str, Any]
    """Other arguments of the environment."""
    seeds: tuple[int, ...]
    steps: int
    groups: int
    group_size: int
    rates: Mapping[str, float]
    """Learning rate by algorithm."""
    grpo: Mapping[str, Any]
    """Further settings of the algorithms."""
    ppo: Mapping[str, Any]
    value_lr: float | None
    """Of PPO's value head; None: as the other weights."""
    every: int
    """Steps between evaluations."""
    valid: int
    """Tasks of an evaluation."""
    tasks: int
    """Test tasks."""
    out: Path

    def folder(self, algorithm: str, seed: int) -> Path:
        """Of a run."""
        return self.out / f"{algorithm}-seed{seed}"

    def claim(self) -> None:
        """Hold the folder to these settings, to which only seeds may be added.

        Raises:
            ValueError: It holds runs with others.
        """
        warm = Path(self.warm)
        settings = {name: value for name, value in asdict(self).items() if name not in ("seeds", "out")}
        settings["warm"] = files_digest(warm) if warm.is_dir() else self.warm
        path = self.out / "plan.json"
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
        if different := [f"{name}: {held.get(name)!r}" for name in settings if held.get(name) != settings[name]]:
            raise ValueError(f"{self.out} holds runs with other settings ({'; '.join(different)}); give another --out")
        write_text(path, json.dumps(settings, indent=1) + "\n")


@dataclass(frozen=True)
class Job:
    """A run, or the warm start."""

    plan: Plan
    algorithm: str | None = None
    seed: int = 0

    @property
    def results(self) -> Path:
        """Test results by task."""
        folder = self.plan.out / "warm" if self.algorithm is None else self.plan.folder(self.algorithm, self.seed)
        return folder / "test.json"


def work(job: Job) -> Job:
    """Train where there is something to train, and play the test tasks; nothing where that is done."""
    import torch

    torch.set_num_threads(1)
    if job.results.exists():
        return job
    source = job.plan.warm
    if job.algorithm is not None:
        source = str(_train(job) / "best")
    write_text(job.results, json.dumps(_test(job.plan, source)) + "\n")
    return job


def _train(job: Job) -> Path:
    from agentrec_env.scenario import Config
    from algos.listwise_grpo import ListwiseGRPO
    from algos.ppo import PPO
    from algos.training import Training

    plan, name = job.plan, job.algorithm
    assert name is not None
    folder = plan.folder(name, job.seed)
    algorithm = (
        ListwiseGRPO(groups=plan.groups, group_size=plan.group_size, **plan.grpo)
        if name == "listwise_grpo"
        else PPO(**{"groups": plan.groups * plan.group_size, **plan.ppo})
    )
    training = Training(
        algorithm,
        out=folder,
        resume=(folder / "config.json").exists(),
        model=plan.warm,
        value_lr=plan.value_lr if name == "ppo" else None,
        steps=plan.steps,
        evaluate_every=plan.every,
        evaluate_tasks=plan.valid,
        seed=job.seed,
        threads=1,
        env=Config.from_kwargs({"dataset": plan.dataset, "split": plan.split, **plan.env}),
    )
    training = replace(training, optimization=replace(training.optimization, lr=plan.rates[name]))
    begin = time.perf_counter()
    try:
        _learn(training)
    finally:
        with (folder / "seconds.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.perf_counter() - begin:.1f}\n")
    return folder


def _learn(training: Any) -> None:
    from algos.learner import Learner

    learner = Learner(training)
    learner.train()
    if learner.step < training.steps:
        raise KeyboardInterrupt(f"stopped after step {learner.step}; the same command goes on")


def _test(plan: Plan, source: str) -> dict[str, list[float]]:
    """Test results of a policy, by `METRICS`, in the order of the tasks."""
    from agentrec_env.types import StopReason
    from agentrec_env.vector import RecVectorEnv
    from agents.llm.agent import LLMAgent
    from agents.play import play

    envs = RecVectorEnv(64, dataset=plan.dataset, split=plan.split, task_split="test", **plan.env)
    tasks = np.random.default_rng([0, 1]).permutation(envs.num_tasks)[: plan.tasks].tolist()
    episodes = play(envs, LLMAgent(source, temperature=0.0), tasks, 0)
    rows = [
        (
            episode.metrics.get("ndcg@10", 0.0),
            episode.metrics.get("hit@1", 0.0),
            float(episode.stop is StopReason.ANSWERED),
            float(episode.calls),
            float(episode.info.get("tokens", 0)),
        )
        for episode in episodes
    ]
    return {name: [row[place] for row in rows] for place, name in enumerate(METRICS)}


@dataclass(frozen=True)
class Curve:
    """Of an algorithm, over evaluations."""

    steps: tuple[int, ...]
    tokens: tuple[float, ...]
    """Sampled until then, mean of the seeds."""
    values: tuple[tuple[float, ...], ...]
    """[seeds, evaluations]: N@10 on valid tasks."""

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Curve:
        """Read the runs' logs."""
        steps: list[int] = []
        tokens, values = [], []
        for folder in folders:
            judged: dict[int, float] = {}
            sampled: dict[int, float] = {}
            for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                if "valid/ndcg@10" in record:
                    judged[record["step"]] = record["valid/ndcg@10"]
                if "sampled_tokens" in record:
                    sampled[record["step"]] = record["sampled_tokens"]
            steps = sorted(judged)
            tokens.append([sum(n for step, n in sampled.items() if step < until) for until in steps])
            values.append(tuple(judged[step] for step in steps))
        return cls(tuple(steps), tuple(np.mean(tokens, axis=0).tolist()), tuple(values))


@dataclass(frozen=True)
class Outcome:
    """All that was found."""

    plan: Plan
    protocol: str
    rows: Mapping[str, Mapping[str, Interval]]
    """By row and metric."""
    comparisons: Mapping[str, tuple[Comparison, float]]
    """Differences of N@10, and their p after Holm's correction."""
    curves: Mapping[str, Curve]
    seconds: Mapping[str, Sequence[float]]
    """Of training, by seed."""
    by_seed: Mapping[str, Sequence[float]]
    """N@10."""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "command": self.command,
            "protocol": self.protocol,
            "plan": {name: value for name, value in asdict(self.plan).items() if name not in ("out", "warm")}
            | {"dataset": Path(self.plan.dataset).name},
            "rows": {row: {name: asdict(each) for name, each in found.items()} for row, found in self.rows.items()},
            "by_seed": {row: list(values) for row, values in self.by_seed.items()},
            "comparisons": {
                name: asdict(comparison) | {"p_holm": p} for name, (comparison, p) in self.comparisons.items()
            },
            "curves": {name: asdict(curve) for name, curve in self.curves.items()},
            "seconds": {name: list(values) for name, values in self.seconds.items()},
            "machine": machine(["torch", "transformers"]),
        }

    @property
    def command(self) -> str:
        """What makes these figures again, given the warm start."""
        plan = self.plan
        words = ["python benchmarks/learning.py --warm WARM --out OUT"]
        words += [f"--dataset {Path(plan.dataset).name} --split {plan.split}"]
        words += [f"--steps {plan.steps} --groups {plan.groups} --group-size {plan.group_size}"]
        words += [f"--lr {' '.join(f'{name}={rate:g}' for name, rate in plan.rates.items())}"]
        words += [f"--seeds {' '.join(map(str, plan.seeds))} --every {plan.every} --valid {plan.valid}"]
        words += [f"--tasks {plan.tasks}"]
        words += [f"--value-lr {plan.value_lr:g}"] if plan.value_lr else []
        for name, settings in (("env", plan.env), ("grpo", plan.grpo), ("ppo", plan.ppo)):
            words += [f"--{name} '{json.dumps(settings)}'"] if settings else []
        return " ".join(words)

    def __str__(self) -> str:
        lines = [
            f"{self.protocol}; {self.plan.tasks:,} test tasks, greedy; {len(self.plan.seeds)} seeds; "
            "95 % paired bootstrap intervals",
            "",
            "| row | N@10 | H@1 | by seed | answered | calls | tokens | minutes a run |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row, found in self.rows.items():
            seconds = self.seconds.get(row)
            minutes = f"{min(seconds) / 60:.1f} to {max(seconds) / 60:.1f}" if seconds else ""
            lines.append(
                f"| {row} | {_interval(found['ndcg@10'])} | {_interval(found['hit@1'])} | "
                f"{', '.join(f'{value:.3f}' for value in self.by_seed[row])} | {100 * found['answered'].mean:.1f} % | "
                f"{found['calls'].mean:.1f} | {found['tokens'].mean:,.0f} | {minutes} |"
            )
        lines += ["", "| difference | N@10 | p (Holm) |", "|---|---|---|"]
        for name, (comparison, p) in self.comparisons.items():
            lines.append(f"| {name} | {_interval(comparison.difference, '+')} | {p:.2g} |")
        spent = ", ".join(f"{name} {curve.tokens[-1]:,.0f}" for name, curve in self.curves.items())
        return "\n".join([*lines, "", f"Sampled tokens a run: {spent}.", "", f"`{self.command}`", ""])


def _interval(found: Interval, sign: str = "") -> str:
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def outcome(plan: Plan) -> Outcome:
    """Put the runs of a plan together."""
    tables: dict[str, dict[str, np.ndarray[Any, Any]]] = {WARM: _read([Job(plan).results])}
    curves, seconds = {}, {}
    for name in plan.rates:
        title = TITLES[name]
        tables[title] = _read([Job(plan, name, seed).results for seed in plan.seeds])
        folders = [plan.folder(name, seed) for seed in plan.seeds]
        curves[title] = Curve.of(folders)
        seconds[title] = [sum(map(float, (folder / "seconds.txt").read_text().split())) for folder in folders]
    draws = PairedBootstrap(
        {(row, metric): table[metric] for row, table in tables.items() for metric in METRICS},
        np.random.default_rng(0),
    )
    trained = list(curves)
    pairs = [(row, WARM) for row in trained] + ([(trained[0], trained[1])] if len(trained) > 1 else [])
    found = compare(draws, [((a, "ndcg@10"), (b, "ndcg@10")) for a, b in pairs], np.random.default_rng(1))
    corrected = holm([each.p for each in found])
    from agentrec_env.vector import RecVectorEnv

    envs = RecVectorEnv(1, dataset=plan.dataset, split=plan.split, task_split="test", **plan.env)
    return Outcome(
        plan,
        envs.world.protocol,
        {row: {metric: draws.interval((row, metric)) for metric in METRICS} for row in tables},
        {f"{a} - {b}": (each, p) for (a, b), each, p in zip(pairs, found, corrected, strict=True)},
        curves,
        seconds,
        {row: table["ndcg@10"].mean(axis=1).tolist() for row, table in tables.items()},
    )


def _read(paths: Sequence[Path]) -> dict[str, np.ndarray[Any, Any]]:
    """float64 [seeds, tasks] by metric."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return {name: np.array([record[name] for record in records]) for name in METRICS}


def draw(found: Outcome, path: Path) -> None:
    """The curves as a picture."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "agentrec", "font.size": 11}):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for (name, curve), colour in zip(found.curves.items(), ("#2563eb", "#d97706"), strict=False):
            values, tokens = np.array(curve.values), np.array(curve.tokens) / 1e6
            axes.plot(tokens, values.mean(axis=0), color=colour, label=f"{name}, mean of {len(values)} seeds")
            axes.fill_between(tokens, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        axes.set_xlabel("sampled tokens (millions)")
        axes.set_ylabel(f"N@10 on {found.plan.valid} valid tasks")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.set_title(f"{Path(found.plan.dataset).name}: reinforcement learning from one warm start")
        temporary = path.with_suffix(".partial")
        figure.savefig(temporary, format="svg", metadata={"Date": None})
        temporary.replace(path)
        plt.close(figure)


def parse(arguments: Sequence[str] | None) -> tuple[Plan, int]:
    """The plan of a command line, and how many processes do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warm", required=True, help='what all runs start from: "tiny", a folder, or a hub id')
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--split", default="temporal")
    parser.add_argument("--env", type=json.loads, default={}, metavar="JSON", help="other arguments of the environment")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--lr", nargs="+", default=["listwise_grpo=3e-4", "ppo=3e-4"], metavar="ALGORITHM=RATE")
    for name in ("grpo", "ppo"):
        parser.add_argument(f"--{name}", type=json.loads, default={}, metavar="JSON", help="further settings")
    parser.add_argument("--value-lr", type=float, help="of PPO's value head; left out: as the other weights")
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--valid", type=int, default=200, help="tasks of an evaluation")
    parser.add_argument("--tasks", type=int, default=1000, help="test tasks")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    args = parser.parse_args(arguments)
    rates = {}
    for each in args.lr:
        name, equals, rate = each.partition("=")
        if name not in TITLES or not equals:
            parser.error(f"--lr takes ALGORITHM=RATE, of {', '.join(TITLES)}; got {each!r}")
        rates[name] = float(rate)
    plan = Plan(
        dataset=args.dataset,
        split=args.split,
        warm=args.warm,
        env=args.env,
        seeds=tuple(args.seeds),
        steps=args.steps,
        groups=args.groups,
        group_size=args.group_size,
        rates=rates,
        grpo=args.grpo,
        ppo=args.ppo,
        value_lr=args.value_lr,
        every=args.every,
        valid=args.valid,
        tasks=args.tasks,
        out=args.out,
    )
    return plan, args.jobs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print what was found."""
    plan, jobs = parse(arguments)
    plan.claim()
    runs = [Job(plan), *(Job(plan, name, seed) for seed in plan.seeds for name in plan.rates)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in pool.map(work, runs):
            print(f"{done.results} is there", flush=True)
    found = outcome(plan)
    write_text(plan.out / "results.json", json.dumps(found.record(), indent=1) + "\n")
    write_text(plan.out / "learning.md", str(found))
    draw(found, plan.out / "learning.svg")
    print(found)


if __name__ == "__main__":
    main()
