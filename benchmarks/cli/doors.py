"""Commands that live elsewhere: `agentrec run`, `data` and `view` hand their arguments on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from agentrec_env.arguments import Parser

VIEW_EXAMPLES = """examples:
  agentrec view results/quick-temporal-seed0          a comparison: filter, read, compare two agents on one task
  agentrec view runs/grpo                             a training run: reward, entropy and calls over steps
  agentrec view runs/grpo --out grpo.html             one file that needs no server, to send to someone

The page is served on this machine alone (127.0.0.1); Ctrl-C ends it.
"""


def run(arguments: Sequence[str]) -> int:
    """`agentrec run`: the comparison of `benchmarks/run_all.py`."""
    from benchmarks import run_all

    run_all.prepare_process()
    return run_all.main(arguments, prog="agentrec run")


def data(arguments: Sequence[str]) -> int:
    """`agentrec data`: `python -m agentrec_env.data`."""
    from agentrec_env.data.__main__ import main

    return main(arguments, prog="agentrec data")


def view(arguments: Sequence[str]) -> int:
    """`agentrec view RUN`: the trajectory viewer."""
    parser = Parser(
        prog="agentrec view", description="Look at the episodes of a run in a browser.", epilog=VIEW_EXAMPLES
    )
    parser.add_argument("run", type=Path, help="folder that agentrec run or agentrec train wrote")
    parser.add_argument("--port", type=int, help="port to serve on (default: a free one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page to this file and serve nothing")
    options = parser.parse_args(arguments)
    if not options.run.is_dir():
        parser.error(f"there is no folder {options.run}; give the --out of a run or of a training")
    from benchmarks.viewer import view

    try:
        view(options.run, options.port, options.out)
    except (ValueError, OSError) as error:
        print(f"agentrec view: {error}", file=sys.stderr)
        return 2
    return 0
