"""Four ways to play the same scripted rollout: our engine, Hugging Face `generate` twice, and TRL's trainer.

Each is made once, outside the clock, and then plays the whole rollout as often as asked, from texts of prompts to the
last token of every transcript. Where a contender is asked to use tools it does so: the turn's text is parsed, the tool
answers, and the answer is turned into ids.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import DynamicCache, GenerationConfig

from agentrec_env.actions import parse
from agents.llm.chat import Prompt
from agents.llm.decoder import Decoder
from agents.llm.engine import Engine
from agents.llm.sampling import Sampling
from agents.llm.transcript import Transcript, TranscriptWriter
from benchmarks.speed.workload import SCRIPT, SHAPES, Plan, Workload, look, scripted_model

CERTAIN = 16.0
WEAK = 0.6
"""Certainty at which a token of the script has a probability of about 0.1: log-probabilities that say something."""


@dataclass(frozen=True)
class Setup:
    """What a contender is made with."""

    size: str = "1m"
    plan: Plan = field(default_factory=Plan)
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    peer_rows: int | None = None
    """Rows that `generate` gets at once; None: all."""
    greedy: bool = False
    """The likeliest token is taken and the model is unsure, so that ids and log-probabilities can be compared; else
    temperature 1 and a model that is sure, which is what is timed."""


@dataclass(frozen=True)
class Played:
    """One rollout."""

    seconds: float
    transcripts: list[list[int]]
    """Ids of each row, prompt included."""
    records: tuple[Transcript, ...] = ()
    """The same with masks and log-probabilities, as a learner wants them; none where a contender has none."""


class Contender(Protocol):
    """Plays rollouts of a workload with a model."""

    workload: Workload
    model: Any

    def play(self, rows: int | None = None) -> Played:
        """Play one; `rows`: only the first so many conversations."""
        ...


class _Base:
    """The workload, the model, and the tool as our environment would run it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        shape = SHAPES[setup.size]
        self.workload = Workload(setup.plan, shape.vocabulary, setup.seed)
        self.model: Any = scripted_model(
            shape,
            self.workload,
            certainty=WEAK if setup.greedy else CERTAIN,
            seed=setup.seed,
            dtype=getattr(torch, setup.dtype),
            device=setup.device,
        )

    def answer(self, row: int, turn: int, sampled: Sequence[int]) -> list[int]:
        """The ids that follow a turn: its text is read as an action, and the tool's answer written down."""
        calls = parse(self.workload.chat.text(sampled), num_candidates=20)
        if not isinstance(calls, list) or calls[0].name != "look":
            raise RuntimeError(f"row {row} did not call the tool in turn {turn}: {self.workload.chat.text(sampled)!r}")
        return self.workload.chat.observe(self.workload.observations[row][turn], sampled)

    def now(self) -> float:
        """Seconds, once the device has done all that was asked of it."""
        if self.setup.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


class _Clocked:
    """A decoder with a clock around it: seconds of reading prompts and observations, and of decoding."""

    def __init__(self, decoder: Decoder, now: Callable[[], float]) -> None:
        self._decoder, self._now = decoder, now
        self.prefill = self.decode = 0.0

    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> torch.Tensor:
        start = self._now()
        logits = self._decoder.begin(rows, prompts)
        self.prefill += self._now() - start
        return logits

    def feed(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> torch.Tensor:
        start = self._now()
        logits = self._decoder.feed(rows, ids)
        if all(len(more) == 1 for more in ids):
            self.decode += self._now() - start
        else:
            self.prefill += self._now() - start
        return logits

    def release(self, row: int) -> None:
        self._decoder.release(row)

    def refresh(self) -> None:
        self._decoder.refresh()

    def free(self) -> None:
        self._decoder.free()


class Ours(_Base):
    """`agents.llm.engine.Engine`. Taking over changed weights is in the time, as it is needed once a training step."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        plan = setup.plan
        sampling = Sampling(
            temperature=0.0 if setup.greedy else 1.0,
            max_turn_tokens=2 * len(SCRIPT),
            max_episode_tokens=plan.longest,
        )
        self.engine = Engine(
            self.model,
            self.workload.tokenizer,
            plan.rows,
            sampling,
            stop_ids=[self.workload.end],
            stops=(),
            dtype=getattr(torch, setup.dtype),
        )

    def play(self, rows: int | None = None) -> Played:
        """Rows are answered when they are ready, whatever the others do."""
        engine, plan = self.engine, self.setup.plan
        start = self.now()
        engine.refresh()
        prompts = self.prompts()[:rows]
        writers = [TranscriptWriter(prompt) for prompt in prompts]
        turns = [0] * len(prompts)
        engine.begin(range(len(prompts)), prompts, range(len(prompts)))
        left = len(prompts)
        while left:
            asking, answers = [], []
            for done in engine.run():
                sampled = done.ids.tolist()
                writers[done.row].sampled(sampled, done.logprobs.tolist(), done.stop)
                if turns[done.row] == plan.turns:
                    engine.release(done.row)
                    left -= 1
                    continue
                answers.append(self.answer(done.row, turns[done.row], sampled))
                writers[done.row].observed(answers[-1])
                turns[done.row] += 1
                asking.append(done.row)
            if asking:
                engine.extend(asking, answers)
        records = tuple(writer.freeze() for writer in writers)
        return Played(self.now() - start, [record.ids.tolist() for record in records], records)

    def prompts(self) -> list[Prompt]:
        """One a row."""
        return self.workload.prompts()

    def split(self) -> dict[str, float]:
        """Seconds of one rollout by part, and in all; clocks cost a little, so these are not the seconds of `play`."""
        decoder = self.engine._decoder  # no public way in: only this clock wants one
        clock = self.engine._decoder = _Clocked(decoder, self.now)
        try:
            seconds = self.play().seconds
        finally:
            self.engine._decoder = decoder
        rest = seconds - clock.prefill - clock.decode
        return {"seconds": seconds, "prefill": clock.prefill, "decode": clock.decode, "sampling, text, tools": rest}


class _Generate(_Base):
    """`generate` of transformers: sdpa attention, only the last position's logits, nothing returned but ids."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.pad = int(self.workload.tokenizer.pad_token_id)
        self.config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=not setup.greedy,
            max_new_tokens=2 * len(SCRIPT),
            eos_token_id=self.workload.end,
            pad_token_id=self.pad,
            use_cache=True,
            disable_compile=True,
            **({} if setup.greedy else {"temperature": 1.0, "top_p": 1.0, "top_k": 0}),
        )

    def play(self, rows: int | None = None) -> Played:
        """All rows at once, or as many as the setup says."""
        start = self.now()
        prompts = [prompt.ids for prompt in self.workload.prompts()[:rows]]
        at_once = self.setup.peer_rows or len(prompts)
        transcripts: list[list[int]] = []
        with torch.inference_mode():
            for first in range(0, len(prompts), at_once):
                transcripts += self.rollout(prompts[first : first + at_once], first)
        return Played(self.now() - start, transcripts)

    def rollout(self, prompts: Sequence[Sequence[int]], first: int) -> list[list[int]]:
        """The transcripts of the rows from `first` on that begin with `prompts`."""
        raise NotImplementedError

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [B, T], padded on the left."""
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.setup.device), mask.to(self.setup.device)

    def sampled(self, new: torch.Tensor) -> list[list[int]]:
        """The ids of each row as far as the end of its turn."""
        rows = new.tolist()
        return [row[: row.index(self.workload.end) + 1] if self.workload.end in row else row for row in rows]


class Reprefill(_Generate):
    """Each turn gives `generate` the whole conversation anew, as most rollout loops do."""

    def rollout(self, prompts: Sequence[Sequence[int]], first: int) -> list[list[int]]:
        """All rows take their turn together."""
        transcripts = [list(prompt) for prompt in prompts]
        for turn in range(self.setup.plan.turns + 1):
            ids, mask = self.padded(transcripts)
            out = self.model.generate(ids, attention_mask=mask, generation_config=self.config)
            for row, sampled in enumerate(self.sampled(out[:, ids.shape[1] :])):
                transcripts[row] += sampled
                if turn < self.setup.plan.turns:
                    transcripts[row] += self.answer(first + row, turn, sampled)
        return transcripts


class Cached(_Generate):
    """`generate` with its key-value cache kept from turn to turn.

    What a turn adds is padded on the left to the longest of the batch, so padding lies between the turns; the mask
    hides it, and positions are counted from the mask. A StaticCache was about as fast as the default DynamicCache.
    """

    def rollout(self, prompts: Sequence[Sequence[int]], first: int) -> list[list[int]]:
        """All rows take their turn together."""
        transcripts = [list(prompt) for prompt in prompts]
        accepted = inspect.signature(self.model.forward).parameters
        name = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24
        kept = {name: DynamicCache(config=self.model.config)}
        ids, mask = self.padded(prompts)
        for turn in range(self.setup.plan.turns + 1):
            out = self.model.generate(ids, attention_mask=mask, generation_config=self.config, **kept)
            added = out[:, ids.shape[1] :]
            answers = []
            for row, sampled in enumerate(self.sampled(added)):
                transcripts[row] += sampled
                if turn < self.setup.plan.turns:
                    answers.append(self.answer(first + row, turn, sampled))
                    transcripts[row] += answers[-1]
            if answers:
                ends = (added == self.workload.end).long()
                spoken = (ends.cumsum(1) - ends) == 0  # as far as a row's end, and not the padding behind it
                more, seen = self.padded(answers)
                ids = torch.cat([out, more], dim=1)
                mask = torch.cat([mask, spoken.long(), seen], dim=1)
        return transcripts


class _Finished(Exception):
    """Carries a rollout out of TRL's trainer before it computes rewards."""

    def __init__(self, prompts: list[list[int]], completions: list[list[int]]) -> None:
        super().__init__("the rollout is done")
        self.transcripts = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]


class Trl(_Base):
    """The rollout of TRL's `GRPOTrainer(environment_factory=…)` with `generate` of transformers.

    Timed is `_generate_and_score_completions` from its first line to the return of `_generate`: environments reset,
    prompts written by the chat template, every call of `generate`, responses parsed, tools called, their answers
    written by the template, and the lengths it logs. What follows there (padding, log-probabilities, rewards) is not.
    Calls after the third are left unanswered by `max_tool_calling_iterations`.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        plan = setup.plan
        self.rows = [{"prompt": self.workload.messages(group), "group": group} for group in range(plan.groups)]
        self.turn: Counter[int] = Counter()
        """Conversations of each group that have begun."""
        self.trainer = self.make_trainer()

    def make_trainer(self) -> Any:
        """Leaves a rollout as soon as it is done."""
        trl: Any = importlib.import_module("trl")

        class Trainer(trl.GRPOTrainer):  # type: ignore[misc]
            def _generate(self, prompts: list[Any]) -> Any:
                made = super()._generate(prompts)
                raise _Finished(made[0], made[1])

        return self.configured(Trainer, per_device_train_batch_size=self.setup.plan.rows)

    def configured(self, kind: Any, *, optimizer: torch.optim.Optimizer | None = None, **more: Any) -> Any:
        """A trainer of class `kind` that plays the workload; `more` are arguments of TRL's GRPOConfig."""
        trl: Any = importlib.import_module("trl")
        datasets: Any = importlib.import_module("datasets")
        setup, plan = self.setup, self.setup.plan
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():  # nothing is written
            warnings.simplefilter("ignore")
            arguments = trl.GRPOConfig(
                output_dir=folder,
                num_generations=plan.members,
                max_completion_length=plan.longest - plan.prompt,
                max_tool_calling_iterations=plan.turns,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                generation_kwargs={"do_sample": False} if setup.greedy else None,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=setup.device == "cpu",
                report_to=[],
                disable_tqdm=True,
                seed=setup.seed,
                **more,
            )
            return kind(
                model=self.model,
                args=arguments,
                train_dataset=datasets.Dataset.from_list(self.rows),
                processing_class=self.workload.tokenizer,
                environment_factory=_environment(self.workload, self.turn),
                optimizers=(optimizer, None),
            )

    def play(self, rows: int | None = None) -> Played:
        """As `training_step` would, in training mode."""
        self.trainer.model.train()
        self.turn.clear()
        asked = [row for row in self.rows for _ in range(self.setup.plan.members)]
        start = self.now()
        try:
            self.trainer._generate_and_score_completions(asked[:rows])
        except _Finished as finished:
            return Played(self.now() - start, finished.transcripts)
        raise RuntimeError("TRL's trainer computed rewards without calling _generate")


def _environment(workload: Workload, begun: Counter[int]) -> type[Any]:
    """A class of environments as TRL wants it: its public methods are the tools; `begun` counts members by group."""
    members = workload.plan.members

    class Environment:
        def reset(self, group: int, **columns: Any) -> None:
            self._row = group * members + begun[group] % members
            begun[group] += 1
            self._answers = iter(workload.observations[self._row])

        def get_reward(self) -> float:
            return workload.rewards[self._row]

        def look(self, page: int) -> str:
            return str(next(self._answers))

    Environment.look.__doc__ = look.__doc__
    return Environment


CONTENDERS: Mapping[str, Callable[[Setup], Contender]] = {
    "ours": Ours,
    "generate": Reprefill,
    "generate-cached": Cached,
    "trl": Trl,
}
