"""The viewer's command line, and the function behind it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from agentrec_env.arguments import Parser
from benchmarks.records import write_text
from benchmarks.viewer.collection import LIMIT, collect
from benchmarks.viewer.document import document
from benchmarks.viewer.exports import FORMATS, export
from benchmarks.viewer.server import PageServer


def view(run: Path, port: int | None = None, out: Path | None = None, limit: int = LIMIT) -> None:
    """Show the episodes and curves of a run: serve them to this machine until interrupted, or write them to a file.

    Args:
        run: A results folder of `benchmarks/run_all.py`, the folder of a training run, or a file of episodes.
        port: To serve on; None or 0: any that is free.
        out: Write the page there, and serve nothing.
        limit: Episodes shown at most, shared evenly by the agents.

    Raises:
        NoRunError: There is nothing to show; says what can be given.
        OSError: The port is taken, or the file cannot be written.
    """
    collection = collect(run, limit)
    page = document(collection)
    for note in collection.notes:
        print(note, file=sys.stderr)
    if out is not None:
        write_text(out, page)
        print(f"wrote {out}: {len(collection.played):,} episodes, {len(page) / 1e6:.1f} MB")
        return
    with PageServer(page, port or 0) as server:
        print(f"{len(collection.played):,} episodes of {run} at {server.url} (Ctrl+C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


EXAMPLES = """examples:
  {prog} results/quick-temporal-seed0              a comparison: filter, read, compare two agents on one task
  {prog} runs/grpo                                 a training run: reward, entropy and calls over steps
  {prog} runs/grpo --out grpo.html                 one file that needs no server, to send to someone
  {prog} runs/grpo --out traces --export hub       a file an episode, as the Hugging Face hub shows traces

The page is served to this machine alone; Ctrl-C ends it.
"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks.viewer") -> int:
    """Run the command; 0, or 2 where there is nothing to show."""
    parser = Parser(
        prog=prog,
        description="Look at the episodes of a run in a browser: filter, read, compare; curves of training.",
        epilog=EXAMPLES.format(prog=prog),
    )
    parser.add_argument(
        "run", type=Path, help="results folder of run_all.py, folder of a training run, or episodes file"
    )
    parser.add_argument("--port", type=int, help="serve on this port of the loopback interface (default: a free one)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="write the page instead; it works without a server"
    )
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"episodes at most (default: {LIMIT:,})")
    parser.add_argument(
        "--export",
        choices=sorted(FORMATS),
        help="write a file an episode to the folder --out: the Hub's session traces, or ATIF v1.7",
    )
    options = parser.parse_args(arguments)
    try:
        if options.export:
            if options.out is None:
                parser.error("--export needs --out FOLDER")
            count = export(collect(options.run, options.limit), options.export, options.out)
            print(f"wrote {count:,} files to {options.out}")
        else:
            view(options.run, options.port, options.out, options.limit)
    except (ValueError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    return 0
