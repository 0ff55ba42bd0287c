"""Three ways to do a whole step of GRPO: ours, ours on rows that share nothing, and TRL's GRPOTrainer.

Each plays the scripted rollout of `benchmarks.speed.contenders`, is paid the same rewards, and takes one step of the
same AdamW on the same loss: what `algos.listwise_grpo` has by default is TRL's "dapo" without division by the standard
deviation. Each says what was sampled and how long its gradient was, so that one can see that all did the same.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agents.llm.chat import Prompt
from agents.llm.policy import Policy
from algos.batch import Batch
from algos.config import Optimization
from algos.distributed import Ranks
from algos.listwise_grpo import ListwiseGRPO
from algos.training import Training
from algos.update import Updater
from benchmarks.speed import contenders
from benchmarks.speed.workload import Workload

OPTIMIZATION = Optimization(lr=1e-6, warmup=0, final_lr=1.0, weight_decay=0.0, beta2=0.99, clip=1e6)
"""A constant rate, so small that the script stays the likeliest; a clip that computes the norm and lets it pass."""


@dataclass(frozen=True)
class Setup(contenders.Setup):
    """What a step is made with."""

    greedy: bool = True
    """An unsure model has gradients that say something, and all that play greedily still write the same."""
    micro_tokens: int = 16_384
    """Tokens that ours computes at a time, in an update: about what TRL does with 8 rows."""
    trl_rows: int = 8
    """Rows that TRL computes at a time, in an update: `per_device_train_batch_size`."""


@dataclass(frozen=True)
class Step:
    """One step."""

    rollout: float
    """Seconds from the weights to tokens, rewards and advantages."""
    update: float
    """Seconds from there to changed weights."""
    transcripts: list[list[int]]
    """Ids of each row, prompt included."""
    norm: float
    """Of the gradient."""


class Learner(Protocol):
    """Does steps with a model."""

    workload: Workload
    watch: Watch

    def step(self) -> Step:
        """One step; the weights are changed."""
        ...


class Watch:
    """Looks at the gradient right before an optimizer step.

    Args:
        optimizer: Whose.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.norm = float("nan")
        self.keep = False
        """Whether to keep a copy of the next gradient."""
        self.gradient: NDArray[np.float32] | None = None
        """All weights' in the order of the optimizer."""
        optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        found = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        self.norm = float(torch.nn.utils.get_total_norm(found))
        if self.keep:
            self.gradient = torch.cat([grad.flatten().float().cpu() for grad in found]).numpy()


class Ours(contenders.Ours):
    """`agents.llm.engine.Engine` and `algos.update.Updater`, as `algos.learner` has them take turns."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        plan = setup.plan
        self.policy = Policy(self.model, self.workload.tokenizer)
        algorithm = ListwiseGRPO(groups=plan.groups, group_size=plan.members)
        with tempfile.TemporaryDirectory() as folder:  # an update writes nothing
            training = Training(
                algorithm, out=Path(folder), micro_tokens=setup.micro_tokens, optimization=OPTIMIZATION, seed=setup.seed
            )
        self.updater = Updater(self.policy, algorithm, training, Ranks())
        self.watch = Watch(self.updater.optimizers[0])

    def step(self) -> Step:
        """Play, then learn."""
        plan = self.setup.plan
        start = self.now()
        played = self.play()
        if self.setup.device != "cpu":
            self.engine.free()  # as `algos.rollout` does
        groups = np.repeat(np.arange(plan.groups), plan.members).tolist()
        batch = Batch.of(played.records, self.workload.rewards, groups, self.policy.device)
        between = self.now()
        self.updater.update(batch, plan.groups, 0)
        return Step(between - start, self.now() - between, played.transcripts, self.watch.norm)


class Plain(Ours):
    """The same without shared prefixes: each row reads its own prompt, and an update computes padded rows, all of them
    in all layers."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.policy.shares = False
        self.model.set_attn_implementation("sdpa")

    def prompts(self) -> list[Prompt]:
        """One a row, which the engine takes for different ones."""
        return [Prompt(_Own(prompt.ids), 0) for prompt in super().prompts()]


class _Own(tuple[int, ...]):
    """Ids that are equal to no others."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Trl(contenders.Trl):
    """`GRPOTrainer(environment_factory=…).train()` of one step, from its beginning to its end as callbacks see it.

    Rollout is `_generate_and_score_completions`, rewards and advantages included. Old log-probabilities are not
    computed, as they are those of the update itself; nothing is logged or saved.
    """

    def make_trainer(self) -> Any:
        """Notes what was sampled, and when."""
        assert isinstance(self.setup, Setup)
        trl: Any = importlib.import_module("trl")
        callback: Any = importlib.import_module("transformers").TrainerCallback
        learner = self

        class Trainer(trl.GRPOTrainer):  # type: ignore[misc]
            def _generate(self, prompts: list[Any]) -> Any:
                made = super()._generate(prompts)
                learner.transcripts = [[*prompt, *rest] for prompt, rest in zip(made[0], made[1], strict=True)]
                return made

            def _generate_and_score_completions(self, inputs: Any) -> Any:
                scored = super()._generate_and_score_completions(inputs)
                learner.played = learner.now()
                return scored

        class Clock(callback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                learner.begun = learner.now()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                learner.ended = learner.now()

        optimizer = OPTIMIZATION.optimizers(dict(self.model.named_parameters()))[0]
        self.watch = Watch(optimizer)
        self.transcripts: list[list[int]] = []
        self.begun = self.played = self.ended = 0.0
        trainer = self.configured(
            Trainer,
            optimizer=optimizer,
            per_device_train_batch_size=self.setup.trl_rows,
            gradient_accumulation_steps=self.setup.plan.rows // self.setup.trl_rows,
            max_steps=1,
            loss_type="dapo",
            scale_rewards="none",
            beta=0.0,
            epsilon=ListwiseGRPO.clip_low,
            epsilon_high=ListwiseGRPO.clip_high,
            max_grad_norm=OPTIMIZATION.clip,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
        )
        trainer.add_callback(Clock())
        trainer.remove_callback(importlib.import_module("transformers").PrinterCallback)
        return trainer

    def step(self) -> Step:
        """One call of `train`."""
        self.turn.clear()
        self.trainer.train()
        return Step(self.played - self.begun, self.ended - self.played, self.transcripts, self.watch.norm)


LEARNERS: Mapping[str, Callable[[Setup], Learner]] = {"ours": Ours, "plain rows": Plain, "trl": Trl}
