"""How fast and in how much memory review lines are read: ours against pandas and the standard library's json.

The script writes synthetic McAuley-2023 lines (gzipped, no real data), then reads them with each reader in a process
of its own, interleaved, and prints medians of per-round ratios with their range and each process's peak memory. Wall
time is what a user waits; processor time says the same where other work shares the machine.
Every reader must end with the same columns: user, item, rating and time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

TALK = "great product love this easy use works well bought second one skin hair soft smell nice color price again not"
WORDS = [*TALK.split(), "would", "returned", "broke", "after", "week", "gift", "daughter", "recommend", "quality"]
CHUNK = 100_000


def write_lines(path: Path, lines: int, seed: int, shuffled: bool = False) -> int:
    """Write `lines` records in 2023 fields, about 440 bytes each; returns the expanded size in bytes.

    The lines of one user stand together, as they do in the 2023 files; `shuffled` scatters them over the file, which
    makes every look-up of a user a miss of the processor's caches: the worst case for readers that number users.
    """
    rng = np.random.default_rng(seed)
    expanded = 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        for start in range(0, lines, CHUNK):
            count = min(CHUNK, lines - start)
            users = rng.integers(start // 3, max((start + count) // 3, start // 3 + 1), count)
            users = rng.integers(0, max(lines // 3, 1), count) if shuffled else np.sort(users)
            items = np.minimum(rng.pareto(0.9, count) * 50, max(lines // 10, 1)).astype(int)
            ratings = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], count, p=[0.1, 0.05, 0.08, 0.15, 0.62])
            times = rng.integers(1_300_000_000_000, 1_690_000_000_000, count)
            lengths = rng.integers(5, 60, count)
            words = rng.integers(0, len(WORDS), int(lengths.sum()))
            text, place = [], 0
            for row in range(count):
                body = " ".join(WORDS[word] for word in words[place : place + lengths[row]])
                place += lengths[row]
                record = {
                    "rating": float(ratings[row]),
                    "title": body[:30],
                    "text": body,
                    "images": [],
                    "asin": f"B{items[row]:09d}",
                    "parent_asin": f"B{items[row]:09d}",
                    "user_id": f"AE{users[row] * 2_654_435_761 % 2**40:026d}",
                    "timestamp": int(times[row]),
                    "helpful_vote": int(words[row] % 3),
                    "verified_purchase": bool(words[row] % 2),
                }
                text.append(json.dumps(record))
            data = ("\n".join(text) + "\n").encode()
            expanded += len(data)
            file.write(data)
    return expanded


def read_ours(path: Path) -> tuple[int, float]:
    """The reader behind `agentrec_env.data.load`, without its cache."""
    from agentrec_env.data.amazon import read_reviews

    reviews = read_reviews(path, "amazon-2023-reviews")
    assert reviews.time is not None
    return len(reviews.user) + sum(reviews.report.dropped.values()), float(reviews.rating.sum(dtype="float64"))


def read_pandas(path: Path) -> tuple[int, float]:
    """Whole file at once: pandas' fastest way with its default engine."""
    import pandas

    table = pandas.read_json(path, lines=True, convert_dates=False, dtype=False)
    return _columns(table)


def read_pandas_chunks(path: Path) -> tuple[int, float]:
    """In chunks, keeping the four columns: pandas with bounded memory."""
    import pandas

    with pandas.read_json(path, lines=True, convert_dates=False, dtype=False, chunksize=CHUNK) as parts:
        table = pandas.concat([part[["user_id", "parent_asin", "rating", "timestamp"]] for part in parts])
    return _columns(table)


def read_pandas_arrow(path: Path) -> tuple[int, float]:
    """pandas as a front for pyarrow's own JSON parser, where that is installed; it keeps every column."""
    import pandas

    return _columns(pandas.read_json(path, lines=True, engine="pyarrow"))


def _columns(table: Any) -> tuple[int, float]:
    table["user_id"].factorize()
    table["parent_asin"].factorize()
    return len(table), float(table["rating"].sum())


def read_json(path: Path) -> tuple[int, float]:
    """The loop that most scripts write."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    rows = []
    with gzip.open(path, "rb") as file:
        for line in file:
            record = json.loads(line)
            user = users.setdefault(record["user_id"], len(users))
            item = items.setdefault(record["parent_asin"], len(items))
            rows.append((user, item, record["rating"], record["timestamp"]))
    return len(rows), float(sum(row[2] for row in rows))


READERS: dict[str, Callable[[Path], tuple[int, float]]] = {
    "ours": read_ours,
    "pandas": read_pandas,
    "pandas-chunks": read_pandas_chunks,
    "pandas-pyarrow": read_pandas_arrow,
    "json": read_json,
}


def measure(reader: str, path: Path) -> dict[str, float]:
    """One run in a process of its own: seconds of reading (imports left out) and peak memory in MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", reader, str(path)], check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _child(reader: str, path: Path) -> None:
    if reader == "ours":
        import isal.igzip  # noqa: F401

        import agentrec_env.data.amazon  # noqa: F401
    elif reader.startswith("pandas"):
        import pandas  # noqa: F401
    base = _peak_mb()
    start, worked = time.perf_counter(), time.process_time()
    rows, stars = READERS[reader](path)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}
    print(json.dumps({**spent, "peak_mb": _peak_mb(), "import_mb": base, "rows": rows, "stars": stars}))


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss is inherited from the parent on Linux, VmHWM is this program's own
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def compare(lines: int, repeats: int, readers: list[str], folder: Path, seed: int, shuffled: bool) -> dict[str, Any]:
    """Interleaved rounds of all readers on one file; ratios are taken within a round."""
    path = folder / f"{lines}.jsonl.gz"
    expanded = write_lines(path, lines, seed, shuffled)
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(repeats):
        order = readers if number % 2 == 0 else readers[::-1]
        rounds.append({reader: measure(reader, path) for reader in order})
        for reader in readers:
            if (rounds[-1][reader]["rows"], rounds[-1][reader]["stars"]) != (lines, rounds[-1]["ours"]["stars"]):
                raise SystemExit(f"{reader} read something else: {rounds[-1]}")
    table: dict[str, dict[str, Any]] = {}
    for reader in readers:
        table[reader] = {}
        for clock in ("seconds", "cpu_seconds"):
            ratios = [one[reader][clock] / one["ours"][clock] for one in rounds]
            table[reader] |= {
                clock: statistics.median(one[reader][clock] for one in rounds),
                f"{clock}_times_ours": statistics.median(ratios),
                f"{clock}_times_ours_range": [min(ratios), max(ratios)],
            }
        table[reader] |= {
            "peak_mb": max(one[reader]["peak_mb"] for one in rounds),
            "import_mb": max(one[reader]["import_mb"] for one in rounds),
        }
    size = path.stat().st_size
    path.unlink()
    return {
        "lines": lines,
        "shuffled": shuffled,
        "repeats": repeats,
        "gzip_bytes": size,
        "expanded_bytes": expanded,
        "readers": table,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    default = [reader for reader in READERS if reader != "pandas-pyarrow" or find_spec("pyarrow")]
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffled", action="store_true", help="users in random order: the worst case")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--child", nargs=2, metavar=("READER", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args.child[0], Path(args.child[1]))
        return
    readers = ["ours", *(reader for reader in args.readers if reader != "ours")]
    results = []
    with tempfile.TemporaryDirectory(prefix="agentrec-ingest-") as folder:
        for lines in args.lines:
            result = compare(lines, args.repeats, readers, Path(folder), args.seed, args.shuffled)
            results.append(result)
            size, packed = result["expanded_bytes"] / 1e6, result["gzip_bytes"] / 1e6
            print(f"{lines:,} lines, {size:,.0f} MB ({packed:,.0f} MB gz)")
            for reader, row in result["readers"].items():
                clocks = "   ".join(
                    f"{name} {row[clock]:6.2f} s, {row[f'{clock}_times_ours']:5.2f} x ours"
                    f" ({row[f'{clock}_times_ours_range'][0]:.2f}..{row[f'{clock}_times_ours_range'][1]:.2f})"
                    for name, clock in (("wall", "seconds"), ("cpu", "cpu_seconds"))
                )
                memory = f"peak {row['peak_mb']:6,.0f} MB (imports {row['import_mb']:,.0f})"
                print(f"  {reader:14} {clocks}   {memory}", flush=True)
    report = {"cpus": os.cpu_count(), "python": platform.python_version(), "runs": results}
    if args.out:
        temporary = args.out.with_name(f".{args.out.name}.tmp")
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(temporary, args.out)


if __name__ == "__main__":
    main()
