"""Train the embedded policy for two steps of list-wise GRPO: the whole loop, small enough for a laptop.

A run that means something has `groups` 32 or more and some hundred steps: see the page on training.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from agents.llm.policy import Policy
from algos.learner import Learner
from algos.listwise_grpo import ListwiseGRPO
from algos.training import Training


def main(out: Path) -> None:
    """Train, then load what was saved."""
    algorithm = ListwiseGRPO(groups=2, group_size=4)
    training = Training(algorithm, out=out, model="tiny", steps=2, evaluate_every=2, evaluate_tasks=8, threads=1)
    figures = Learner(training).train()
    print({name: round(figures[name], 3) for name in ("reward", "reward_spread", "valid/ndcg@10") if name in figures})
    policy = Policy.from_pretrained(out / "model")
    print(sum(weight.numel() for weight in policy.parameters()), "weights in", out / "model")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as folder:
            main(Path(folder) / "run")
