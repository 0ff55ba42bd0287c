"""Supervised warm start: a policy learns to write what another agent wrote, before it is rewarded for anything.

Behaviour cloning on transcripts (`algos.demonstrations`): the mean negative log-likelihood of the tokens that the
teacher would have sampled, over all such tokens of a step, however the step is cut into micro-batches. Where some
episodes are questions, it is the mean over those of lists and that over those of questions, weighted by episodes.

    python -m algos.sft --out runs/warm --model new --teacher teacher --steps 2000
    python -m algos.sft --out runs/warm --model new --teacher teacher --steps 2000 --resume
    python -m algos.sft --out runs/qwen --model Qwen/Qwen3-0.6B --lora-rank 16 --lr 1e-4 --teacher scripted

A run is a folder: config.json, metrics.jsonl, timings.jsonl, tensorboard/, episodes/ of the evaluations, checkpoints/,
and the policies best/ and model/ with their model cards, which are sources for `Policy.from_pretrained`. It can be
killed at any moment and resumed: on a CPU the weights are the same to the bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro

from agentrec_env.data.world import World
from agentrec_env.scenario import Config as Environment
from agentrec_env.types import Episode, StopReason
from agentrec_env.vector import RecVectorEnv
from agents.llm.agent import LLMAgent
from agents.llm.chat import Chat
from agents.llm.fresh import NewModel, new_policy
from agents.llm.lora import LoRA
from agents.llm.packing import Pack
from agents.llm.policy import Policy
from agents.llm.transcript import Transcript
from agents.play import play
from agents.protocol import make
from algos.card import model_card
from algos.checkpoint import Checkpoints, State, optimizer_tensors, restore_optimizers, restore_weights
from algos.config import Optimization, record_config
from algos.demonstrations import Demonstrations, Lessons, Scribe, overview
from algos.distributed import processes
from algos.evaluation import judged_tasks, keep_episodes
from algos.interrupt import Interrupt, Stopped
from algos.memory import peak_memory
from algos.questions import pair_environment
from algos.repeats import Repeats, unlikelihood
from algos.room import Room
from algos.runlog import METRICS, RunLog

MAX_BAD_STEPS = 10
"""Steps in a row with a loss or gradient that is not finite, after which a run gives up."""
_OWN_MODEL, _CHECKPOINTS = "start", "checkpoints"
FREE = ("out", "resume", "dry_run", "keep", "checkpoint_every", "rows", "micro_tokens")
"""Settings that a resumed run may change, as `algos.training.FREE`."""


@dataclass(frozen=True)
class SFTConfig:
    """A supervised warm start from any agent's episodes."""

    out: Path = Path("runs/sft")
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in that folder."""
    dry_run: bool = False
    """Print the plan and the memory it needs, and stop."""
    model: str = "tiny"
    """What is trained: "new" (random weights of the shape below), "tiny" (the embedded model), a folder or a hub id."""
    lora_rank: int = 0
    """Train an adapter of this rank instead of all weights; 0: all weights."""
    teacher: str = "teacher"
    """Whose episodes are learned from: any agent's name or "module:attr"; "llm" with `above` or `best_of` is rejection
    sampling."""
    teacher_args: str = "{}"
    """JSON of the teacher's arguments, such as {"ranker": "ease", "variety": 0}."""
    steps: int = 2000
    """Updates."""
    episodes: int = 16
    """Episodes an update."""
    questions: int = 0
    """Of which so many are questions about two items, as progressive preference refinement asks them; a policy that
    knows lists alone answers those with lists. They weigh as much as their share of the episodes, though their few
    tokens are a small part of all."""
    repeats: float = 0.0
    """Weight of the unlikelihood of naming a candidate twice in an answer (`algos.repeats`), for each sampled token of
    the lists; 0: it is left out. Questions take nothing from it, as they do from what the lists themselves weigh."""
    micro_tokens: int = 8192
    """Tokens computed at a time; halved when memory runs out. It changes memory and speed, not the update."""
    evaluate_every: int = 500
    """Steps between evaluations on valid tasks, greedy; 0: none."""
    evaluate_tasks: int = 200
    """Valid tasks played."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    rows: int = 32
    """Episodes played at once, by the teacher and in evaluation."""
    seed: int = 0
    """Of everything: tasks, candidates, the teacher, new weights."""
    dtype: Literal["float32", "mixed", "bfloat16"] = "float32"
    """"mixed": products in bfloat16, for CPUs and GPUs that have it; "bfloat16": weights too, for adapters, whose own
    weights stay float32. Weights in bfloat16 that are trained themselves hardly move at small rates."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in best/ and model/."""
    device: str | None = None
    """A GPU where there is one, by default."""
    threads: int | None = None
    """Threads of torch; results are bit-identical for equal numbers."""
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(default_factory=Optimization)
    lessons: tyro.conf.OmitArgPrefixes[Lessons] = field(default_factory=Lessons)
    new: NewModel = field(default_factory=NewModel)
    env: Environment = field(default_factory=Environment)

    def __post_init__(self) -> None:
        for name in ("steps", "episodes", "micro_tokens", "checkpoint_every", "keep", "rows", "evaluate_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        for name in ("lora_rank", "evaluate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0; got {getattr(self, name)}")
        if self.repeats < 0:
            raise ValueError(f"repeats is a weight, at least 0; got {self.repeats}")
        if not 0 <= self.questions < self.episodes:
            raise ValueError(f"questions are some of the {self.episodes} episodes of an update; got {self.questions}")
        if self.questions and (self.env.mode != "rank" or self.env.num_candidates == "catalog"):
            raise ValueError(
                "questions stand beside lists of numbered candidates; leave them at 0 in other modes and in a catalogue"
            )
        if self.questions and self.lessons.prompt == "none":
            raise ValueError("prompt='none' hides what a question asks; leave questions at 0 in such first lessons")
        if self.repeats and self.env.num_candidates == "catalog":
            raise ValueError("repeats is for candidates with numbers, and a catalogue has none; leave repeats at 0")
        if self.model == "new" and self.lora_rank:
            raise ValueError("an adapter on random weights learns nothing; leave lora_rank out with model='new'")
        try:
            arguments = json.loads(self.teacher_args)
        except ValueError as error:
            raise ValueError(f"teacher_args is a JSON object; got {self.teacher_args!r} ({error})") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"teacher_args is a JSON object; got {self.teacher_args!r}")


class SFT:
    """One run. Make it, then `train`.

    Args:
        config: of the run.
        policy: what is trained, in place of what the config says.
        world: a world in memory, in place of the data and pools of the config.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: a folder that does not fit the config, or several processes of
            torchrun; says what to do.
    """

    def __init__(self, config: SFTConfig, policy: Policy | None = None, world: World | None = None) -> None:
        if processes() > 1:
            raise ValueError(f"a warm start is one process; torchrun began {processes()}: leave torchrun out")
        self.config = config
        if not config.dry_run:
            record_config(config, config.out, config.resume, FREE, (METRICS, _CHECKPOINTS))
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._world = world
        self.envs = RecVectorEnv(config.rows, world=world, **_arguments(config.env))
        self.policy = policy or self._policy()
        self.chat = Chat(self.policy.tokenizer, self.envs.tool_schemas)
        pool = config.env.num_candidates
        self.repeats = Repeats(self.policy.tokenizer, int(pool)) if config.repeats else None
        self.demonstrations = self._demonstrations(self.envs)
        self.questions = self._demonstrations(pair_environment(self.envs)[0]) if config.questions else None
        self.weights = self.policy.trainable()
        self.optimizers = config.optimization.optimizers(self.weights)
        self._room = Room(self.policy, config.micro_tokens)
        self.checkpoints = Checkpoints(config.out / _CHECKPOINTS, config.keep)
        self.step = 0
        self.skipped = 0
        """Updates left out because they were not finite."""
        self._bad = 0
        self.stopped = False
        """Whether `train` ended early because the process was asked to stop."""
        self.best = -math.inf
        """Best N@10 on valid tasks so far."""
        self._judge: tuple[RecVectorEnv, RecVectorEnv | None, LLMAgent] | None = None
        self._interrupt = Interrupt()
        if config.resume and self.checkpoints.steps():
            self._restore(self.checkpoints.load())

    def train(self) -> Mapping[str, float]:
        """Run to the end, or until the process is asked to stop; the figures of the last step and evaluation.

        Raises:
            RuntimeError: losses are not finite again and again.
            torch.OutOfMemoryError: not even one transcript fits.
        """
        config = self.config
        figures: Mapping[str, float] = {}
        with RunLog(config.out, config.steps, self.step) as log, self._interrupt:
            log.say(
                f"{sum(w.numel() for w in self.weights.values()):,} weights to train, {config.steps:,} steps of "
                f"{config.episodes} episodes of {config.teacher!r} on {self.envs.world.protocol}"
            )
            judged: dict[str, float] = {}
            while True:
                if self._due():
                    begin = time.perf_counter()
                    try:
                        judged = self.evaluate()
                    except Stopped:
                        break
                    log.log(self.step, judged, {"seconds/evaluate": time.perf_counter() - begin})
                    log.say(_sentence(self.step, judged))
                    if judged["valid/ndcg@10"] > self.best:
                        self.best = judged["valid/ndcg@10"]
                        self._keep("best", judged)
                if self.step == config.steps or self._interrupt.asked:
                    break
                figures = self._advance(log)
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    log.sync()
                    self.checkpoints.save(self._state())
            self.stopped = self._interrupt.asked
            if self.stopped:
                log.sync()
                self.checkpoints.save(self._state())
                log.say(f"stopped after step {self.step:,}; go on with --resume")
            else:
                self._keep("model", judged)
                log.say(f"the policy is in {config.out / 'model'}")
        return {**figures, **judged}

    def stop(self) -> None:
        """Ask `train`, from another thread or a signal, to end with a checkpoint at the next safe point."""
        self._interrupt.ask()

    def update(self, lists: Sequence[Transcript], questions: Sequence[Transcript] = ()) -> dict[str, float]:
        """One update from transcripts of both kinds; nothing changes where the loss or its gradient is not finite."""
        config = self.config
        rate = config.optimization.set_rate(self.optimizers, self.step, config.steps)
        transcripts = [*lists, *questions]
        share = config.questions / config.episodes if questions else 0.0
        weights = torch.tensor(
            [(1 - share) / _sampled(lists)] * len(lists) + [share / _sampled(questions)] * len(questions)
        )
        weights = weights.to(self.policy.device)

        def backward(cut: Sequence[Pack]) -> tuple[float, float, float]:
            self._clear()
            loss = asked = repeats = 0.0
            for pack in cut:
                own = len(pack.target)
                logprobs = self.policy(pack if self.repeats is None else self.repeats.add(pack, transcripts)).logprobs
                number = pack.index[:, 0].to(self.policy.device)
                parts = -logprobs[:own] * weights[number]
                again = unlikelihood(logprobs[own:]).sum() / _sampled(lists)
                (parts.sum() + config.repeats * again).backward()
                loss += float(parts.detach().sum())
                asked += float(parts.detach()[number >= len(lists)].sum())
                repeats += float(again.detach())
            return loss, asked, repeats

        loss, asked, repeats = self._room.fit(transcripts, backward)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), config.optimization.clip))
        if math.isfinite(loss + repeats) and math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self._bad = 0
        else:
            self.skipped += 1
            self._bad += 1
            if self._bad >= MAX_BAD_STEPS:
                raise RuntimeError(
                    f"{self._bad} updates in a row were not finite (loss {loss}, gradient norm {norm}); use a smaller "
                    "lr, or dtype='float32'"
                )
        self._clear()
        return {
            "loss": loss if math.isfinite(loss) else -1.0,
            **({"questions": asked / share if math.isfinite(asked) else -1.0} if questions else {}),
            "repeats": repeats if math.isfinite(repeats) else -1.0,
            "gradient_norm": norm if math.isfinite(norm) else -1.0,
            "rate": rate,
            "skipped": float(self.skipped),
        }

    def evaluate(self) -> dict[str, float]:
        """Greedy play on valid tasks with their fixed pools; the episodes are kept in the folder of the run.

        Raises:
            Stopped: the process was asked to stop meanwhile.
        """
        if self._judge is None:
            envs = RecVectorEnv(
                self.config.rows, world=self._world, **_arguments(replace(self.config.env, task_split="valid"))
            )
            pairs = pair_environment(envs)[0] if self.config.questions else None
            self._judge = envs, pairs, LLMAgent(policy=self.policy, temperature=0.0, max_episode_tokens=2**31)
        envs, pairs, agent = self._judge
        episodes = self._played(envs, agent)
        keep_episodes(episodes, self.config.out, self.step, envs.world)
        figures = {
            "valid/ndcg@10": _mean(episode.metrics["ndcg@10"] for episode in episodes),
            "valid/hit@1": _mean(episode.metrics["hit@1"] for episode in episodes),
            "valid/answered": _mean(episode.stop is StopReason.ANSWERED for episode in episodes),
            "valid/reward": _mean(episode.reward for episode in episodes),
            "valid/calls": _mean(episode.calls for episode in episodes),
        }
        if pairs is not None:
            asked = self._played(pairs, agent)
            figures["valid/questions_answered"] = _mean(episode.stop is StopReason.ANSWERED for episode in asked)
            figures["valid/questions_right"] = _mean(episode.rank == 1 for episode in asked)
        if self.policy.device.type == "cuda":
            agent.free()
        return figures

    def _played(self, envs: RecVectorEnv, agent: LLMAgent) -> list[Episode]:
        """Episodes of the valid tasks that the policy is judged on."""
        tasks = judged_tasks(envs.num_tasks, min(self.config.evaluate_tasks, envs.num_tasks))
        return play(envs, agent, tasks, self.config.seed, on_episode=self._interrupt.check)

    def _clear(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    def _keep(self, name: str, judged: Mapping[str, float]) -> None:
        """Save the policy to a folder of the run, with the figures of its evaluation on its card."""
        card = model_card(self.config, self.step, judged, self.envs.world)
        self.policy.save_pretrained(self.config.out / name, self.config.save_dtype, card=card)

    def _advance(self, log: RunLog) -> dict[str, float]:
        """One step; its figures."""
        begin = time.perf_counter()
        asked = self.config.questions
        lists = self.demonstrations.batch(self.step, self.config.episodes - asked)
        questions = [] if self.questions is None else self.questions.batch(self.step, asked)
        transcripts = [*lists, *questions]
        drawn = time.perf_counter()
        figures = {**self.update(lists, questions), **overview(transcripts)}
        ended = time.perf_counter()
        timings = {
            "seconds/teacher": drawn - begin,
            "seconds/update": ended - drawn,
            "tokens_per_second": sum(map(len, transcripts)) / (ended - begin),
            "memory_gib": peak_memory(self.policy.device),
            "micro_tokens": float(self._room.tokens),
        }
        log.log(self.step, figures, timings)
        log.advance(self.step, f"loss {figures['loss']:.3f}, {timings['tokens_per_second']:,.0f} tokens/s")
        self.step += 1
        return figures

    def _demonstrations(self, envs: RecVectorEnv) -> Demonstrations:
        """What the teacher does in `envs`."""
        config = self.config
        teacher = make(config.teacher, **json.loads(config.teacher_args))
        scribe = Scribe(self.policy.tokenizer, self.chat, envs.scenario.rules.text)
        return Demonstrations(envs, teacher, scribe, config.lessons, config.seed)

    def _due(self) -> bool:
        """Whether the policy is to be judged now."""
        every = self.config.evaluate_every
        return bool(every) and self.step > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _policy(self) -> Policy:
        config = self.config
        device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if config.model != "new":
            lora = LoRA(config.lora_rank, 2.0 * config.lora_rank, seed=config.seed) if config.lora_rank else None
            return Policy.from_pretrained(config.model, lora=lora, dtype=config.dtype, device=device)
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            own = Path(folder if config.dry_run else config.out) / _OWN_MODEL
            if not own.is_dir():  # kept, as the tokenizer belongs to the run
                new_policy(config.new, self.envs, config.seed).save_pretrained(own)
            return Policy.from_pretrained(own, dtype=config.dtype, device=device)

    def _state(self) -> State:
        tensors = {f"model/{name}": weight for name, weight in self.weights.items()}
        values = {"skipped": self.skipped, "bad": self._bad, "best": self.best if math.isfinite(self.best) else None}
        return State(self.step, tensors | optimizer_tensors(self.optimizers, self.weights), values)

    def _restore(self, state: State) -> None:
        restore_weights(self.weights, state.tensors)
        restore_optimizers(self.optimizers, self.weights, state.tensors)
        self.step = state.step
        self.skipped, self._bad = int(state.values["skipped"]), int(state.values["bad"])
        best = state.values["best"]
        self.best = -math.inf if best is None else float(best)


def _arguments(config: Environment) -> dict[str, Any]:
    """The keyword arguments of an environment config."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _sampled(transcripts: Sequence[Transcript]) -> int:
    """Tokens that are learned, at least 1."""
    return max(1, sum(int(transcript.mask.sum()) for transcript in transcripts))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _sentence(step: int, figures: Mapping[str, float]) -> str:
    asked = (
        f"; questions answered {100 * figures['valid/questions_answered']:.1f} %, right "
        f"{100 * figures['valid/questions_right']:.1f} %"
        if "valid/questions_answered" in figures
        else ""
    )
    return (
        f"after step {step:,}, valid tasks: N@10 {figures['valid/ndcg@10']:.3f}, hit@1 {figures['valid/hit@1']:.3f}, "
        f"answered {100 * figures['valid/answered']:.1f} %, {figures['valid/calls']:.1f} calls{asked}"
    )


if __name__ == "__main__":
    from algos.command import main

    raise SystemExit(main("sft", prog="python -m algos.sft"))
