"""Unicode: a Gymnasium space of any text up to a length, for what a language model reads and writes.

Gymnasium's own ``Text`` wants a finite character set, and real titles do not fit one; under ``AsyncVectorEnv`` it fails
on the first "é". Batches of this space are tuples of strings, so it works inside ``Dict`` and ``Tuple`` too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector.utils import create_empty_array

_SAMPLE_LIMIT = 64
# Letters, blanks, markup, accents, other scripts, an emoji and a combining mark: what a careless consumer trips over.
_ALPHABET = tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ 0123456789\n\t<>/{}[]\"'\\.,:;!?é߄漢字اк🎸\u0301")


class Unicode(Space[str]):
    """Every string of at most ``max_length`` characters (code points), the empty one included.

    Args:
        max_length: Longest text in characters, at least 1.
        seed: Seed or generator for ``sample``.
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        if isinstance(max_length, bool) or not isinstance(max_length, int | np.integer) or max_length < 1:
            raise ValueError(f"max_length must be a whole number of characters, at least 1; got {max_length!r}")
        self.max_length = int(max_length)
        super().__init__(shape=None, dtype=np.str_, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text of any alphabet has no fixed-size array form."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """A random text of at most 64 characters. Masks have no meaning here and are refused."""
        if mask is not None or probability is not None:
            raise ValueError("Unicode.sample takes no mask and no probability: its alphabet is all of Unicode")
        length = int(self.np_random.integers(0, min(self.max_length, _SAMPLE_LIMIT) + 1))
        return "".join(_ALPHABET[i] for i in self.np_random.integers(0, len(_ALPHABET), size=length))

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string of at most ``max_length`` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"Unicode({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unicode) and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash((Unicode, self.max_length))


@create_empty_array.register(Unicode)
def _empty(space: Unicode, n: int = 1, fn: Any = np.zeros) -> tuple[str, ...]:
    return ("",) * n
