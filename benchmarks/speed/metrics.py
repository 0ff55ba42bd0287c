"""Speed of `agentrec_env.metrics` beside ranx on the same runs: `python benchmarks/speed/metrics.py`.

Both answer the same question in turns within one process, so that a slow moment of the machine meets both; the figure
is the median of the ratios. ranx compiles its functions at their first use (tens of seconds): that is done before the
clock starts. Needs ranx, from the dev extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentrec_env.metrics import evaluate, judge, parse

METRICS = ("hit@1", "hit@10", "ndcg@5", "ndcg@10", "mrr", "map@10", "recall@10", "precision@10")
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One question, put to both: the functions return {metric: value per query}."""

    name: str
    ours: Callable[[], Values]
    peer: Callable[[], Values]


@dataclass(frozen=True)
class Timing:
    """Seconds a call, and how many times faster than the peer, over interleaved repeats."""

    case: str
    ours_ms: float
    peer_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int


def cases(queries: int, depth: int, catalogue: int, rng: np.random.Generator) -> list[Case]:
    """Integer arrays as a benchmark has them, dictionaries as a user has them, and both read in before."""
    import ranx

    theirs = [name.replace("hit", "hit_rate") for name in METRICS]

    def peer(qrels: Any, run: Any) -> Values:
        values: Values = ranx.evaluate(qrels, run, theirs, return_mean=False)
        return {name.replace("hit_rate", "hit"): value for name, value in values.items()}

    made = []
    for positives in (1, 5):
        ranked = np.argsort(rng.random((queries, catalogue)), axis=1)[:, :depth]
        relevant = np.argsort(rng.random((queries, catalogue)), axis=1)[:, :positives]
        relevant[::2, 0] = ranked[::2, rng.integers(depth)]  # half the queries have a hit for certain
        for row in np.flatnonzero([len(set(row)) < positives for row in relevant.tolist()]):
            relevant[row] = np.delete(np.arange(positives + 1), 0)
        made.append(_arrays(f"integer arrays, {positives} relevant", relevant, ranked, peer))
        made += _dictionaries(f"{positives} relevant", relevant, ranked, peer)
    return made


def _arrays(name: str, relevant: Any, ranked: Any, peer: Callable[[Any, Any], Values]) -> Case:
    # ranx takes arrays of (item, score) pairs, best first.
    falling = np.broadcast_to(np.arange(ranked.shape[1], 0, -1.0), ranked.shape)
    qrels = np.stack([relevant, np.ones_like(relevant)], axis=2).astype(np.float64)
    run = np.stack([ranked, falling], axis=2)
    return Case(name, lambda: evaluate(relevant, ranked, METRICS), lambda: peer(qrels, run))


def _dictionaries(name: str, relevant: Any, ranked: Any, peer: Callable[[Any, Any], Values]) -> list[Case]:
    import ranx

    keys = [f"q{row:07}" for row in range(len(ranked))]
    qrels = {key: {f"i{item}": 1 for item in row} for key, row in zip(keys, relevant.tolist(), strict=True)}
    run = {
        key: {f"i{item}": float(len(row) - place) for place, item in enumerate(row)}
        for key, row in zip(keys, ranked.tolist(), strict=True)
    }
    judged, their_qrels, their_run = judge(qrels, run), ranx.Qrels(qrels), ranx.Run(run)
    parsed = [(name, parse(name)) for name in METRICS]
    return [
        Case(
            f"dictionaries, {name}",
            lambda: evaluate(qrels, run, METRICS),
            lambda: peer(ranx.Qrels(qrels), ranx.Run(run)),
        ),
        Case(
            f"read in before, {name}",
            lambda: {name: judged.values(metric.measure, metric.k) for name, metric in parsed},
            lambda: peer(their_qrels, their_run),
        ),
    ]


def measure(case: Case, repeats: int) -> Timing:
    """Check that both agree, warm up, then take turns."""
    ours, theirs = case.ours(), case.peer()
    for name in METRICS:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-9, err_msg=f"{case.name}: {name}")
    pairs = np.array([(_seconds(case.ours), _seconds(case.peer)) for _ in range(repeats)])
    ratios = pairs[:, 1] / pairs[:, 0]
    ours_ms, peer_ms = np.median(pairs, axis=0) * 1e3
    return Timing(
        case.name,
        float(ours_ms),
        float(peer_ms),
        float(np.median(ratios)),
        float(ratios.min()),
        float(ratios.max()),
        repeats,
    )


def _seconds(call: Callable[[], Values]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print the timings; `--out FILE` also writes them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--depth", type=int, default=20, help="items in each list")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the timings here as JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="unsafe cast from uint64")
    made = cases(args.queries, args.depth, 5 * args.depth, np.random.default_rng(args.seed))
    timings = [measure(case, args.repeats) for case in made]
    print(f"{args.queries:,} queries of {args.depth} items, {len(METRICS)} metrics; times faster than ranx [min … max]")
    for t in timings:
        spread = f"[{t.ratio_low:.1f} … {t.ratio_high:.1f}]"
        print(f"  {t.case:28} {t.ours_ms:8.2f} ms   ranx {t.peer_ms:8.2f} ms   {t.ratio:6.1f}x {spread}")
    if args.out:
        document = {
            "peer": "ranx",
            "queries": args.queries,
            "depth": args.depth,
            "metrics": METRICS,
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__},
            "timings": [asdict(timing) for timing in timings],
        }
        partial = args.out.with_name(args.out.name + ".partial")
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, args.out)


if __name__ == "__main__":
    main()
