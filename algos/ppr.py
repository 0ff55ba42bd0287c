r"""Progressive preference refinement, stage 2 of AgenticRec (arXiv:2603.21613): pairs that the policy ranked wrongly.

    figures = Learner(Training(PPR(), model="runs/stage1/best", steps=100)).train()
    python -m algos.ppr --out runs/ppr --model runs/stage1/best --steps 100

The policy's own lists of the training tasks are mined for violations (`algos.pairs`): something stands above the item
that the user took, c+. Of what does, one c- is drawn, and two questions are asked of each pair, tools allowed: which of
the two is the user MORE likely to choose (c+), and LESS (c-). A question is a group of list-wise GRPO, whose credit and
loss these are, paid 1 for the right letter, 0 for the wrong one and -1 for none (the environment's reward "pair").

**The paper's, and the defaults:** one round of mining, on all training tasks; a random c- above c+, or from the whole
top ten where c+ was missed; both directions; the 0/1 reward; GRPO as in stage 1.

**Where the paper is silent:** lists are mined greedily, each from a pool of its own that evaluation never sees. Lists
that are not valid tell of no violation. The two questions of a pair follow one another, in the same step where steps
have an even number of them, with their items in the same order; c+ is A in one pair and B in the next, so that over any
two pairs each letter is right as often as the other, in both directions. One pass over V violations takes
2 V / `groups` steps ("1 epoch"; `pair/passes` in the log).

**A policy that never saw a question**, as one that was trained on lists alone, answers with lists, which pay nothing:
no group teaches anything, and the log warns of dropped groups. Let its warm start teach both:

    python -m algos.sft --out runs/warm --model FOLDER --questions 4

A small model first needs a run of questions alone, all but a few, in which three of four ask for the more likely item
(`--episodes 64 --questions 60 --less 0.25 --early 1`; agents/llm/tiny/README.md has the whole course and why).

**The bound.** With D = s(c+) - s(c-) and P(more) = P(less) = sigmoid(D), the paper's L = -log P(more) - log P(less) =
2 log(1 + exp(-D)) is convex in D and at least 2 log 2 where the pair is ranked wrongly, so it bounds the number of
wrong pairs. That L belongs to log P. Rewards of 0 and 1 follow P: (1 - P(more)) + (1 - P(less)) = 2 sigmoid(-D) bounds
the number too (it is at least 1 where D < 0), but is not convex: its slope vanishes where a pair is very wrong, which
is what mined pairs are. `objective="likelihood"` follows log P from the same samples: what a trajectory is worth is
divided by its group's mean (MaxRL, arXiv:2602.02710). With the mean baseline, the expected step is the gradient of
log P = -sum_k (1 - P)^k / k cut after G - 1 terms, that is (1 - (1 - P)^(G - 1)) / P times the gradient of P: like the
reward at G = 2, and like log P as G grows (tests/algos/test_ppr.py: exactly so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from agentrec_env.prompts import Direction
from algos.advantages import group_size, group_sum
from algos.batch import Batch
from algos.listwise_grpo import ListwiseGRPO
from algos.pairs import Mining, Round, Violation, mine, serve
from algos.questions import Letter, Question
from algos.requests import Requests, draw
from algos.rollout import Rollout
from algos.stage import Stage

DIRECTIONS: dict[str, tuple[Direction, ...]] = {"both": ("more", "less"), "more": ("more",), "less": ("less",)}


@dataclass(frozen=True)
class PPR(ListwiseGRPO):
    """PPR, stage 2 of AgenticRec: list-wise GRPO on pairs that the policy ranked wrongly. The defaults are the paper's.
    An `algos.algorithm.Algorithm`.

    Raises:
        ValueError: A setting outside its range, or two that do not fit together.
    """

    directions: Literal["both", "more", "less"] = "both"
    """Which questions are asked of a pair."""
    objective: Literal["reward", "likelihood"] = "reward"
    """What is raised: the probability of the right letter (paper), or its logarithm, for which the paper's bound
    holds. Answers that are no letter count as wrong in the second."""
    lists: float = 0.0
    """Share of a step's groups that are list-wise tasks as in stage 1, so that lists are not forgotten."""
    mining: tyro.conf.OmitArgPrefixes[Mining] = field(default_factory=Mining)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lists < 1:
            raise ValueError(f"lists is a share of the groups, from 0 to less than 1; got {self.lists}")
        if self.questions_a_step < 1:
            raise ValueError(f"lists={self.lists} leaves none of {self.groups} groups for pairs; lower it")
        if self.std and self.objective == "likelihood":
            raise ValueError("std divides away what objective='likelihood' multiplies by; set one of them")

    @property
    def questions_a_step(self) -> int:
        """Groups a step that ask about a pair."""
        return self.groups - round(self.lists * self.groups)

    def rollout(self, step: int, stage: Stage) -> Rollout:
        """Questions about pairs, played by the policy; before the first of a round, the policy is mined."""
        now = self.mining.round(step, stage.steps)
        found = mine(stage, self.mining, now.number)
        rollout = stage.play(self.requests(step, now, found, stage.num_tasks, stage.seed), step)
        asked = (step + 1 - now.begin) * self.questions_a_step
        rollout.figures.add("pair/passes", asked / (len(found) * len(DIRECTIONS[self.directions])))
        return rollout

    def requests(self, step: int, now: Round, found: Sequence[Violation], num_tasks: int, seed: int) -> Requests:
        """The groups of a step: those that ask for lists first.

        Args:
            step: Number of the step.
            now: Its round.
            found: What was mined in it.
            num_tasks: Training tasks.
            seed: Of the run.
        """
        directions = DIRECTIONS[self.directions]
        asked = self.questions_a_step
        places = (step - now.begin) * asked + np.arange(asked)
        pairs = places // len(directions)
        total = -(-(now.end - now.begin) * asked // len(directions))
        served, chosen = serve(found, self.mining, now, pairs, total, seed)
        letters: tuple[Letter, Letter] = ("A", "B")
        first = int(np.random.default_rng([seed, 11, now.number]).integers(2))
        questions = [
            Question(
                found[each].above[negative],
                directions[place % len(directions)],
                letters[(place // len(directions) + first) % 2],
            )
            for each, negative, place in zip(served.tolist(), chosen.tolist(), places.tolist(), strict=True)
        ]
        lists = draw(step, self.groups - asked, self.group_size, num_tasks, seed)
        seeds = np.random.default_rng([seed, 12, step]).integers(2**31, size=asked)
        return Requests(
            np.concatenate([lists.tasks, [found[each].task for each in served]]),
            np.concatenate([lists.seeds, seeds]),
            self.group_size,
            (*(None for _ in lists.tasks), *questions),
        )

    def worth(self, batch: Batch) -> Tensor:
        """float64 [B]: the reward; with objective "likelihood", of pairs: 1 over the share of the group that is right,
        for whoever is right, and 0 for all others."""
        if self.objective == "reward":
            return batch.rewards
        right = (batch.rewards > 0).double()
        share = group_sum(right, batch) / group_size(batch)
        worth = torch.where(right > 0, 1 / share[batch.group], 0.0)
        return worth if batch.pair is None else torch.where(batch.pair, worth, batch.rewards)


if __name__ == "__main__":
    from algos.command import main

    raise SystemExit(main("ppr", prog="python -m algos.ppr"))
