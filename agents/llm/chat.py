"""A conversation as token ids that only grow: the prompt, what follows a sampled turn, and what a turn says.

Sampled ids are never turned into text and back. The ids around them are the tokenizer's own chat template
(`agents.llm.template`), and text that comes from data cannot become a control token (`agents.llm.encoder`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agents.llm.encoder import Encoder, Piece
from agents.llm.template import ChatTemplateError, escape, read_frames

__all__ = ["Chat", "ChatTemplateError", "Prompt"]

_GRAMMAR = tuple(f"<{slash}{tag}>" for tag in ("think", "tool_call", "answer", "observation") for slash in ("", "/"))
"""Tags of the environment's grammar. Text from data holds none: `agentrec_env.text.neutralise` disarms them."""
_OBSERVATION = ("<observation>", "</observation>")
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>")
"""Tokens with which models of the known families end a message or a text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a conversation, up to and with the header of the assistant's first turn."""

    ids: tuple[int, ...]
    shared: int
    """The first so many ids are the same for every task of an environment."""


class Chat:
    """Writes conversations of an environment for one tokenizer.

    Args:
        tokenizer: Of transformers, with a chat template.
        tools: JSON schemas of the tools; shown by the template where it speaks the environment's grammar of calls.
        thinking: `enable_thinking` of templates that know it; None: their default.
        observations: Role of the messages with observations: "user" for templates without tool messages.

    Raises:
        ChatTemplateError: A tokenizer that cannot write such conversations; says what to do.
    """

    stops: tuple[str, ...] = ("</tool_call>", "</answer>")
    """Texts with which an action ends."""

    def __init__(
        self,
        tokenizer: Any,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        observations: Literal["tool", "user"] = "tool",
    ) -> None:
        if observations not in ("tool", "user"):
            raise ValueError(f"observations is the role of their messages, 'tool' or 'user'; got {observations!r}")
        self._tokenizer = tokenizer
        self._frames = read_frames(tokenizer, tools, thinking, observations)
        try:
            self._encoder = Encoder(tokenizer)
        except ValueError as error:
            raise ChatTemplateError(str(error)) from None
        added = self._encoder.added
        turn_end = self._encoder.trusted(self._frames.after_turn)
        known = {added[end] for end in _ENDS if end in added}
        self.end: int | None = turn_end[0] if turn_end and isinstance(turn_end[0], int) else None
        """Id that the template ends a turn with; None where it is ended by text."""
        self.stop_ids = frozenset(known | {self.end, tokenizer.eos_token_id} - {None})
        """Ids that end a turn."""
        self._after_turn = turn_end
        self._after_observation = self._encoder.trusted(self._frames.after_observation)
        self._after_user = self._encoder.trusted(self._frames.after_user)
        self._silent = (self._encoder.special | self.stop_ids) - {added[tag] for tag in _GRAMMAR if tag in added}
        self._head: tuple[str, tuple[int, ...], list[Piece]] | None = None

    @property
    def preserving(self) -> bool:
        """Whether a finished conversation reads just as the tokenizer's own template writes it."""
        return self._frames.preserving

    @property
    def shows_tools(self) -> bool:
        """Whether the prompt holds the tools' JSON schemas."""
        return self._frames.shows_tools

    def begin(self, text: str, rules: str = "") -> Prompt:
        """The prompt of an episode.

        Args:
            text: First observation of the environment.
            rules: `Rules.text` of the environment. Where `text` ends with it, it becomes the system message, so that
                all tasks begin with the same ids, and the rest the user message.
        """
        encoder, frames = self._encoder, self._frames
        if not rules or not text.endswith(rules):
            before = encoder.trusted(frames.before_lone_user)
            cut = _last_control(before)
            head = encoder.encode(before[:cut])
            after = encoder.trusted(frames.after_lone_user)
            return Prompt((*head, *encoder.encode([*before[cut:], *encoder.content(text), *after])), len(head))
        if self._head is None or self._head[0] != rules:
            self._head = (rules, *self._begin(rules))
        _, shared, rest = self._head
        body = text.removesuffix(rules).rstrip("\n")
        tail = encoder.encode([*rest, *encoder.content(body), *self._after_user])
        return Prompt((*shared, *tail), len(shared))

    def observe(self, text: str, last: Sequence[int]) -> list[int]:
        """The ids between two turns.

        Args:
            text: What the environment returned for the turn.
            last: The sampled ids of the turn. Its end is written where it was not sampled.

        Returns:
            End of the turn, the observation, and the header of the next turn.
        """
        after_turn = self._after_turn
        if self.end is not None and len(last) and int(last[-1]) in self.stop_ids:
            after_turn = after_turn[1:]
        content = escape(text) if self._frames.escaped else text
        return self._encoder.encode(
            [*after_turn, *self._encoder.content(content, _OBSERVATION), *self._after_observation]
        )

    def text(self, ids: Sequence[int]) -> str:
        """The action that sampled ids say, without the template's control tokens but with the grammar's tags."""
        spoken = [int(number) for number in ids if int(number) not in self._silent]
        return str(self._tokenizer.decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _begin(self, rules: str) -> tuple[tuple[int, ...], list[Piece]]:
        """The ids that all prompts with these rules share, and what stands between them and the user's text."""
        encoder, frames = self._encoder, self._frames
        said = encoder.content(rules, _GRAMMAR)
        if frames.before_system is None:
            pieces = [*encoder.trusted(frames.before_user), *said, "\n\n"]
            return tuple(encoder.encode(pieces)), []
        pieces = [*encoder.trusted(frames.before_system), *said]
        between = encoder.trusted(frames.before_user)
        cut = _last_control(between)
        return tuple(encoder.encode([*pieces, *between[:cut]])), between[cut:]


def _last_control(pieces: Sequence[Piece]) -> int:
    """The place after the last control token, where text on both sides is encoded apart anyway."""
    return max((place + 1 for place, piece in enumerate(pieces) if not isinstance(piece, str)), default=0)
