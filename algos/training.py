"""The settings of a training run: what is common to all algorithms, beside the algorithm's own.

The command lines of `algos.listwise_grpo` and `algos.ppo` are made from this dataclass, and a resolved copy stands
beside each run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

import tyro

from agentrec_env.scenario import Config as Environment
from algos.algorithm import check_choices
from algos.config import Optimization

A = TypeVar("A")

FREE = ("out", "resume", "dry_run", "keep", "checkpoint_every", "rows", "micro_tokens", "shard")
"""Settings that a resumed run may change: the updates are the same, up to rounding."""


@dataclass(frozen=True)
class Training(Generic[A]):
    """A run of reinforcement learning.

    Raises:
        ValueError: A setting outside its range.
    """

    algorithm: tyro.conf.OmitArgPrefixes[A]
    out: Path = Path("runs/rl")
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in that folder."""
    dry_run: bool = False
    """Print the plan and the memory it needs, and stop."""
    model: str = "tiny"
    """What is trained: "tiny" (the embedded model), a folder (best/ or model/ of a run, say), or a hub id."""
    lora_rank: int = 0
    """Train an adapter of this rank instead of all weights; 0: all weights."""
    steps: int = 100
    """Rollouts, each followed by one or more updates."""
    temperature: float = 1.0
    """Of sampling in training (the paper: 0.6 for a model of 4 B). Losses speak of the same distribution."""
    max_turn_tokens: int = 256
    """Tokens of an action; more end the episode as overflow."""
    max_episode_tokens: int = 4096
    """Tokens of an episode, prompt included; likewise."""
    micro_tokens: int = 8192
    """Tokens computed at a time; halved when memory runs out. It changes memory and speed, not the update."""
    value_lr: float | None = None
    """Learning rate of a value head; None: that of the other weights."""
    evaluate_every: int = 10
    """Steps between evaluations on valid tasks, the first before any training; 0: none."""
    evaluate_tasks: int = 200
    """Valid tasks played, always the same, with their fixed pools."""
    evaluate_temperature: float = 0.0
    """Of sampling in evaluation; 0: greedy."""
    patience: int = 0
    """Stop after so many evaluations in a row without a better N@10; 0: never."""
    transcripts: int = 4
    """Whole transcripts written an evaluation."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    rows: int = 64
    """Episodes played at once."""
    seed: int = 0
    """Of everything: tasks, pools, samples."""
    dtype: Literal["float32", "mixed", "bfloat16"] = "float32"
    """"mixed": products in bfloat16, for CPUs and GPUs that have it; "bfloat16": weights too, for adapters, whose own
    weights stay float32. Weights in bfloat16 that are trained themselves hardly move at small rates."""
    gradient_checkpointing: bool = False
    """Compute each layer again on the way back: less memory, about a third more time."""
    shard: bool = False
    """With several processes: cut weights, gradients and moments into one piece a process (FSDP2), in place of copies.
    Saves most of the memory of updates; costs two gathers of all weights a micro-batch. Rollouts have them whole."""
    device: str | None = None
    """A GPU where there is one, by default."""
    threads: int | None = None
    """Threads of torch; results on a CPU are bit-identical for equal numbers."""
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(
        default_factory=lambda: Optimization(lr=1e-4, warmup=5, final_lr=0.1, weight_decay=0.0, beta2=0.99)
    )
    env: Environment = field(default_factory=Environment)

    def __post_init__(self) -> None:
        check_choices(self)
        least = {
            **dict.fromkeys(("steps", "micro_tokens", "evaluate_tasks", "checkpoint_every", "keep", "rows"), 1),
            **dict.fromkeys(("max_turn_tokens", "max_episode_tokens"), 1),
            **dict.fromkeys(("lora_rank", "evaluate_every", "evaluate_temperature", "patience", "transcripts"), 0),
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is at least {bound}; got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is positive: greedy play explores nothing; got {self.temperature}")
        if self.value_lr is not None and not self.value_lr > 0:
            raise ValueError(f"value_lr is positive, or None for that of the other weights; got {self.value_lr}")
        if self.shard and self.lora_rank:
            raise ValueError(
                f"shard cuts up weights that are trained, and an adapter (lora_rank={self.lora_rank}) has few: leave "
                "one of them out"
            )
        if self.shard and self.optimization.method == "muon":
            raise ValueError('Muon needs matrices whole, and shard cuts them: set method="adamw", or leave shard out')
        if self.patience and not self.evaluate_every:
            raise ValueError("patience counts evaluations, and evaluate_every=0 makes none; set one of them")
