"""Compare recommenders in the environment: `python benchmarks/run_all.py`.

Plays every row of the suite on every track of each dataset, keeps each task's result, and writes report.md, report.html
and results.json. With --train (or --full) rows are trained first. Started again with the same options it goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from rich.console import Console

from benchmarks import analysis, runner, training
from benchmarks.curves import training_result
from benchmarks.display import Display
from benchmarks.experiment import Run, needed_stages
from benchmarks.options import SEEDS, parse_arguments
from benchmarks.planning import Plan, plans, settings
from benchmarks.played import Played
from benchmarks.presets import PRESETS, SMALL, TRACK
from benchmarks.records import Block, Folder, Place
from benchmarks.report import Report, versions
from benchmarks.runner import Unit
from benchmarks.selection import Selection, select
from benchmarks.suite import DEFAULT, SIZES, Row, Size, slug
from benchmarks.transcripts import Transcript, transcripts

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class _Trained:
    """What training left: runs by dataset, and errors by folder of a run."""

    runs: Mapping[str, list[Run]] = field(default_factory=dict)
    errors: Mapping[Path, str] = field(default_factory=dict)

    def rows(self, selection: Selection, plan: Plan) -> list[Row]:
        """The rows on a dataset, with the policies that there are."""
        runs = self.runs.get(plan.dataset, [])
        folders: dict[str, dict[int, str]] = {}
        for run in runs:
            if training.is_done(run) and training.stale(run) is None:
                folders.setdefault(run.stage.name, {})[run.seed] = str(run.policy)
        return [replace(row, folders=folders.get(row.stage, {})) for row in selection.of(plan.source)]

    def missing(self, selection: Selection, plan: Plan) -> dict[str, str]:
        """Rows that lack a policy of some seed, and why."""
        lacking: dict[str, str] = {}
        for run in self.runs.get(plan.dataset, []):
            reason = training.stale(run) if training.is_done(run) else self.errors.get(run.folder, "it has not ended")
            if reason is not None:
                lacking.setdefault(run.stage.name, f"seed {run.seed} is not trained: {reason}")
        rows = selection.of(plan.source) if plan.track.name == TRACK else []
        return {row.name: lacking[row.stage] for row in rows if row.stage in lacking}


def main(arguments: Sequence[str] | None = None, prog: str = "run_all.py") -> int:
    """Run the comparison; 0 where every row has its results, 1 where some failed, 2 for a wrong command line."""
    options = parse_arguments(arguments, prog)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.list:
        _list(console)
        return 0
    try:
        size = SIZES["quick" if options.quick else "full" if options.full else "default"]
        options.out = options.out or Path("results") / f"{size.name}-{options.split}-seed{options.seed}"
        selection = select(options, size)
        _check_agents(selection.rows)
        folder = Folder(options.out)
        planned = [
            plan
            for source in options.dataset or ["synthetic"]
            for plan in plans(source, options.split, options.seed, selection.tracks, size, options.tasks)
        ]
        runs = _runs(selection, planned)
        training.check([run for each in runs.values() for run in each])
        if options.dry_run:
            _show(planned, selection, runs, console)
            return 0
        folder.claim(settings(planned))
    except (ValueError, LookupError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    begin = time.time()
    for remark in selection.left_out:
        console.print(remark, style="dim", highlight=False)
    try:
        trained = _train(runs, options.jobs, console)
        units = {id(plan): plan.units(trained.rows(selection, plan)) for plan in planned}
        for unit in (unit for each in units.values() for unit in each):
            if unit.row.name in options.redo:
                folder.forget(unit.place)
        errors = _play([unit for each in units.values() for unit in each], folder, options.jobs, console)
    except KeyboardInterrupt:
        console.print("\nStopped. What is finished is kept: the same command goes on from here.")
        return 130
    results: list[analysis.TrackResult] = []
    read: dict[str, list[Transcript]] = {}
    for plan in planned:
        played, missing = _played(units[id(plan)], folder, errors)
        missing = trained.missing(selection, plan) | missing
        rng = np.random.default_rng([options.seed, 2])
        result = analysis.analyse(
            plan.dataset, plan.track, plan.protocol, played, missing, plan.places(), rng, plan.world
        )
        results.append(result)
        read |= _transcripts(result, played, units[id(plan)], folder)
    curves = [training_result(dataset, each, trained.errors) for dataset, each in runs.items() if each]
    facts = _facts(options, size, arguments, time.time() - begin)
    report = Report(results, facts, training=curves, left_out=selection.left_out, transcripts=read)
    report.show(console)
    for path in report.write(options.out):
        console.print(f"wrote {path}", highlight=False)
    return 1 if any(result.missing for result in results) else 0


def _runs(selection: Selection, planned: Sequence[Plan]) -> dict[str, list[Run]]:
    """The training runs of each dataset."""
    stages = needed_stages(selection.rows)
    if not stages:
        return {}
    found = {}
    for plan in planned:
        if plan.track.name == TRACK:
            env = {"dataset": plan.source, "split": plan.split, "seed": plan.seed, **plan.track.env}
            tasks = plan.world.num_tasks("train")
            found[plan.dataset] = selection.experiment.runs(plan.dataset, env, tasks, stages)
    if not found:
        raise ValueError(
            f"policies are trained for track {TRACK}, which is not among those asked for: add it to --only"
        )
    return found


def _train(runs: Mapping[str, list[Run]], jobs: int, console: Console) -> _Trained:
    wanted = [run for each in runs.values() for run in each]
    if not wanted:
        return _Trained()
    import torch

    most = min(jobs, 1) if torch.cuda.is_available() else jobs

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    return _Trained(runs, training.train(wanted, most, say))


def _show(planned: Sequence[Plan], selection: Selection, runs: Mapping[str, list[Run]], console: Console) -> None:
    """Print what would be done."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    for remark in selection.left_out:
        say(remark)
    for dataset, each in runs.items():
        say(f"{dataset}: {len(each)} training runs in {selection.experiment.out} ({selection.experiment.preset.about})")
        for run in each:
            start = f"after {run.after.stage.name}" if run.after else f"from {run.config.model}"
            most = f", at most {run.most_tokens:,} tokens" if run.most_tokens else ""
            done = " (done)" if training.is_done(run) else ""
            told = f"{run.config.steps:,} steps, {run.episodes:,} episodes{most}"
            say(f"  {run.stage.name:18} seed {run.seed}: {run.stage.algorithm}, {start}, {told}{done}")
    for plan in planned:
        rows = [row for row in selection.of(plan.source) if not row.tracks or plan.track.name in row.tracks]
        say(f"{plan.protocol}: {len(rows)} rows")
        say(f"  {', '.join(row.name for row in rows)}")


def _play(units: Sequence[Unit], folder: Folder, jobs: int, console: Console) -> dict[Place, str]:
    """Play all units and show progress; errors of units that have no complete results."""
    held = {unit.place: sum(len(b.tasks) for b in folder.finished(unit.place, unit.blocks) if b) for unit in units}
    missing = [unit for unit in units if held[unit.place] < len(unit.tasks)]
    total, done = sum(len(unit.tasks) for unit in units), sum(held.values())
    if done:
        console.print(f"Going on: {done:,} of {total:,} episodes are there already.", highlight=False)
    errors: dict[Place, str] = {}
    with Display(console, total - done) as display:
        for update in runner.run(missing, folder, jobs):
            held[update.unit.place] += update.tasks
            if update.error:
                errors[update.unit.place] = update.error
                (folder.path / "errors").mkdir(exist_ok=True)
                log = folder.path / "errors" / f"{slug(update.unit.label)}.txt"
                log.write_text(update.trace or update.error, encoding="utf-8")
                left = len(update.unit.tasks) - held[update.unit.place]
                display.advance(update, skipped=left, message=f"{update.unit.label} failed: {update.error} (see {log})")
            else:
                display.advance(update)
    return errors


def _played(units: Sequence[Unit], folder: Folder, errors: Mapping[Place, str]) -> tuple[list[Played], dict[str, str]]:
    """What the rows of a track played, and why some are not complete."""
    rows: dict[str, Row] = {}
    seeds: dict[str, dict[int, list[Block]]] = {}
    orders: dict[str, tuple[int, list[Block]]] = {}
    failed: dict[str, list[str]] = {}
    for unit in units:
        blocks = [block for block in folder.finished(unit.place, unit.blocks) if block]
        if len(blocks) < len(unit.blocks):
            order = f", order {unit.order}" if unit.order else ""
            error = errors.get(unit.place, "some of its blocks are missing")
            failed.setdefault(unit.row.name, []).append(f"seed {unit.seed}{order}: {error}")
        elif unit.order:
            orders[unit.row.name] = (unit.seed, blocks)
        else:
            rows[unit.row.name] = unit.row
            seeds.setdefault(unit.row.name, {})[unit.seed] = blocks
    played = []
    for name, row in rows.items():
        seed_again, again = orders.get(name, (None, []))
        same = seed_again == next(iter(seeds[name]))  # else another order and another seed would be mixed up
        played.append(Played(row, seeds[name], again if same else ()))
    missing = {name: found[0] + (f" (and {len(found) - 1} more)" * (len(found) > 1)) for name, found in failed.items()}
    return played, missing


def _transcripts(
    result: analysis.TrackResult, played: Sequence[Played], units: Sequence[Unit], folder: Folder
) -> dict[str, list[Transcript]]:
    """Episodes to be read of the best agent on a track, a policy where there is one; by heading."""
    roles = {each.row.name: each.row for each in played if each.row.role == "agent" and not each.row.ablation}
    ordered = [row.name for row in result.rows if row.name in roles]
    ordered.sort(key=lambda name: not roles[name].lane)
    reference = next((each for each in played if each.row.name == result.reference), None)
    for name in ordered[:1]:
        place = next(unit.place for unit in units if unit.row.name == name and not unit.order)
        if chosen := transcripts(folder, place, name, reference):
            return {f"{result.dataset} · {result.track}: {name}": chosen}
    return {}


def _check_agents(rows: Sequence[Row]) -> None:
    from agents import AGENTS, make

    for row in rows:
        if row.agent not in AGENTS:
            AGENTS.get(row.agent)
        elif row.agent == "endpoint":
            try:
                make(row.agent, **row.kwargs)  # looks at its arguments and asks nothing yet
            except TypeError as error:
                raise ValueError(f"--endpoint-args: {error}") from None


def _facts(options: argparse.Namespace, size: Size, arguments: Sequence[str] | None, seconds: float) -> dict[str, str]:
    given = sys.argv[1:] if arguments is None else arguments
    facts = {
        "command": shlex.join(["python", "benchmarks/run_all.py", *given]),
        "size": size.name,
        "processes": str(options.jobs),
        "wall time of this start": f"{seconds:.0f} s",
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": _commit(),
    }
    return {name: value for name, value in (facts | versions()).items() if value}


def _commit() -> str:
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.stdout.strip() + (" with local changes" if changed.stdout.strip() else "")


def _list(console: Console) -> None:
    console.print("Rows:")
    for row in DEFAULT.rows:
        console.print(f"  {row.name:12} {row.role:9} {row.seeds} seed{'s' if row.seeds > 1 else ''}", highlight=False)
    console.print("Rows that play a policy, trained ones with --train, headed ones with --ablations:")
    for row in PRESETS[SMALL].rows("tiny", {}, 1, SEEDS):
        stage = f"stage {row.stage}" if row.stage else "as it is"
        console.print(f"  {row.name:24} {stage:24} {row.ablation}", highlight=False, markup=False)
    console.print("Tracks:")
    for track in DEFAULT.tracks:
        console.print(f"  {track.name:12} {track.title}", highlight=False)
    console.print("Sizes:")
    for size in SIZES.values():
        tasks = f"{size.tasks:,}" if size.tasks else "all"
        trains = ", trains" if size.trains else ""
        console.print(f"  {size.name:12} {tasks} test tasks, at most {size.seeds} seeds a row{trains}", highlight=False)


def prepare_process() -> None:
    """What a program may change about its process, and a function may not."""
    # One thread a process, set before any worker loads its libraries: the same sums in the same order on any --jobs.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    sys.path.append(os.getcwd())  # where a user keeps the module of --agent module:attribute
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
