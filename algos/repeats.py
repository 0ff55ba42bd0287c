"""What an answer must not say: the number of a candidate that it has named before.

The likelihood of good answers says so in passing only: naming one twice costs a few hundredths of a nat in a loss of
two nats, most of which is what nobody can know, while one repeat in ten picks makes an answer invalid. Unlikelihood
training (Welleck et al., 2020, arXiv 1908.04319) says it outright: -log(1 - p) for each number p that stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agents.llm.packing import Pack
from agents.llm.transcript import Transcript


class Repeats:
    """Finds, for one tokenizer, where an answer might name a candidate again.

    Args:
        tokenizer: in which the number of each candidate is one token.
        candidates: how many there are.

    Raises:
        ValueError: a number of several tokens, whose first may begin another number as well.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, candidates: int) -> None:
        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        numbers = [ids(str(number)) for number in range(1, candidates + 1)]
        split = next((number for number, tokens in enumerate(numbers, 1) if len(tokens) != 1), None)
        if split is not None:
            raise ValueError(
                f"repeats needs a tokenizer that has each of the numbers 1 to {candidates} as one token; this one "
                f"writes {split} in {len(numbers[split - 1])}: leave repeats at 0"
            )
        self._numbers = {tokens[0] for tokens in numbers}
        self._between = set(ids(", "))

    def find(self, transcript: Transcript) -> list[tuple[int, int]]:
        """Sampled tokens of the list at the end as (place, number's id that had been named before that place)."""
        ids = transcript.ids.tolist()
        end = next((i for i in reversed(range(len(ids))) if ids[i] in self._numbers), -1)
        start = end
        while start >= 0 and (ids[start] in self._numbers or ids[start] in self._between):
            start -= 1
        found = []
        named: list[int] = []
        for place in range(start + 1, end + 1):
            if ids[place] in self._numbers:
                if transcript.mask[place]:
                    found += [(place, number) for number in named if number != ids[place]]
                named.append(ids[place])
        return found

    def add(self, pack: Pack, transcripts: Sequence[Transcript]) -> Pack:
        """`pack` with the scores of such numbers behind those that it has.

        Args:
            pack: of `packs(transcripts, ...)`.
            transcripts: all of them.
        """
        scores = {(int(number), int(place)): i for i, (number, place) in enumerate(pack.index.tolist())}
        numbers = sorted({number for number, _ in scores})
        wrong = [
            (scores[number, place], token)
            for number in numbers
            for place, token in self.find(transcripts[number])
            if (number, place) in scores
        ]
        at = torch.from_numpy(np.array([score for score, _ in wrong], np.int64))
        tokens = torch.from_numpy(np.array([token for _, token in wrong], np.int64))
        return replace(
            pack,
            index=torch.cat([pack.index, pack.index[at]]),
            row=torch.cat([pack.row, pack.row[at]]),
            source=torch.cat([pack.source, pack.source[at]]),
            target=torch.cat([pack.target, tokens]),
        )


def unlikelihood(logprobs: Tensor) -> Tensor:
    """-log(1 - p), float32 [N], from log p."""
    return -torch.log(-torch.expm1(logprobs.clamp(max=-1e-6)))
