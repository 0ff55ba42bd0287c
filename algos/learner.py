"""The loop of reinforcement learning, for any algorithm: episodes, credit, update, evaluation, checkpoint, log.

    from algos.learner import Learner
    from algos.listwise_grpo import ListwiseGRPO
    from algos.training import Training

    figures = Learner(Training(ListwiseGRPO(groups=8), model="runs/warm/best", steps=100)).train()

A run is a folder: config.json, metrics.jsonl, timings.jsonl, tensorboard/, episodes/ and transcripts/ of evaluations,
checkpoints/, and the policies best/ and model/ with their model cards, which are sources for `Policy.from_pretrained`.
It can be killed at any moment and resumed: on a CPU, weights and metrics are the same to the bit. A checkpoint holds no
state of a random generator, as there is none: all that is drawn comes from the seed and the number of the step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, TypeVar

import torch

from agentrec_env.data.world import World
from agentrec_env.vector import RecVectorEnv
from agents.llm.card import Card
from agents.llm.lora import LoRA
from agents.llm.policy import Policy
from algos.algorithm import Algorithm
from algos.card import model_card
from algos.checkpoint import Checkpoints, State, optimizer_tensors, restore_optimizers, restore_weights
from algos.collapse import Watch
from algos.config import record_config
from algos.distributed import Ranks
from algos.evaluation import Evaluation, keep_episodes, write_transcripts
from algos.interrupt import Interrupt, Stopped
from algos.memory import peak_memory
from algos.rollout import Rollouts
from algos.runlog import METRICS, RunLog
from algos.stage import Stage
from algos.training import FREE, Training
from algos.update import Updater

CHECKPOINTS = "checkpoints"
TARGET = "valid/ndcg@10"
"""What the best policy is chosen by."""
T = TypeVar("T")


class Learner:
    """One run. Make it, then `train`.

    Args:
        training: Settings, the algorithm's among them.
        policy: What is trained, in place of what the settings say.
        world: What is played in, in place of the data that the settings name.
        ranks: The processes of the run, as `algos.distributed.joined` gives them.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: A folder that does not fit the settings; says what to do.
        PolicyLoadError: The model cannot be loaded.
    """

    def __init__(
        self,
        training: Training[Any],
        policy: Policy | None = None,
        world: World | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.training = training
        self.algorithm: Algorithm = training.algorithm
        self.ranks = ranks or Ranks()
        if self.ranks.first and not training.dry_run:
            record_config(training, training.out, training.resume, FREE, (METRICS, CHECKPOINTS))
            for rest in training.out.glob(".*-????????"):  # of a policy that was being saved when a process was killed
                if rest.name.startswith((".best-", ".model-")):
                    shutil.rmtree(rest, ignore_errors=True)
        if training.threads is not None:
            torch.set_num_threads(training.threads)
        self.envs = _environment(training, training.env.task_split, world)
        self.policy = policy or self._load()
        self.updater = Updater(self.policy, self.algorithm, training, self.ranks)
        self.evaluation: Evaluation | None = None
        if training.evaluate_every:
            valid = _environment(training, "valid", world)
            self.evaluation = Evaluation(valid, self.policy, training, self.ranks)
        self.checkpoints = Checkpoints(training.out / CHECKPOINTS, training.keep, self.ranks)
        self.step = 0
        """Steps done."""
        self.stopped = False
        """Whether `train` ended early because the process was asked to stop."""
        self.history: dict[int, float] = {}
        """N@10 on valid tasks after so many steps."""
        self._interrupt = Interrupt()
        self._watch = Watch()
        self._log: RunLog | None = None
        self._saved: int | None = None
        self._judged: tuple[int, Mapping[str, float]] | None = None
        rollouts = Rollouts(self.envs, self.policy, training, self.ranks)
        check = self._interrupt.check
        self.stage = Stage(self.envs, self.policy, training, self.ranks, rollouts, check, self._together, self._say)
        self.ranks.wait()  # until the first has looked at the folder
        if training.resume and self.checkpoints.steps():
            self._restore(self.checkpoints.load(like=self.updater.weights))

    def train(self) -> Mapping[str, float]:
        """Run to the end, or until the process is asked to stop; the figures of the last evaluation, or step.

        Raises:
            RuntimeError: Losses are not finite again and again, or all episodes of a step fail.
            torch.OutOfMemoryError: Not even one episode fits.
        """
        figures: Mapping[str, float] = {}
        with ExitStack() as stack:
            stack.enter_context(self._interrupt)
            if self.ranks.first:
                self._log = stack.enter_context(RunLog(self.training.out, self.training.steps, self.step))
            self._say(self._opening())
            try:
                while True:
                    if self._is_due():
                        figures = self._evaluate()
                    if self.step >= self.training.steps or self._is_settled():
                        break
                    figures = self._advance()
                    if self.step % self.training.checkpoint_every == 0:
                        self._save()
            except Stopped:
                self.stopped = True
                self._save()
                self._say(f"stopped after step {self.step:,}; go on with --resume")
            else:
                self._save()
                self.updater.spread.save(self.training.out / "model", self._card())
                self._say(f"the policy is in {self.training.out / 'model'}")
        self._log = None
        return figures

    def stop(self) -> None:
        """Ask for a stop at the next safe point, as SIGTERM does."""
        self._interrupt.ask()

    def _advance(self) -> dict[str, float]:
        """One step: play, learn, log."""
        begin = time.perf_counter()
        rollout = self.algorithm.rollout(self.step, self.stage)
        played = time.perf_counter()
        tally = self.updater.update(rollout.batch, rollout.groups, self.step)
        tally.join(rollout.figures)
        tokens = sum(self.ranks.gather(rollout.batch.num_tokens))
        figures = tally.over(self.ranks).means() | {"sampled_tokens": float(tokens)}
        ended = time.perf_counter()
        timings = {
            "seconds/rollout": played - begin,
            "seconds/update": ended - played,
            "tokens_per_second": tokens / (ended - begin),
            "memory_gib": peak_memory(self.policy.device),
            "micro_tokens": float(self.updater.room.tokens),
        }
        if self._log is not None:
            self._log.log(self.step, figures, timings)
            shown = [f"{name} {figures[name]:.3f}" for name in ("reward", "preference/loss") if name in figures]
            shown += [f"invalid {100 * figures['invalid']:.1f} %"] if "invalid" in figures else []
            text = ", ".join([*shown, f"{timings['tokens_per_second']:,.0f} tokens/s"])
            self._log.advance(self.step, text)
            for warning in self._watch.look(figures):
                self._say(f"warning, step {self.step + 1:,}: {warning}")
        self.step += 1
        return figures

    def _is_due(self) -> bool:
        """Whether the policy is judged now: every so often, and at the end."""
        every = self.training.evaluate_every
        return bool(every) and (self.step % every == 0 or self.step == self.training.steps)

    def _evaluate(self) -> dict[str, float]:
        """Judge the policy; keep it where it is the best so far.

        Its line in the log has the number of the step that is next, and a checkpoint is older than it: whoever resumes
        from there judges once more, and finds the same.
        """
        assert self.evaluation is not None
        begin = time.perf_counter()
        evaluation = self.evaluation
        episodes = self._together(lambda: evaluation.play(self._interrupt.check))
        figures = evaluation.judge(episodes)
        everyone = evaluation.together(episodes)
        earlier = [value for step, value in self.history.items() if step < self.step]
        self.history[self.step] = figures[TARGET]
        self._judged = self.step, figures
        if not earlier or figures[TARGET] > max(earlier):
            self.updater.spread.save(self.training.out / "best", self._card())
        if self._log is not None:
            keep_episodes(everyone, self.training.out, self.step, evaluation.world)
            if self.training.transcripts:
                write_transcripts(episodes[: self.training.transcripts], self.training.out, self.step)
            self._log.log(self.step, figures, {"seconds/evaluate": time.perf_counter() - begin})
            self._say(
                f"after {self.step:,} steps, valid tasks: N@10 {figures[TARGET]:.4f} "
                f"[{figures[TARGET + '/low']:.4f}, {figures[TARGET + '/high']:.4f}], hit@1 {figures['valid/hit@1']:.3f}"
                f", answered {100 * figures['valid/answered']:.1f} %, {figures['valid/calls']:.1f} calls"
            )
        return figures

    def _card(self) -> Card:
        """Of the policy as it is now, with figures where it was judged since the last update."""
        figures = self._judged[1] if self._judged and self._judged[0] == self.step else {}
        return model_card(self.training, self.step, figures, self.envs.world)

    def _is_settled(self) -> bool:
        """Whether the policy has not become better for as long as the settings have patience."""
        if not self.training.patience or not self.history:
            return False
        best = max(self.history, key=lambda step: (self.history[step], -step))
        return sum(step > best for step in self.history) >= self.training.patience

    def _together(self, work: Callable[[], T]) -> T:
        """What `work` gives, which plays.

        Raises:
            Stopped: Some rank was asked to stop.
        """
        done: list[T] = []
        with suppress(Stopped), self.updater.spread.whole():
            done.append(work())
        if self.ranks.any(self._interrupt.asked):
            raise Stopped
        return done[0]

    def _opening(self) -> str:
        weights = sum(weight.numel() for weight in self.updater.weights.values())
        return (
            f"{type(self.algorithm).__name__}: {weights:,} weights to train, steps {self.step:,} to "
            f"{self.training.steps:,}, {self.envs.num_tasks:,} tasks of {self.envs.world.protocol}"
        )

    def _say(self, text: str) -> None:
        if self._log is not None:
            self._log.say(text)

    def _load(self) -> Policy:
        training = self.training
        rank = training.lora_rank
        return Policy.from_pretrained(
            training.model,
            lora=LoRA(rank, 2.0 * rank, seed=training.seed) if rank else None,
            dtype=training.dtype,
            device=training.device or self.ranks.device,
            value_head=self.algorithm.uses_values,
            gradient_checkpointing=training.gradient_checkpointing,
        )

    def _save(self) -> None:
        """Keep the run as it is now."""
        if self._saved != self.step:
            if self._log is not None:
                self._log.sync()
            self.checkpoints.save(self._state())
        self._saved = self.step
        self.ranks.wait()

    def _state(self) -> State:
        updater = self.updater
        tensors = {f"model/{name}": weight for name, weight in updater.weights.items()}
        values = {
            "memory": dict(updater.memory),
            "skipped": updater.skipped,
            "bad": updater.bad,
            "history": {str(step): value for step, value in self.history.items()},
            "watch": self._watch.state(),
        }
        return State(self.step, tensors | optimizer_tensors(updater.optimizers, updater.weights), values)

    def _restore(self, state: State) -> None:
        updater = self.updater
        restore_weights(updater.weights, state.tensors)
        restore_optimizers(updater.optimizers, updater.weights, state.tensors)
        self.step = self._saved = state.step
        updater.memory = {name: float(value) for name, value in state.values["memory"].items()}
        updater.skipped, updater.bad = int(state.values["skipped"]), int(state.values["bad"])
        self.history = {int(step): float(value) for step, value in state.values["history"].items()}
        if "watch" in state.values:  # not in checkpoints of earlier versions
            self._watch.restore(state.values["watch"])


def _environment(training: Training[Any], task_split: str, world: World | None) -> RecVectorEnv:
    settings = replace(training.env, task_split=task_split)
    arguments = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    return RecVectorEnv(training.rows, world=world, **arguments)
