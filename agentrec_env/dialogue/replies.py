"""The grammar of the user's seat: plain words, or one of two verdicts. Any text is one of them.

    action  = [thought] (words | <accept/> | <leave/>)
    thought = <think> … </think>        everything up to the last </think>, and after a <think> that never closes

The first verdict counts, wherever it stands outside a thought.
"""

from __future__ import annotations

import re
from enum import Enum

_VERDICT = re.compile(r"<\s{0,8}(accept|leave)\s{0,8}/?\s{0,8}>", re.IGNORECASE)


class Verdict(Enum):
    """What ends a dialogue."""

    ACCEPT = "accept"
    LEAVE = "leave"


def read_reply(text: str) -> Verdict | str:
    """What the user means: a verdict, or the words that it says."""
    said = text.rpartition("</think>")[2].partition("<think>")[0]
    found = _VERDICT.search(said)
    return Verdict(found[1].lower()) if found else said.strip()
