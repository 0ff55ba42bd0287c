"""The command line of `run_all.py`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from agentrec_env.arguments import Parser, json_object
from benchmarks.presets import PRESETS, SMALL

SEEDS = 3
"""Of trained rows."""
EXAMPLES = """examples:
  {prog}                                            the embedded world, every row and track, minutes
  {prog} --quick --agent mine:rank                  with an agent of yours
  {prog} --quick --model tiny --only scripted pool-20
  {prog} --quick --env '{{"tools": ["score_candidates", "mine:stock"]}}'
  {prog} --dataset Video_Games --split temporal
  {prog} --dataset reviews.csv --split leave_one_out --tasks 5000
  {prog} --full --dry-run                           what would be trained and played
  {prog} --full --out shared/folder                 all of it, on as many machines as see the folder
  {prog} --full --preset paper --model Qwen/Qwen3-4B-Instruct-2507
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
        "--env",
        type=json_object,
        default={},
        metavar="JSON",
        help='of the environment, in every row, as {"tools": ["get_item_stats", "mine:stock"], "max_calls": 4}',
    )
    parser.add_argument(
        "--agent", action="append", default=[], metavar="NAME|MODULE:ATTR", help="add a row, repeatable"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="ID|FOLDER",
        help='add a local language model: a hub id, a folder, or "tiny", the embedded one; repeatable. Where rows are '
        "trained, the one that they start from",
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
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="these rows or tracks of the suite alone; with --ablations, what lacks a part of these rows too",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="200 tasks, one seed, one track: about two minutes")
    size.add_argument("--full", action="store_true", help="every test task, five seeds, --train and --ablations")
    parser.add_argument("--tasks", type=int, help="test tasks a row and track")
    parser.add_argument("--seed", type=int, default=0, help="of pools, agents, training and resampling (default: 0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core); 0 plays in this one"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/SIZE-SPLIT-seedSEED)")
    parser.add_argument("--redo", nargs="+", default=[], metavar="ROW", help="forget the results of these rows first")
    parser.add_argument("--list", action="store_true", help="print rows and tracks and stop")
    _add_training(parser)
    return parser.parse_args(arguments)


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "training", "Rows that are trained first, each seed in a folder that is resumed; machines may share it."
    )
    group.add_argument("--train", action="store_true", help="train the rows of the experiment, then play them")
    group.add_argument("--ablations", action="store_true", help="rows that lack a part; with --train, trained ones too")
    about = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    group.add_argument("--preset", choices=list(PRESETS), help=f"{about} (default: {SMALL})")
    group.add_argument("--train-seeds", type=int, default=SEEDS, metavar="N", help=f"seeds of trained rows ({SEEDS})")
    group.add_argument("--train-steps", type=int, metavar="N", help="steps of a training run at most, to try things")
    group.add_argument(
        "--train-args",
        type=json_object,
        default={},
        metavar="JSON",
        help='settings by stage, as {"grpo": {"steps": 300, "algorithm": {"groups": 64}}}; "*" is for all stages',
    )
    group.add_argument("--training", type=Path, help="folder of training runs (default: training/ in --out)")
    group.add_argument("--dry-run", action="store_true", help="print what would be trained and played, and stop")
