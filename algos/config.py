"""What all training commands are told alike: the optimizer and its schedule, and the record of a run's settings.

Settings are frozen dataclasses; the command line is made from them, and a resolved copy stands beside each run.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from algos import ALGORITHMS
from algos.muon import Muon

CONFIG = "config.json"
NAME = "name"
"""What `resolved` calls the algorithm's name; records of earlier versions lack it."""

BFLOAT16 = (
    "the weights that are trained are bfloat16, which keeps 8 significant bits: a step below about a 500th of a weight "
    "is rounded away, at lr 1e-6 nearly every one. Take dtype 'mixed', which keeps float32 weights, or an adapter "
    "(lora_rank), whose weights are float32"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Optimization:
    """The optimizer, with a linear warm-up and a cosine decay."""

    method: Literal["adamw", "muon"] = "adamw"
    """"muon" (Jordan et al., 2024): orthogonalised momentum for the matrices inside the model, AdamW for the rest.
    A small model that is trained from random weights learns in about half the steps with it."""
    lr: float = 2e-3
    """Highest learning rate. About 2e-3 suits models of a few million weights, 1e-5 large ones, 1e-4 adapters."""
    matrix_lr: float = 0.03
    """Highest learning rate of Muon's matrices: about the spectral norm of an update."""
    warmup: int = 50
    """Steps in which the learning rate rises from 0."""
    final_lr: float = 0.02
    """Share of the learning rate that is left at the last step."""
    weight_decay: float = 0.1
    """Of matrices; vectors have none."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.98
    """Decay of the mean of squared gradients."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        for name in ("lr", "matrix_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.warmup < 0 or not 0 <= self.final_lr <= 1:
            raise ValueError(f"warmup is at least 0 and final_lr 0 to 1; got {self.warmup} and {self.final_lr}")

    def schedule(self, step: int, steps: int) -> float:
        """Share of the highest learning rate in `step`, 0..steps-1."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, steps - 1 - self.warmup)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    def optimizers(self, weights: Mapping[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
        """One or two optimizers that have each of `weights` once; `set_rate` before each step.

        Warns of weights in bfloat16, which most steps of a small rate do not move.
        """
        if any(weight.dtype == torch.bfloat16 for weight in weights.values()):
            logger.warning(BFLOAT16)
        inner = {
            name: w for name, w in weights.items() if self.method == "muon" and w.dim() == 2 and "embed" not in name
        }
        rest = [w for name, w in weights.items() if name not in inner]
        groups = [
            {"params": [w for w in rest if w.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [w for w in rest if w.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        made: list[torch.optim.Optimizer] = []
        if groups:
            made.append(torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2)))
        if inner:
            # Both decay by the same share of a weight: Muon's rate is larger.
            decay = self.weight_decay * self.lr / self.matrix_lr
            made.append(Muon(inner.values(), lr=self.matrix_lr, weight_decay=decay))
        return made

    def set_rate(self, optimizers: Sequence[torch.optim.Optimizer], step: int, steps: int) -> float:
        """Set the learning rates of `step`; the share of the highest ones that they are."""
        share = self.schedule(step, steps)
        for optimizer in optimizers:
            highest = self.matrix_lr if isinstance(optimizer, Muon) else self.lr
            for group in optimizer.param_groups:
                group["lr"] = highest * share
        return share


def resolved(config: Any) -> dict[str, Any]:
    """The fields of a dataclass of settings as JSON values, and the `NAME` of the algorithm that they are for."""
    result: dict[str, Any] = json.loads(json.dumps({NAME: algorithm_name(config), **asdict(config)}, default=str))
    return result


def algorithm_name(config: Any) -> str:
    """What `agentrec train` calls the algorithm of a run."""
    kind: type[Any] = type(getattr(config, "algorithm", config))
    registered = (name for name in ALGORITHMS.names() if ALGORITHMS.get(name) is kind)
    return next(registered, f"{kind.__module__}:{kind.__qualname__}")


def differences(held: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    """In what settings of a record, as `resolved`, differ from those of now; `free` ones are left out."""
    held = {NAME: now[NAME], **held}
    return [
        f"{name}: {held.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(held.keys() | now.keys())
        if name not in free and held.get(name) != now.get(name)
    ]


def record_config(config: Any, folder: Path, resume: bool, free: tuple[str, ...], traces: tuple[str, ...]) -> None:
    """Write the settings of a run beside it, or check that a resumed run has the same.

    Args:
        config: a dataclass.
        folder: of the run.
        resume: whether the run goes on.
        free: names of fields that may differ.
        traces: names in the folder that only a run which has begun leaves; without one it may be begun anew.

    Raises:
        FileExistsError: a new run in a folder that holds one.
        FileNotFoundError: nothing to resume.
        ValueError: settings that differ from those that the run began with; names them.
    """
    path = folder / CONFIG
    now = resolved(config)
    if not resume:
        if path.exists() and any((folder / name).exists() for name in traces):
            raise FileExistsError(f"{folder} holds a run already; go on with it with --resume, or give another --out")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{CONFIG}-new"
        temporary.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume (no {CONFIG}); start it without --resume")
    if different := differences(json.loads(path.read_text(encoding="utf-8")), now, free):
        raise ValueError(
            f"the run in {folder} began with other settings ({'; '.join(different)}); resume it with those, or start "
            "a new run in another --out"
        )
