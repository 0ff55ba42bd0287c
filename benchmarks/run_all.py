"""Compare recommenders in the environment: `python benchmarks/run_all.py`.

Plays every row of the suite on every track of each dataset, keeps each task's result, and writes report.md, report.html
and results.json. Started again with the same options it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agentrec_env.arguments import Parser, json_object
from agentrec_env.data.world import World
from benchmarks import analysis, runner
from benchmarks.records import Block, Folder, Place
from benchmarks.report import Report, versions
from benchmarks.runner import Unit, Update
from benchmarks.suite import DEFAULT, SIZES, Row, Size, Suite, Track, endpoint_rows, model_rows, slug

ROOT = Path(__file__).resolve().parents[1]
PLAIN_EVERY = 5.0
"""Seconds between progress lines where the output is no terminal."""
POOLS = 5_000
"""Pools in which the positive's place is tested."""


@dataclass(frozen=True)
class Plan:
    """One dataset on one track: its protocol, its tasks, and the units to play."""

    dataset: str
    track: Track
    protocol: str
    settings: dict[str, Any]
    units: tuple[Unit, ...]
    world: World


EXAMPLES = """examples:
  {prog}                                            the embedded world, every row and track, three minutes
  {prog} --quick --agent mine:rank                  with an agent of yours
  {prog} --quick --model tiny --only scripted pool-20
  {prog} --dataset Video_Games --split temporal
  {prog} --dataset reviews.csv --split leave_one_out --tasks 5000
  {prog} --list                                     rows and tracks

exit codes: 0 every row has its results; 1 some failed; 2 the command line cannot be used; 130 stopped, and the same
command goes on from there
"""


def parse_arguments(arguments: Sequence[str] | None, prog: str = "run_all.py") -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog=prog,
        description="Compare recommenders in the environment: a table with error bars, report.html and results.json.",
        epilog=EXAMPLES.format(prog=prog),
    )
    parser.add_argument(
        "--dataset", action="append", metavar="NAME|PATH", help="what to load, repeatable (default: synthetic)"
    )
    parser.add_argument("--split", default="temporal", help="temporal (default) or leave_one_out")
    parser.add_argument(
        "--agent", action="append", default=[], metavar="NAME|MODULE:ATTR", help="add a row, repeatable"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="ID|FOLDER",
        help='add a local language model: a hub id, a folder, or "tiny", the embedded one; repeatable',
    )
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, up to and with /v1")
    parser.add_argument(
        "--endpoint-model", action="append", default=[], metavar="NAME", help="add this model of it, repeatable"
    )
    for flag, of in (("--model-args", "agents.llm.agent:LLMAgent"), ("--endpoint-args", "agents.endpoint:Endpoint")):
        parser.add_argument(flag, type=json_object, metavar="JSON", help=f"arguments of {of}, as a JSON object")
    parser.add_argument(
        "--num-envs", type=int, default=64, metavar="N", help="episodes that a language model plays at once (64)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows or tracks of the suite alone")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="200 tasks, one seed, one track: about two minutes")
    size.add_argument("--full", action="store_true", help="every test task, five seeds")
    parser.add_argument("--tasks", type=int, help="test tasks a row and track")
    parser.add_argument("--seed", type=int, default=0, help="of pools, agents and resampling (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core); 0 plays in this one"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/SIZE-SPLIT-seedSEED)")
    parser.add_argument("--redo", nargs="+", default=[], metavar="ROW", help="forget the results of these rows first")
    parser.add_argument("--list", action="store_true", help="print rows and tracks and stop")
    return parser.parse_args(arguments)


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
        models = _language_models(options)
        suite = DEFAULT.with_agents(options.agent).with_rows(models)
        asked = [*options.only, *options.agent, *(row.name for row in models)]
        suite = suite.only(asked if options.only else size.tracks)
        _check_agents(suite.rows)
        folder = Folder(options.out)
        plans = [plan for source in options.dataset or ["synthetic"] for plan in _plan(source, options, suite, size)]
        folder.claim(_settings(options, size, plans))
    except (ValueError, LookupError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    units = [unit for plan in plans for unit in plan.units]
    for unit in units:
        if unit.row.name in options.redo:
            folder.forget(unit.place)
    begin = time.time()
    try:
        errors = _play(units, folder, options.jobs, console)
    except KeyboardInterrupt:
        console.print("\nStopped. Finished blocks are kept: the same command goes on from here.")
        return 130
    results = [_analyse(plan, folder, errors, options.seed) for plan in plans]
    report = Report(results, _facts(options, size, arguments, time.time() - begin))
    report.show(console)
    for path in report.write(options.out):
        console.print(f"wrote {path}", highlight=False)
    return 1 if any(result.missing for result in results) else 0


def _language_models(options: argparse.Namespace) -> list[Row]:
    """The rows that --model and --endpoint add."""
    if options.num_envs < 1:
        raise ValueError(f"--num-envs {options.num_envs}: at least one is needed")
    if bool(options.endpoint) != bool(options.endpoint_model):
        raise ValueError("--endpoint URL and --endpoint-model NAME go together: where to ask, and for which model")
    if options.model_args and not options.model:
        raise ValueError("--model-args are for --model, which is not given")
    if options.endpoint_args and not options.endpoint:
        raise ValueError("--endpoint-args are for --endpoint, which is not given")
    rows = model_rows(options.model, options.model_args or {}, options.num_envs)
    if options.endpoint:
        rows += endpoint_rows(options.endpoint, options.endpoint_model, options.endpoint_args or {}, options.num_envs)
    return rows


def _plan(source: str, options: argparse.Namespace, suite: Suite, size: Size) -> Iterator[Plan]:
    name = Path(source).name or source
    items = runner.load_dataset(source).num_items
    fitting = [track for track in suite.tracks if track.pool is None or 2 * track.pool <= items] or list(suite.tracks)
    for track in suite.tracks:
        if track not in fitting:
            print(f"{name} has {items} items, too few for track {track.name}: it is left out", file=sys.stderr)
    for track in fitting:
        world = runner.open_world(source, options.split, options.seed, track)
        available = world.num_tasks("test")
        if not available:
            raise ValueError(f"{source} has no test tasks under --split {options.split}; try the other split")
        wanted = size.tasks or available if options.tasks is None else options.tasks
        if wanted < 1:
            raise ValueError(f"--tasks {wanted}: at least one task is needed")
        count = min(available, max(1, round(wanted * track.share)))
        chosen = np.random.default_rng([options.seed, 1]).permutation(available)[:count]
        # In random order, so that the tasks played again are the first blocks and meet the same seeds.
        tasks = tuple(chosen.tolist())
        again = tasks[: size.reorder_tasks]

        def unit(row: Row, seed: int, order: int, tasks: tuple[int, ...], track: Track = track) -> Unit:
            return Unit(name, source, options.split, options.seed, track, row, options.seed + seed, order, tasks)

        # Trained rows take longest. First on the first track, for a run that ends with one keeps a single process
        # busy; last on the others, so that they find in the cache what the first track fitted.
        rows = sorted(suite.rows, key=lambda row: (row.seed_argument is None) == (track is fitting[0]))
        units = [unit(row, seed, 0, tasks) for row in rows for seed in range(min(row.seeds, size.seeds))]
        units += [unit(row, 0, order + 1, again) for row in rows for order in range(track.reorders)]
        protocol = (
            f"{world.protocol}; {count:,} of {available:,} test tasks; lists of {analysis.LIST}; AgentRec-Amazon-v0"
        )
        settings = {"world": world.key, "env": dict(track.env), "tasks": count, "reorder_tasks": len(again)}
        yield Plan(name, track, protocol, settings, tuple(units), world)


def _settings(options: argparse.Namespace, size: Size, plans: Sequence[Plan]) -> dict[str, Any]:
    run = {
        "agentrec-env": versions().get("agentrec-env", "unknown"),
        "code": _code(),
        "split": options.split,
        "seed": options.seed,
        "block": runner.BLOCK,
    }
    tracks = {f"{plan.dataset}/{plan.track.name}": plan.settings for plan in plans}
    if len(tracks) < len(plans):
        raise ValueError("two datasets have the same name; compare them in two runs with two --out folders")
    return {"run": run, "tracks": tracks}


def _code() -> str:
    """A hash of the sources that results depend on, so that what another version played is not taken for this one's."""
    root = Path(__file__).resolve().parent.parent
    paths = [path for package in ("agentrec_env", "agents") for path in (root / package).rglob("*.py")]
    paths += [root / "benchmarks" / f"{name}.py" for name in ("runner", "suite", "records")]
    digest = hashlib.sha256(repr({name: versions().get(name) for name in ("numpy", "torch", "lightgbm")}).encode())
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _play(units: Sequence[Unit], folder: Folder, jobs: int, console: Console) -> dict[Place, str]:
    """Play all units and show progress; errors of units that have no complete results."""
    held = {unit.place: sum(len(b.tasks) for b in folder.finished(unit.place, unit.blocks) if b) for unit in units}
    missing = [unit for unit in units if held[unit.place] < len(unit.tasks)]
    total, done = sum(len(unit.tasks) for unit in units), sum(held.values())
    if done:
        console.print(f"Going on: {done:,} of {total:,} episodes are there already.", highlight=False)
    errors: dict[Place, str] = {}
    with _Display(console, total - done) as display:
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


class _Display:
    """A progress bar with the time left on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._begin = self._said = time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, TextColumn("{task.description}", markup=False), console=console)
            self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Display:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, update: Update, skipped: int = 0, message: str = "") -> None:
        """Count played (or given up) episodes; `message` is printed whatever the display."""
        self._done += update.tasks + skipped
        if message:
            self._console.print(message, style="red", markup=False, highlight=False)
        if self._progress:
            self._progress.update(self._task, advance=update.tasks + skipped, description=update.unit.label)
        elif time.monotonic() - self._said > PLAIN_EVERY or self._done == self._total:
            self._said = time.monotonic()
            elapsed = self._said - self._begin
            left = elapsed * (self._total - self._done) / max(self._done, 1)
            guess = f", about {left:.0f} s left" if 10 * self._done > self._total else ""
            news = f"{self._done:,} of {self._total:,} episodes, {elapsed:.0f} s{guess}"
            self._console.print(f"{news}: {update.unit.label}", highlight=False, markup=False)


def _analyse(plan: Plan, folder: Folder, errors: dict[Place, str], seed: int) -> analysis.TrackResult:
    rows: dict[str, Row] = {}
    seeds: dict[str, dict[int, list[Block]]] = {}
    orders: dict[str, tuple[int, list[Block]]] = {}
    failed: dict[str, list[str]] = {}
    for unit in plan.units:
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
        played.append(analysis.Played(row, seeds[name], again if same else ()))
    missing = {name: found[0] + (f" (and {len(found) - 1} more)" * (len(found) > 1)) for name, found in failed.items()}
    rng = np.random.default_rng([seed, 2])
    return analysis.analyse(plan.dataset, plan.track, plan.protocol, played, missing, _places(plan.world), rng)


def _places(world: World) -> list[int]:
    """Where the positive stands in the test pools, of at most POOLS tasks."""
    if world.catalog:
        return []
    tasks = (world.task("test", index) for index in range(min(world.num_tasks("test"), POOLS)))
    return [int(np.flatnonzero(task.candidates == task.target)[0]) for task in tasks]


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
    console.print("Tracks:")
    for track in DEFAULT.tracks:
        console.print(f"  {track.name:12} {track.title}", highlight=False)
    console.print("Sizes:")
    for size in SIZES.values():
        tasks = f"{size.tasks:,}" if size.tasks else "all"
        console.print(f"  {size.name:12} {tasks} test tasks, at most {size.seeds} seeds a row", highlight=False)


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
