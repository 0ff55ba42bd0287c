"""Room in memory: transcripts are worked on in micro-batches, which become smaller, for good, where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from agents.llm.packing import Pack, packs
from agents.llm.policy import Policy
from agents.llm.transcript import Transcript

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Room:
    """What memory holds at a time.

    Args:
        policy: Whose passes need it.
        tokens: Of a micro-batch, at most.
        recovers: Whether work that ran out of memory may begin again; it may not in the middle of a conversation with
            other processes.
    """

    def __init__(self, policy: Policy, tokens: int, recovers: bool = True) -> None:
        self._policy = policy
        self._recovers = recovers
        self.tokens = tokens
        """Of a micro-batch; fewer than at first once memory has run out."""

    def fit(self, transcripts: Sequence[Transcript], work: Callable[[Sequence[Pack]], T]) -> T:
        """What `work` makes of the transcripts in packs; begun again with smaller ones where memory runs out.

        Raises:
            torch.OutOfMemoryError: Not even one transcript at a time fits, or work may not begin again.
        """
        while True:
            cut = packs(transcripts, self.tokens, self._policy.shares)
            try:
                return work(cut)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if not self._recovers:
                    raise torch.OutOfMemoryError(
                        f"memory does not hold {self.tokens:,} tokens at a time, and with shard the other processes "
                        "wait in the middle of this pass: go on from the last checkpoint with --resume and a smaller "
                        "--micro-tokens"
                    ) from error
                if all(len(pack.rows) == 1 for pack in cut):
                    raise torch.OutOfMemoryError(
                        "memory does not hold one transcript: lower max_episode_tokens, set gradient_checkpointing or "
                        "lora_rank, or take a smaller model or dtype"
                    ) from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.tokens = max(1, min(self.tokens, max(pack.tokens for pack in cut)) // 2)
            logger.warning("out of memory: %d tokens at a time from now on", self.tokens)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: on a CPU torch says so in words alone."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
