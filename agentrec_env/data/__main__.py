"""The data on the command line: fetch a category, or say what a file holds and what of it was dropped and why.

It is `agentrec data`, and `python -m agentrec_env.data` where only the environment is at hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentrec_env.arguments import Parser
from agentrec_env.data.categories import EDITIONS
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.download import download
from agentrec_env.data.load import is_made, load, read
from agentrec_env.data.metadata import read_metadata
from agentrec_env.data.report import DataError, ReadReport
from agentrec_env.data.sniff import FORMATS, sniff
from agentrec_env.text import neutralise

EXAMPLES = """examples:
  {prog} download Gift_Cards                  the 2023 release, into the cache
  {prog} download Video_Games --edition 2018
  {prog} describe Gift_Cards                  what was downloaded, what was dropped and why
  {prog} describe reviews.csv                 a file of your own
  {prog} describe my_shop:interactions        a Dataset, or a function that makes one
"""
_EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 1000)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agentrec_env.data") -> int:
    """Run one command. Returns 0, or 2 after an error that the message on stderr explains.

    Args:
        arguments: of the command line; None: those of the process.
        prog: how the command is called in its help.
    """
    args = _parser(prog).parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        if args.command == "download":
            _download(args, console)
        else:
            _describe(args.path, not args.no_cache, console)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=__doc__.split("\n")[0], epilog=EXAMPLES.format(prog=prog))
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("download", help="fetch the reviews and metadata of a category")
    fetch.add_argument("category", nargs="+", help='such as Gift_Cards, "Gift Cards" or gift cards')
    fetch.add_argument("--edition", default="2023", help=f"{', '.join(EDITIONS)} (default: 2023)")
    fetch.add_argument("--folder", help="where to put the files (default: the cache, where load() finds them)")
    fetch.add_argument("--base-url", help="another place with the same layout")
    fetch.add_argument(
        "--sha256", action="append", default=[], metavar="FILE=HASH", help="what a file must hash to; may be repeated"
    )
    fetch.add_argument("--retries", type=int, default=4, help="how often a broken transfer is taken up again")
    show = commands.add_parser("describe", help="say what a source holds, and what was dropped and why")
    show.add_argument("path", help='a file, a folder, a downloaded category, "synthetic", or module:attribute')
    show.add_argument("--no-cache", action="store_true", help="read the files anew")
    return parser


def _download(args: argparse.Namespace, console: Console) -> None:
    hashes = {}
    for given in args.sha256:
        file, separator, value = given.partition("=")
        if not separator:
            raise DataError(f"--sha256 {given!r}: write FILE=HASH, such as Gift_Cards.jsonl.gz=2f1a...")
        hashes[file] = value
    folder = download(
        " ".join(args.category),
        args.edition,
        folder=args.folder,
        base_url=args.base_url,
        hashes=hashes,
        retries=args.retries,
        progress=sys.stderr.isatty(),
    )
    for path in sorted(folder.glob("*.gz")):
        console.print(f"{escape(str(path))}  {path.stat().st_size:,} bytes", soft_wrap=True)


def _describe(source: str, cache: bool, console: Console) -> None:
    path = Path(source).expanduser()
    if is_made(source):
        where = "the embedded synthetic world" if source == "synthetic" else f"made by {source}"
        _show_dataset(load(source, drop_repeats=False), where, console)
    elif path.is_file() and (format := sniff(path)).endswith("-metadata"):
        metadata = read_metadata(path, format)
        table = _table(f"{path.name}: {FORMATS[format]}")
        table.add_row("items", f"{len(metadata.ids):,}")
        known = {
            "title": sum(title is not None for title in metadata.titles),
            "brand": sum(brand is not None for brand in metadata.brands),
            "category": sum(bool(names) for names in metadata.categories),
            "price": int(np.isfinite(metadata.prices).sum()),
            "description": sum(bool(text) for text in metadata.descriptions),
        }
        _show_known(table, known, len(metadata.ids))
        console.print(table)
        _show_report(metadata.report, console)
    else:
        dataset, report = read(source, cache=cache)
        _show_dataset(dataset, FORMATS[report.reviews.format], console)
        _show_report(report.reviews, console)
        if report.metadata is not None:
            _show_report(report.metadata, console)
            console.print(f"  {report.items_without_metadata:,} reviewed items have no metadata")


def _table(title: str) -> Table:
    table = Table(title=escape(_plain(title)), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    return table


def _show_dataset(dataset: Dataset, format: str, console: Console) -> None:
    table = _table(f"{dataset.name}: {format}")
    table.add_row("interactions", f"{len(dataset):,}")
    table.add_row("users", f"{dataset.num_users:,}")
    table.add_row("items (reviewed)", f"{dataset.num_items:,}")
    repeats = len(dataset) - len(dataset.drop_repeats())
    table.add_row("repeated user-item pairs", f"{repeats:,} (load() keeps the first of each)")
    table.add_row("density", f"{(len(dataset) - repeats) / (dataset.num_users * dataset.num_items):.4%}")
    if dataset.time is None:
        table.add_row("time", "none: use the leave_one_out split")
    else:
        table.add_row("time", f"{_date(dataset.time.min())} to {_date(dataset.time.max())} (UTC)")
        ties = (np.diff(dataset.time) == 0) & (np.diff(dataset.user) == 0)
        table.add_row("same time as the user's last", f"{ties.mean() if len(ties) else 0:.1%} (ties keep file order)")
    rated = np.isfinite(dataset.rating)
    mean = f", mean {dataset.rating[rated].mean():.2f}" if rated.any() else ""
    table.add_row("rating known", f"{rated.mean():.1%}{mean}")
    items = dataset.items
    known = {
        "title": sum(title is not None for title in items.titles),
        "brand": sum(brand is not None for brand in items.brands),
        "category": sum(bool(names) for names in items.categories),
        "price": int(np.isfinite(items.prices).sum()),
        "description": sum(bool(text) for text in items.descriptions),
    }
    _show_known(table, known, dataset.num_items)
    console.print(table)
    _show_histogram(np.diff(dataset.indptr), console)


def _show_known(table: Table, known: dict[str, int], count: int) -> None:
    for field, number in known.items():
        table.add_row(f"{field} known", f"{number / max(count, 1):.1%} of items")


def _show_histogram(lengths: np.ndarray, console: Console) -> None:
    table = Table(title="Users by number of interactions", title_justify="left")
    table.add_column("interactions", justify="right")
    table.add_column("users", justify="right")
    table.add_column("share")
    for low, high in zip(_EDGES, (*_EDGES[1:], np.inf), strict=True):
        count = int(((lengths >= low) & (lengths < high)).sum())
        if count:
            label = str(low) if high == low + 1 else f"{low}+" if high == np.inf else f"{low}-{high - 1}"
            share = count / len(lengths)
            table.add_row(label, f"{count:,}", f"{share:6.1%} {'█' * round(30 * share)}")
    console.print(table)


def _show_report(report: ReadReport, console: Console) -> None:
    console.print(
        escape(f"{report.source}: {report.lines:,} lines read, {report.kept:,} kept"), style="bold", soft_wrap=True
    )
    for reason, count in report.dropped.items():
        console.print(f"  dropped {count:,} {reason}")
    if report.bad:
        console.print(f"  {report.bad:,} bad lines, among them:")
    for bad in report.bad_lines:
        console.print(f"    line {bad.line:,}: {escape(bad.reason)}", soft_wrap=True)
        console.print(f"      {escape(_plain(bad.text))}", soft_wrap=True)


def _plain(text: str) -> str:
    """Text from data, made harmless to terminals and to models that read this output."""
    return neutralise(text)


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    sys.exit(main())
