"""What training did, from the metrics of the runs: tool calls, reward and N@10 on valid tasks over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import training
from benchmarks.experiment import Run

POINTS = 40
"""Points of a curve, each the mean of neighbouring steps."""
TARGET = "valid/ndcg@10"


@dataclass(frozen=True)
class Judged:
    """N@10 on valid tasks, over the seeds of a stage."""

    step: int
    tokens: float
    """Sampled in training until then, mean of the seeds."""
    mean: float
    low: float
    """Of the worst seed; `high` is of the best."""
    high: float


@dataclass(frozen=True)
class Curve:
    """The seeds of a stage, averaged."""

    stage: str
    algorithm: str
    start: str
    """Stage that it started from, or the model."""
    seeds: int
    """Runs that have ended."""
    steps: list[float]
    """[P], at most `POINTS`: mean step of each point."""
    calls: dict[str, list[float]]
    """Tool -> [P]: calls an episode."""
    reward: list[float]
    """[P]; empty where nothing is paid."""
    valid: list[Judged]
    """Evaluations that all seeds have, in order."""
    best: list[float]
    """Of each seed, the best N@10 on valid tasks."""
    chosen: list[int]
    """Of each seed, the steps after which it had that, whose policy is kept; 0: the one that it started from."""
    sampled_tokens: float
    """Sampled in training, by a seed."""
    seconds: float
    """Of a seed, in its last start."""


@dataclass(frozen=True)
class TrainingResult:
    """The training runs of a dataset."""

    dataset: str
    curves: list[Curve]
    remarks: list[str]


def training_result(dataset: str, runs: Sequence[Run], errors: Mapping[Path, str]) -> TrainingResult:
    """What the runs of a dataset left."""
    stages: dict[str, list[Run]] = {}
    for run in runs:
        if training.is_done(run):
            stages.setdefault(run.stage.name, []).append(run)
    remarks = [f"{run.label}: {errors[run.folder]}" for run in runs if run.folder in errors]
    remarks += [f"{run.label}: {reason}" for run in runs if (reason := training.stale(run))]
    if len(versions := training.codes(runs)) > 1:
        remarks.append(f"Runs were trained by {len(versions)} versions of the code: {', '.join(sorted(versions))}.")
    return TrainingResult(dataset, [_curve(group) for group in stages.values()], remarks)


def _curve(runs: Sequence[Run]) -> Curve:
    logs = [training.metrics(run) for run in runs]
    steps = [[line for line in log if not any(name.startswith("valid/") for name in line)] for log in logs]
    judged = [{int(line["step"]): line[TARGET] for line in log if TARGET in line} for log in logs]
    shared = set.intersection(*(set(found) for found in judged))
    tools = sorted({name for log in steps for line in log for name in line if name.startswith("calls/")})
    outcomes = [training.outcome(run) for run in runs]
    first = runs[0]
    return Curve(
        stage=first.stage.name,
        algorithm=first.stage.algorithm,
        start=first.after.stage.name if first.after else first.config.model,
        seeds=len(runs),
        steps=_mean(steps, "step"),
        calls={name.removeprefix("calls/"): _mean(steps, name) for name in tools},
        reward=_mean(steps, "reward"),
        valid=[_judged(step, [found[step] for found in judged], steps) for step in sorted(shared)],
        best=[max(found.values()) for found in judged if found],
        chosen=[max(found, key=lambda step: (found[step], -step)) for found in judged if found],
        sampled_tokens=_sampled(steps),
        seconds=float(np.mean([outcome.get("seconds", 0.0) for outcome in outcomes])),
    )


def _judged(step: int, values: Sequence[float], logs: Sequence[Sequence[Mapping[str, float]]]) -> Judged:
    return Judged(step, _sampled(logs, step), float(np.mean(values)), min(values), max(values))


def _sampled(logs: Sequence[Sequence[Mapping[str, float]]], until: float = np.inf) -> float:
    """Tokens sampled before a step, mean of the seeds."""
    return float(
        np.mean([sum(line.get("sampled_tokens", 0.0) for line in log if line["step"] < until) for log in logs])
    )


def _mean(logs: Sequence[Sequence[Mapping[str, float]]], name: str) -> list[float]:
    """[P]: the mean over runs and neighbouring steps; empty where some run does not have it at each point."""
    shortest = min(len(log) for log in logs)
    points = []
    for part in np.array_split(np.arange(shortest), min(POINTS, shortest) or 1):
        values = [log[place][name] for log in logs for place in part.tolist() if name in log[place]]
        if not values:
            return []
        points.append(float(np.mean(values)))
    return points
