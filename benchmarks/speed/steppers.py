"""Learners in processes of their own: what `benchmarks.speed.workers.Worker` makes and asks for steps or gradients."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.llm.packing import packs
from benchmarks.speed import ceilings
from benchmarks.speed.learners import LEARNERS, Ours, Setup
from benchmarks.speed.workload import SHAPES

OURS, TRL = "ours", "trl"
PARTS = ("rollout", "update", "all", "processor")
"""What a step is timed by: its parts, the whole, and the seconds of all cores."""
ROWS = (2, 4, 8, 16, 32, 64)
"""How many rows at a time TRL tries."""


class Stepper:
    """A learner in its own process, asked by word.

    Args:
        name: Of `LEARNERS`.
        setup: What it is made with.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self.learner = LEARNERS[name](setup)
        self._expected = self.learner.workload.transcripts()
        self._setup = setup

    def __call__(self, word: str) -> Any:
        """What was asked for.

        Args:
            word: "step": seconds of a step by `PARTS`, and the "norm" of its gradient; "work": the least work of a
                step, and the ceilings.
        """
        return self._work() if word == "work" else self._step()

    def _step(self) -> dict[str, float]:
        used = time.process_time()
        step = self.learner.step()
        used = time.process_time() - used
        wrong = sum(a != b for a, b in zip(step.transcripts, self._expected, strict=True))
        if wrong:
            raise RuntimeError(f"{wrong} of {len(self._expected)} transcripts are not what the script says")
        seconds = (step.rollout, step.update, step.rollout + step.update, used)
        return {**dict(zip(PARTS, seconds, strict=True)), "norm": step.norm}

    def _work(self) -> dict[str, Any]:
        if not isinstance(self.learner, Ours):
            raise TypeError("only our transcripts are counted")
        setup, shape, dtype = self._setup, SHAPES[self._setup.size], getattr(torch, self._setup.dtype)
        records = self.learner.play().records
        return {
            "rollout": asdict(ceilings.least(shape, self.learner.workload, dtype.itemsize)),
            "update": asdict(ceilings.least_update(shape, records)),
            "computed_tokens": sum(pack.tokens for pack in packs(records, setup.micro_tokens)),
            "ceilings": asdict(ceilings.measure(setup.device, dtype)),
        }


class Agreement:
    """Learners that learn in one process, one after the other, to see that their gradients are the same."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._first: NDArray[np.float32] | None = None

    def __call__(self, name: str) -> float:
        """How far the gradient is from that of the first learner that was asked, over the length of that one."""
        stepper = Stepper(name, self._setup)
        watch = stepper.learner.watch
        watch.keep = True
        stepper("step")
        gradient = watch.gradient
        assert gradient is not None
        del stepper, watch
        _empty()  # the next learner wants the GPU's memory
        if self._first is None:
            self._first = gradient
        return float(np.linalg.norm(gradient - self._first) / np.linalg.norm(self._first))


class Layouts:
    """TRL with different numbers of rows at a time."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._warm = False

    def __call__(self, rows: int) -> float:
        """Seconds of an update; infinite where memory does not hold it."""
        try:
            if not self._warm:  # the first step of a process is slower
                self._step(rows)
                self._warm = True
            return self._step(rows)
        except torch.OutOfMemoryError:
            return math.inf
        finally:
            _empty()

    def _step(self, rows: int) -> float:
        return float(Stepper(TRL, replace(self._setup, trl_rows=rows))("step")["update"])


def _empty() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
