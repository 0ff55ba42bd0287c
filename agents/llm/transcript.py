"""The token record of one episode, from which a policy learns: what was shown, what was sampled, with what probability.

It only grows, and whoever appends says whether the tokens were sampled or shown. So the mask needs no search for turns
in a rendered text, and no sampled token passes through text and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Opening(Protocol):
    """What a transcript begins with; `agents.llm.chat.Prompt` is one."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def shared(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TurnSpan:
    """One sampled action: tokens `start` to `end` (exclusive) of the transcript."""

    start: int
    end: int
    stop: str
    """Why it ended: "stop" (a stop string), "end" (an end-of-turn token), "turn_budget", "episode_budget" or
    "context"."""


@dataclass(frozen=True, eq=False)
class Transcript:
    """A conversation of T tokens; arrays are read-only.

    Raises:
        ValueError: Parts that do not fit together.
    """

    ids: NDArray[np.int64]
    """int64 [T]"""
    mask: NDArray[np.bool_]
    """bool [T]: True exactly on sampled tokens."""
    logprobs: NDArray[np.float32]
    """float32 [T]: log-probability with which a token was sampled, given those before it; 0 where it was not."""
    prompt: int
    """Length of the prompt."""
    shared: int
    """Length of the head that all tasks of the environment have in common."""
    turns: tuple[TurnSpan, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", np.asarray(self.ids, np.int64))
        object.__setattr__(self, "mask", np.asarray(self.mask, np.bool_))
        object.__setattr__(self, "logprobs", np.asarray(self.logprobs, np.float32))
        for name in ("ids", "mask", "logprobs"):
            array = getattr(self, name)
            if array.shape != (len(self.ids),):
                raise ValueError(f"{name} has shape {array.shape}; ids, mask and logprobs are [T], T = {len(self.ids)}")
            array.setflags(write=False)
        if not 0 <= self.shared <= self.prompt <= len(self.ids):
            raise ValueError(f"0 <= shared <= prompt <= T; got {self.shared}, {self.prompt}, {len(self.ids)}")
        sampled = np.zeros(len(self.ids), np.bool_)
        at = self.prompt
        for turn in self.turns:
            if not at <= turn.start <= turn.end <= len(self.ids):
                raise ValueError(f"turns follow the prompt and one another; got {self.turns} in {len(self.ids)} tokens")
            sampled[turn.start : turn.end] = True
            at = turn.end
        if not np.array_equal(sampled, self.mask):
            raise ValueError("mask is True exactly on the tokens of the turns; make transcripts with TranscriptWriter")

    def __len__(self) -> int:
        """T."""
        return len(self.ids)

    @property
    def sampled(self) -> NDArray[np.int64]:
        """int64 [sum(mask)]: the sampled tokens alone."""
        return self.ids[self.mask]


class TranscriptWriter:
    """Writes a transcript, token by token and never back.

    Args:
        prompt: The tokens up to the first sampled one.
    """

    def __init__(self, prompt: Opening) -> None:
        self._ids = list(prompt.ids)
        self._mask = [False] * len(self._ids)
        self._logprobs = [0.0] * len(self._ids)
        self._prompt = len(self._ids)
        self._shared = prompt.shared
        self._turns: list[TurnSpan] = []

    def __len__(self) -> int:
        """Tokens so far."""
        return len(self._ids)

    def sampled(self, ids: Iterable[int], logprobs: Iterable[float], stop: str) -> None:
        """Append a turn: the very ids that were sampled, and the log-probability of each."""
        new = [int(number) for number in ids]
        scores = [float(score) for score in logprobs]
        if len(new) != len(scores):
            raise ValueError(f"one log-probability for each sampled token; got {len(scores)} for {len(new)}")
        start = len(self._ids)
        self._ids += new
        self._mask += [True] * len(new)
        self._logprobs += scores
        self._turns.append(TurnSpan(start, len(self._ids), stop))

    def observed(self, ids: Iterable[int]) -> None:
        """Append tokens that the model was shown."""
        new = [int(number) for number in ids]
        self._ids += new
        self._mask += [False] * len(new)
        self._logprobs += [0.0] * len(new)

    def freeze(self) -> Transcript:
        """The transcript so far; later appends do not change it."""
        return Transcript(
            ids=np.array(self._ids, np.int64),
            mask=np.array(self._mask, np.bool_),
            logprobs=np.array(self._logprobs, np.float32),
            prompt=self._prompt,
            shared=self._shared,
            turns=tuple(self._turns),
        )
