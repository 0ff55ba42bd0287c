"""`agentrec train ALGORITHM`: the algorithms' own command lines, by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agentrec_env.registry import UnknownNameError
from algos import ALGORITHMS

HELP = """usage: agentrec train ALGORITHM [settings]

Train a language model to recommend. A run is a folder that can be killed at any moment and resumed.

algorithms:
{algorithms}
  module:attribute   a dataclass of yours that is an algos.algorithm.Algorithm

examples:
  agentrec train sft --out runs/warm --model tiny --teacher scripted --steps 200
  agentrec train grpo --out runs/grpo --model runs/warm/model --steps 100 --dry-run     plan and memory, nothing else
  agentrec train grpo --out runs/grpo --model runs/warm/model --steps 100
  agentrec train grpo --out runs/grpo --model runs/warm/model --steps 100 --resume      go on where it was stopped
  agentrec train ppr --out runs/ppr --model runs/grpo/best --steps 100
  agentrec train mine:MyAlgorithm --out runs/mine --steps 1
  torchrun --nproc-per-node 2 -m benchmarks.cli train grpo --out runs/two --model runs/warm/model --shard

agentrec train ALGORITHM --help lists its settings. The folder's best/ and model/ are policies: give them to
agentrec run --model, to agentrec train --model, or to transformers."""


def main(arguments: Sequence[str]) -> int:
    """Train by the algorithm that the first argument names; 0, or 2 where settings cannot be used."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:18} {ALGORITHMS.describe(name)}" for name in ALGORITHMS.names()]
        print(HELP.format(algorithms="\n".join(lines)))
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in ALGORITHMS:
        try:
            ALGORITHMS.get(name)  # before all that training needs is imported
        except UnknownNameError as error:
            print(f"agentrec train: {error}", file=sys.stderr)
            return 2
    from algos.command import main as train

    return train(name, rest)
