"""Speed of supervised training: `algos.sft` beside a plain Hugging Face loop on the same model and transcripts.

    python benchmarks/speed/sft.py [--size 1m 3m] [--rounds 7] [--quick] [--out FILE.json]

The plain loop pads a batch to its longest transcript, labels all but the sampled tokens with -100, and calls
`model(input_ids, attention_mask, labels).loss.backward()`; ours is `SFT.update`. Both then clip the gradient and take a
step of the same AdamW. Model, data, their order and the type of the arithmetic are equal: float32, or float32 weights
with products in bfloat16, which is `torch.autocast` for the plain loop and `Policy(mixed=True)` for ours. The loss and
gradient of the first batch and the losses of all steps are compared in the same run.

There are two kinds of batches of 16 transcripts, a quarter of each sampled. "apart": 512 tokens each, nothing in
common, so nothing padded and nothing shared. "episodes": 384 to 512 tokens, of which the first 256 are the same, as a
system message is. Tokens a second count every token of every transcript, computed or not, but no padding.

Each has a process of its own, which gives its peak of memory (of the first kind, the larger), and they take turns;
figures are medians of the rounds with minimum and maximum, ratios are medians of ratios.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agents.llm.packing import packs
from agents.llm.policy import Policy
from agents.llm.transcript import Transcript, TurnSpan
from algos.config import Optimization
from algos.sft import SFT, SFTConfig
from benchmarks.speed.workers import Worker, cell, machine, ratios, spread, write_figures
from benchmarks.speed.workload import SHAPES, Plan, Workload, scripted_model

Kind = Literal["apart", "episodes"]
Arithmetic = Literal["float32", "mixed"]
KINDS: tuple[Kind, ...] = ("apart", "episodes")
OURS, PLAIN = "ours", "plain loop"
OPTIMIZATION = Optimization(method="adamw", lr=1e-3, warmup=0, final_lr=1.0)
"""A constant learning rate, so that both take the same steps."""
TURNS = 4
MOST_APART: Mapping[str, float] = {"float32": 1e-4, "mixed": 5e-2}
"""That the first loss may differ, and its gradient, as a share of its length; no time is printed beyond it. Losses of
later steps drift apart, as Adam's first steps take nearly the same length whatever the size of a gradient."""


@dataclass(frozen=True)
class Setup:
    """What is trained, and on how much."""

    size: str = "1m"
    arithmetic: Arithmetic = "float32"
    batch: int = 16
    """Transcripts of an update."""
    length: int = 512
    """Tokens of the longest transcript; a quarter is sampled, half of it is the common head of "episodes"."""
    device: str = "cpu"
    seed: int = 0


def transcripts(setup: Setup, kind: Kind, number: int) -> list[Transcript]:
    """Batch `number` of a kind: random tokens in `TURNS` turns that are `length` / 16 tokens each."""
    vocabulary, length = SHAPES[setup.size].vocabulary, setup.length
    generator = np.random.default_rng([setup.seed, number, KINDS.index(kind)])
    head = np.random.default_rng(setup.seed).integers(0, vocabulary, length // 2)
    made = []
    for _ in range(setup.batch):
        total = length if kind == "apart" else int(generator.integers(length * 3 // 4, length + 1))
        ids = generator.integers(0, vocabulary, total)
        shared = 0 if kind == "apart" else len(head)
        ids[:shared] = head[:shared]
        turn = length // 16
        prompt = total - 2 * TURNS * turn + turn  # from there on turns and observations of equal length alternate
        spans = tuple(TurnSpan(start, start + turn, "stop") for start in range(prompt, total, 2 * turn))
        mask = np.zeros(total, np.bool_)
        for span in spans:
            mask[span.start : span.end] = True
        made.append(Transcript(ids, mask, np.zeros(total, np.float32), prompt, min(shared, prompt), spans))
    return made


class Learner(Protocol):
    """Trains the model of a setup."""

    def gradient(self, batch: Sequence[Transcript]) -> tuple[float, NDArray[np.float32]]:
        """Loss, and its gradient by all weights, one after the other."""
        ...

    def update(self, batch: Sequence[Transcript]) -> float:
        """The loss before the update."""
        ...


class Ours:
    """`algos.sft.SFT.update`."""

    def __init__(self, setup: Setup) -> None:
        model, workload = _model(setup)
        self._policy = Policy(model, workload.tokenizer, mixed=setup.arithmetic == "mixed")
        with tempfile.TemporaryDirectory() as folder:  # an update writes nothing
            config = SFTConfig(
                out=Path(folder),
                teacher="random",
                micro_tokens=setup.batch * setup.length,
                rows=1,
                optimization=OPTIMIZATION,
            )
            self._sft = SFT(config, self._policy)

    def gradient(self, batch: Sequence[Transcript]) -> tuple[float, NDArray[np.float32]]:
        """As `SFT.update` has it before it clips."""
        total, loss = sum(int(transcript.mask.sum()) for transcript in batch), 0.0
        for pack in packs(batch, self._sft.config.micro_tokens, self._policy.shares):
            part = -self._policy(pack).logprobs.sum() / total
            part.backward()
            loss += float(part.detach())
        return loss, _take_gradient(self._policy.model)

    def update(self, batch: Sequence[Transcript]) -> float:
        """One update."""
        return self._sft.update(batch)["loss"]


class Plain:
    """The loop that most scripts write."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._model, workload = _model(setup)
        self._pad = int(workload.tokenizer.pad_token_id)
        self._model.train()
        weights, decay = list(self._model.parameters()), OPTIMIZATION.weight_decay
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": decay},
                {"params": [weight for weight in weights if weight.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=OPTIMIZATION.lr,
            betas=(OPTIMIZATION.beta1, OPTIMIZATION.beta2),
        )

    def gradient(self, batch: Sequence[Transcript]) -> tuple[float, NDArray[np.float32]]:
        """As `update` has it before it clips."""
        return self._backward(batch), _take_gradient(self._model)

    def update(self, batch: Sequence[Transcript]) -> float:
        """One update."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), OPTIMIZATION.clip)
        self._optimizer.step()
        return loss

    def _backward(self, batch: Sequence[Transcript]) -> float:
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), self._pad)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), -100)
        for row, transcript in enumerate(batch):
            known = torch.tensor(transcript.ids)
            ids[row, : len(known)], mask[row, : len(known)] = known, 1
            labels[row, : len(known)] = torch.where(torch.tensor(transcript.mask), known, -100)
        device = self._setup.device
        with torch.autocast(device, torch.bfloat16, enabled=self._setup.arithmetic == "mixed"):
            out = self._model(
                input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device), use_cache=False
            )
        out.loss.backward()
        return float(out.loss.detach())


def _model(setup: Setup) -> tuple[Any, Workload]:
    shape = SHAPES[setup.size]
    workload = Workload(Plan(groups=1, members=1), shape.vocabulary, setup.seed)
    return scripted_model(shape, workload, certainty=1.0, seed=setup.seed, device=setup.device), workload


def _take_gradient(model: Any) -> NDArray[np.float32]:
    parts = []
    for weight in model.parameters():
        parts.append(weight.grad.flatten().float().cpu())
        weight.grad = None
    return torch.cat(parts).numpy()


class Trainer:
    """A learner in its own process.

    Args:
        name: `OURS` or `PLAIN`.
        setup: What it trains.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self._learner: Learner = Ours(setup) if name == OURS else Plain(setup)
        self._setup = setup

    def __call__(self, kind: Kind, first: int, count: int) -> Any:
        """Seconds and losses of `count` updates from batch `first` on; with none, loss and gradient of that batch."""
        batches = [transcripts(self._setup, kind, first + place) for place in range(max(1, count))]
        if not count:
            return self._learner.gradient(batches[0])
        start = self._now()
        losses = [self._learner.update(batch) for batch in batches]
        return self._now() - start, losses

    def _now(self) -> float:
        if self._setup.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def compare(setup: Setup, rounds: int, updates: int, threads: int) -> dict[str, Any]:
    """Both learners in turns, on both kinds of batches."""
    result: dict[str, Any] = {"size": setup.size, "arithmetic": setup.arithmetic}
    with Worker(Trainer, (OURS, setup), threads) as ours, Worker(Trainer, (PLAIN, setup), threads) as plain:
        workers = {OURS: ours, PLAIN: plain}
        known = {name: worker.work(KINDS[0], 0, 0) for name, worker in workers.items()}
        (loss, gradient), (reference, expected) = known[OURS], known[PLAIN]
        result["loss_difference"] = abs(loss - reference)
        result["gradient_difference"] = float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))
        if not max(result["loss_difference"], result["gradient_difference"]) <= MOST_APART[setup.arithmetic]:
            raise RuntimeError(
                f"{setup.size}, {setup.arithmetic}: the first loss differs by {result['loss_difference']:.1e} and its "
                f"gradient by {result['gradient_difference']:.1e}; at most {MOST_APART[setup.arithmetic]:g} is allowed"
            )
        worst = 0.0
        for kind in KINDS:
            for worker in workers.values():
                worker.work(kind, 0, 1)
            seconds: dict[str, list[float]] = {name: [] for name in workers}
            tokens = []
            for number in range(rounds):
                first = 1 + number * updates
                losses = {}
                for name, worker in workers.items():
                    taken, losses[name] = worker.work(kind, first, updates)
                    seconds[name].append(taken)
                worst = max(worst, *(abs(a - b) for a, b in zip(losses[OURS], losses[PLAIN], strict=True)))
                batches = [transcripts(setup, kind, first + place) for place in range(updates)]
                tokens.append(sum(len(transcript) for batch in batches for transcript in batch))
            result[kind] = {
                name: {
                    "seconds": spread(values),
                    "tokens_per_s": spread(count / value for count, value in zip(tokens, values, strict=True)),
                }
                for name, values in seconds.items()
            }
            result[kind]["times_ours"] = ratios(seconds, OURS)[PLAIN]
            if kind == KINDS[0]:
                result["memory"] = {name: asdict(worker.memory()) for name, worker in workers.items()}
        result["largest_loss_difference"] = worst
    return result


def describe(result: Mapping[str, Any]) -> str:
    """Lines for people."""
    lines = [
        f"{result['size']}, {result['arithmetic']}: {SHAPES[result['size']].parameters:,} parameters; first loss equal"
        f" to within {result['loss_difference']:.1e}, its gradient to {result['gradient_difference']:.1e} of its"
        f" length, all losses to {result['largest_loss_difference']:.1e}"
    ]
    for kind in KINDS:
        for name in (OURS, PLAIN):
            memory = result["memory"][name]
            lines.append(
                f"  {kind:10}{name:12}{cell(result[kind][name]['tokens_per_s'], ',.0f'):>30} tokens/s"
                + (f"   {cell(result[kind]['times_ours'])} times ours" if name == PLAIN else " " * 31)
                + (
                    f"   peak {memory['peak_mb']:,.0f} MB ({memory['before_mb']:,.0f} before)"
                    if kind == KINDS[0]
                    else ""
                )
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(SHAPES), default=["1m", "3m"])
    parser.add_argument("--arithmetic", nargs="+", choices=("float32", "mixed"), default=["float32", "mixed"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=2, help="in each round")
    parser.add_argument("--batch", type=int, default=Setup.batch, help="transcripts of an update")
    parser.add_argument("--length", type=int, default=Setup.length, help="tokens of the longest transcript")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one round of one update: to see that all works")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds = args.updates = 1
    where = machine(["torch", "transformers"])
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    results = []
    for size in args.size:
        for arithmetic in args.arithmetic:
            setup = Setup(size, arithmetic, args.batch, args.length, args.device, args.seed)
            results.append(compare(setup, args.rounds, args.updates, args.threads))
            print(describe(results[-1]), flush=True)
            if args.out:  # after each, as the next may take long
                record = {"settings": settings, "optimization": asdict(OPTIMIZATION), "machine": where}
                write_figures({**record, "results": results}, args.out)


if __name__ == "__main__":
    main()
