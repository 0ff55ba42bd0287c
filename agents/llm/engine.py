"""Samples the turns of many conversations at once: rows join, pause for a tool, go on and leave without waiting.

The engine keeps what each row has said and been told, draws its tokens, and says when a turn is over; a `Decoder` holds
the model's memory of it. As a row's tokens depend on its seed and their places alone, a row may be thrown out of memory
and read again later, which is how the engine goes on when memory runs out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentrec_env.types import IntArray
from agents.llm.chat import Prompt
from agents.llm.decoder import Decoder, make_decoder
from agents.llm.sampling import Sampling, choose, uniform
from agents.llm.stops import StopFinder

Stop = Literal["stop", "end", "turn_budget", "episode_budget", "context"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Generation:
    """One sampled turn of n tokens."""

    row: int
    ids: IntArray
    """int64 [n]; empty where the budget was spent before the turn began."""
    logprobs: NDArray[np.float32]
    """float32 [n]: log_softmax(logits / temperature) of each id, over all tokens; at temperature 0, as at 1."""
    stop: Stop
    """"stop": a stop string; "end": a stop id, which is the last of `ids`; "turn_budget", "episode_budget": a budget of
    `Sampling`; "context": the positions that the model has, where they are fewer than the episode's budget."""


@dataclass
class _Row:
    prompt: Prompt
    seed: int
    ids: list[int] = field(default_factory=list)
    """All after the prompt."""
    turn: int = 0
    """Where in `ids` the turn began."""
    logprobs: list[float] = field(default_factory=list)
    """Of the turn."""
    read: int | None = None
    """How many of `ids` the decoder has read; None where it does not have the row at all."""
    running: bool = True
    """In a turn; else waiting to be extended or released."""


class Engine:
    """Multi-turn sampling from a causal language model.

    Args:
        model: Of transformers, adapted by peft or not. It is read now and at `refresh`, and not changed.
        tokenizer: Of the model; for the text of single tokens.
        rows: Rows are 0..rows-1.
        sampling: Temperature, top-p and budgets.
        stop_ids: Ids that end a turn.
        stops: Texts that end a turn.
        dtype: To compute in. By default bfloat16 on a GPU, else that of the model.
        device: To compute on. By default that of the model.
        active: At most so many rows are held in memory at once, the others wait their turn; by default all. Halved
            when memory runs out.
        memory: Bytes for keys and values. By default nine tenths of what is free on a GPU, on a CPU as many as there
            are.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        rows: int,
        sampling: Sampling,
        stop_ids: Iterable[int],
        stops: Sequence[str],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        active: int | None = None,
        memory: int | None = None,
    ) -> None:
        if rows < 1:
            raise ValueError(f"an engine needs at least one row, got {rows}")
        if active is not None and active < 1:
            raise ValueError(f"at least one row must be active, got {active}")
        config = model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or sampling.max_episode_tokens
        self.sampling = sampling
        self.context = min(context, sampling.max_episode_tokens)
        """Tokens of the longest transcript."""
        self._full: Stop = "context" if context < sampling.max_episode_tokens else "episode_budget"
        self._decoder: Decoder = make_decoder(model, self.context, dtype, device, memory)
        self._stop_ids = frozenset(stop_ids)
        self._finder = StopFinder(tokenizer, stops)
        self._count = rows
        self._active = rows if active is None else min(active, rows)
        self._rows: dict[int, _Row] = {}

    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> None:
        """Begin a conversation, and its first turn, in each of N rows; what they held is forgotten.

        Args:
            rows: N different rows.
            prompts: One a row. Equal ones are read once, and so is the `shared` head of different ones.
            seeds: One a row, int64. The tokens of a row depend on nothing else than its seed, its prompt and what it is
                told: equal seeds and prompts give equal samples, but for rounding, which in bfloat16 and on a GPU
                differs with the number of rows and now and then tips a draw.
        """
        _check(rows, range(self._count), "0 to the number of rows less 1")
        if not len(rows) == len(prompts) == len(seeds):
            raise ValueError(f"{len(rows)} rows, {len(prompts)} prompts and {len(seeds)} seeds: one of each a row")
        for row, prompt in zip(rows, prompts, strict=True):
            if not prompt.ids:
                raise ValueError(f"the prompt of row {row} is empty: a conversation begins with at least one token")
        for row, prompt, seed in zip(rows, prompts, seeds, strict=True):
            self.release(row)
            self._rows[row] = _Row(prompt, (int(seed) + (1 << 63)) % (1 << 64) - (1 << 63))

    def extend(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Tell each of N rows, whose turn is over, the ids of an observation, and begin its next turn."""
        waiting = [row for row, state in self._rows.items() if not state.running]
        _check(rows, waiting, "rows whose turn is over")
        if len(rows) != len(ids):
            raise ValueError(f"{len(rows)} rows and {len(ids)} observations: one a row")
        for row, more in zip(rows, ids, strict=True):
            state = self._rows[row]
            state.ids += more
            state.turn, state.logprobs, state.running = len(state.ids), [], True

    def run(self) -> list[Generation]:
        """Sample until at least one row has ended its turn; all that have. They stay until extended or released.

        Raises:
            RuntimeError: no row is in a turn.
            torch.OutOfMemoryError: not even one row fits.
            FloatingPointError: the model gives no finite logits.
        """
        if not any(state.running for state in self._rows.values()):
            raise RuntimeError("no row is in a turn: call begin or extend first")
        done = [
            self._end(row, self._full)
            for row, state in self._rows.items()
            if state.running and len(state.prompt.ids) + len(state.ids) >= self.context
        ]
        while not done:
            chosen = self._resident()
            try:
                done = self._round(chosen)
            except torch.OutOfMemoryError:
                self._halve(chosen)
        return done

    def release(self, row: int) -> None:
        """Forget what a row holds; nothing where it holds nothing."""
        if self._rows.pop(row, None) is not None:
            self._decoder.release(row)

    def refresh(self) -> None:
        """Take over changed weights. Rows that are in the middle of a conversation go on with the new ones."""
        for state in self._rows.values():
            state.read = None
        self._decoder.refresh()

    def free(self) -> None:
        """Give the memory of keys and values back, before training say. Rows that go on afterwards are read again."""
        for state in self._rows.values():
            state.read = None
        self._decoder.free()

    def _round(self, rows: Sequence[int]) -> list[Generation]:
        """Let the decoder read what `rows` have that it has not, and sample one token for each of them."""
        # Stops as soon as a turn has ended, so that no turn is lost where memory runs out in what follows.
        new = [row for row in rows if self._rows[row].read is None]
        if new:
            logits = self._decoder.begin(new, [self._rows[row].prompt for row in new])
            for row in new:
                self._rows[row].read = 0
            fresh = [place for place, row in enumerate(new) if not self._rows[row].ids]
            done = self._sample([new[place] for place in fresh], logits[fresh]) if fresh else []
            if done:
                return done
        longer = [row for row in rows if self._unread(row) > 1]
        done = self._feed(longer) if longer else []
        return done or self._feed([row for row in rows if self._unread(row) == 1])

    def _unread(self, row: int) -> int:
        state = self._rows[row]
        return len(state.ids) - (state.read or 0)

    def _feed(self, rows: Sequence[int]) -> list[Generation]:
        """Let the decoder read the unread ids of `rows`, and sample one token for each of them."""
        logits = self._decoder.feed(rows, [self._rows[row].ids[self._rows[row].read :] for row in rows])
        for row in rows:
            self._rows[row].read = len(self._rows[row].ids)
        return self._sample(rows, logits)

    def _sample(self, rows: Sequence[int], logits: Tensor) -> list[Generation]:
        """Draw the next token of each of N rows from logits [N, V]; the turns that it ends."""
        states = [self._rows[row] for row in rows]
        seeds = torch.tensor([state.seed for state in states], device=logits.device)
        places = torch.tensor([len(state.prompt.ids) + len(state.ids) for state in states], device=logits.device)
        drawn, logprobs = choose(logits, self.sampling, uniform(seeds, places))
        ids: IntArray = drawn.cpu().numpy()
        known = logprobs.tolist()
        if any(map(math.isnan, known)):
            raise FloatingPointError(
                "the model's logits are not finite, so no token can be sampled: its weights may have diverged in "
                "training, or overflow in this dtype"
            )
        for state, token, logprob in zip(states, ids.tolist(), known, strict=True):
            state.ids.append(token)
            state.logprobs.append(logprob)
        closing = set(self._finder.candidates(ids))
        done = []
        for place, (row, state) in enumerate(zip(rows, states, strict=True)):
            stop = self._stop(state, place in closing)
            if stop is not None:
                done.append(self._end(row, stop))
        return done

    def _stop(self, state: _Row, closing: bool) -> Stop | None:
        if state.ids[-1] in self._stop_ids:
            return "end"
        if closing and self._finder.ends(state.ids[state.turn :]):
            return "stop"
        if len(state.prompt.ids) + len(state.ids) >= self.context:
            return self._full
        if len(state.logprobs) >= self.sampling.max_turn_tokens:
            return "turn_budget"
        return None

    def _end(self, row: int, stop: Stop) -> Generation:
        state = self._rows[row]
        state.running = False
        ids = np.array(state.ids[state.turn :] if state.logprobs else [], dtype=np.int64)
        return Generation(row, ids, np.array(state.logprobs, dtype=np.float32), stop)

    def _resident(self) -> list[int]:
        """The running rows that the decoder holds, with as many of the waiting ones as there is room for."""
        held = [row for row, state in self._rows.items() if state.read is not None]
        chosen = [row for row in held if self._rows[row].running]
        idle = [row for row in held if not self._rows[row].running]
        for row, state in self._rows.items():
            if not state.running or state.read is not None:
                continue
            if len(chosen) + len(idle) >= self._active:
                if not idle:
                    break
                self._evict(idle.pop())
            chosen.append(row)
        return chosen

    def _halve(self, chosen: Sequence[int]) -> None:
        """Hold half as many rows from now on; the others are read again when it is their turn."""
        for row in chosen:
            if self._rows[row].read is not None and not self._unread(row):
                self._evict(row)  # memory ran out before its token was drawn, and its logits are gone
        tried = len({row for row, state in self._rows.items() if state.read is not None}.union(chosen))
        if tried == 1:
            raise torch.OutOfMemoryError(
                "memory does not hold one conversation beside the model: lower max_episode_tokens, or take a smaller "
                "model or dtype"
            )
        self._active = tried // 2
        held = [row for row, state in self._rows.items() if state.read is not None]
        running = [row for row in held if self._rows[row].running]
        for row in [*(row for row in held if not self._rows[row].running), *reversed(running)]:
            if sum(state.read is not None for state in self._rows.values()) <= self._active:
                break
            self._evict(row)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _log.warning("out of memory with %d rows: %d at a time from now on", tried, self._active)

    def _evict(self, row: int) -> None:
        self._rows[row].read = None
        self._decoder.release(row)


def _check(rows: Sequence[int], allowed: Iterable[int], what: str) -> None:
    known = set(allowed)
    wrong = [row for row in rows if row not in known]
    if wrong:
        raise ValueError(f"rows {wrong} are not {what} ({sorted(known) or 'none'})")
    if len(set(rows)) != len(rows):
        raise ValueError(f"rows must differ, got {list(rows)}")
