"""What a tokenizer's chat template puts around the messages of a tool conversation, found by rendering it.

A conversation of marked messages is rendered, and the text between the marks is the template's grammar. Put around
sampled tokens it gives a conversation that only ever grows, which rendering it anew does not where a template rewrites
earlier turns (Qwen3 reformats thoughts). Where the template keeps them as they are, both give the same text.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DATE = datetime.date(2024, 7, 26)
"""The day that templates which write one (Llama 3, SmolLM3) are told, so that a prompt is the same on every day."""
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{DATE.strftime('%' + code)}')" for code in "aAbBdjmyYHMSIp")
    + " }}{% endmacro %}\n"
)
"""Takes the place of the clock that transformers gives to templates; the line break is no part of what they write."""

_SYSTEM, _USER, _TURN, _TOOL, _NEXT_TURN, _NEXT_TOOL = (f"Q9z{name}z9Q" for name in "abcdef")
_ACTION = '<think>A plan.</think>\n<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'
_ESCAPABLE = '"q" é\n<b>'

Message = dict[str, str]


class ChatTemplateError(ValueError):
    """A tokenizer whose chat template cannot hold a conversation with tools; says what to do."""


@dataclass(frozen=True)
class Frames:
    """The texts around the messages. A prompt ends with the header of the assistant's turn."""

    before_system: str | None
    """None: the template takes no system message."""
    before_user: str
    """Between system and user message; from the beginning where the template takes no system message."""
    after_user: str
    before_lone_user: str
    """The same where there is no system message, as far as the template knows one."""
    after_lone_user: str
    after_turn: str
    """From the end of an assistant's text to the text of an observation."""
    after_observation: str
    escaped: bool
    """Whether observations are written as JSON strings, as Llama 3.1 does."""
    preserving: bool
    """Whether rendering a longer conversation only appends, so that these frames say just what rendering says."""
    shows_tools: bool
    """Whether the template tells the model of the tools in the environment's own grammar."""


def read_frames(
    tokenizer: Any,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: bool | None = None,
    observations: Literal["tool", "user"] = "tool",
) -> Frames:
    """Find the frames of the chat template of `tokenizer`.

    Args:
        tokenizer: of transformers.
        tools: JSON schemas. They are shown where the template tells of calls as `<tool_call>`; elsewhere (Llama 3)
            they would ask for calls that the environment does not read.
        thinking: `enable_thinking` of templates that know it; None: what they do by default.
        observations: role of the messages that hold observations.

    Raises:
        ChatTemplateError: no template, one that cannot do this, or one that writes later turns in another way.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ChatTemplateError(
            f"the tokenizer of {_name(tokenizer)} has no chat template, so nobody knows how it writes a conversation; "
            "use the model's instruct or chat version, or set tokenizer.chat_template and save the model again"
        )
    reader = _Reader(tokenizer, thinking)
    shows_tools = bool(tools) and reader.shows(tools)
    if shows_tools:
        reader.tools = [dict(tool) for tool in tools]
    return reader.frames(observations, shows_tools)


class _Reader:
    """Renders with one tokenizer and set of options."""

    def __init__(self, tokenizer: Any, thinking: bool | None) -> None:
        self.tokenizer = tokenizer
        self.tools: list[dict[str, Any]] | None = None
        self.options: dict[str, Any] = {"date_string": f"{DATE:%d %b %Y}"}
        if thinking is not None:
            self.options["enable_thinking"] = thinking

    def shows(self, tools: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template writes of `<tool_call>` when it is given tools."""
        plain = self.render([_message("user", _USER)])
        self.tools = [dict(tool) for tool in tools]
        try:
            return self.render([_message("user", _USER)]).count("<tool_call>") > plain.count("<tool_call>")
        except ChatTemplateError:
            return False
        finally:
            self.tools = None

    def frames(self, observations: Literal["tool", "user"], shows_tools: bool) -> Frames:
        try:
            opening = [_message("system", _SYSTEM), _message("user", _USER)]
            before_system, before_user = self.between(opening, _SYSTEM, _USER)[:2]
        except ChatTemplateError:
            opening = opening[1:]
            before_system, before_user = None, self.between(opening, _USER)[0]
        lone = [_message("user", _USER)]

        turns = [*opening, _message("assistant", _TURN), _message(observations, _TOOL)]
        later = [*turns, _message("assistant", _NEXT_TURN), _message(observations, _NEXT_TOOL)]
        advice = "use a model whose chat template has tool messages"
        if observations == "tool":
            advice += ", or send observations as user messages: Chat(…, observations='user')"
        try:
            after_turn = self.between(turns, _TURN, _TOOL)[1]
            after_observation = self.tail(turns, _TOOL)
            again = (self.between(later, _NEXT_TURN, _NEXT_TOOL)[1], self.tail(later, _NEXT_TOOL))
            escaped = self.escapes(turns)
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{error}; {advice}") from None
        if again != (after_turn, after_observation):
            raise ChatTemplateError(
                f"the chat template of {_name(self.tokenizer)} writes a second tool message in another way than the "
                f"first ({again!r} instead of {(after_turn, after_observation)!r}), so a conversation cannot be "
                "continued by appending; use another model, or set tokenizer.chat_template to one that only appends"
            )
        return Frames(
            before_system=before_system,
            before_user=before_user,
            after_user=self.tail(opening, _USER),
            before_lone_user=self.between(lone, _USER)[0],
            after_lone_user=self.tail(lone, _USER),
            after_turn=after_turn,
            after_observation=after_observation,
            escaped=escaped,
            preserving=self.preserves(opening, observations, after_turn),
            shows_tools=shows_tools,
        )

    def preserves(self, opening: Sequence[Message], role: str, after_turn: str) -> bool:
        """Whether two turns with thoughts and calls stay as they were written when the conversation goes on."""
        messages = list(opening)
        for turn, tool in ((_TURN, _TOOL), (_NEXT_TURN, _NEXT_TOOL)):
            action = _ACTION.format(name=turn)
            before = self.render(messages)
            messages += [_message("assistant", action), _message(role, tool)]
            if not self.render(messages).startswith(before + action + after_turn):
                return False
        return True

    def escapes(self, turns: Sequence[Message]) -> bool:
        """Whether the text of an observation is written as a JSON string."""
        marked = _message(turns[-1]["role"], f"{_TOOL}{_ESCAPABLE}{_NEXT_TOOL}")
        written = self.between([*turns[:-1], marked], _TOOL, _NEXT_TOOL)[1]
        if written in (_ESCAPABLE, escape(_ESCAPABLE)):
            return written != _ESCAPABLE
        raise ChatTemplateError(
            f"the chat template of {_name(self.tokenizer)} rewrites an observation ({_ESCAPABLE!r} became {written!r})"
        )

    def tail(self, messages: Sequence[Message], mark: str) -> str:
        """What follows `mark`, with the header of the assistant's next turn."""
        prompt = self.render(messages)
        if prompt != self.render(messages, header=False):
            return self.split(prompt, mark)[1]
        return self.between([*messages, _message("assistant", _NEXT_TURN + _TURN)], mark, _NEXT_TURN + _TURN)[1]

    def between(self, messages: Sequence[Message], *marks: str) -> list[str]:
        """The texts before, between and after `marks`."""
        return self.split(self.render(messages), *marks)

    def split(self, text: str, *marks: str) -> list[str]:
        parts = []
        rest = text
        for mark in marks:
            if text.count(mark) != 1 or mark not in rest:
                raise ChatTemplateError(
                    f"the chat template of {_name(self.tokenizer)} drops, doubles or reorders a message"
                )
            part, rest = rest.split(mark)
            parts.append(part)
        return [*parts, rest]

    def render(self, messages: Sequence[Message], header: bool = True) -> str:
        try:
            template = self.tokenizer.get_chat_template(None, self.tools)
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=self.tools,
                chat_template=_CLOCK + template if "strftime_now" in template else template,
                add_generation_prompt=header,
                tokenize=False,
                **self.options,
            )
        except Exception as error:  # noqa: BLE001 - a template is a program of the model's makers and may raise anything
            raise ChatTemplateError(
                f"the chat template of {_name(self.tokenizer)} refuses a conversation of "
                f"{', '.join(message['role'] for message in messages)} ({type(error).__name__}: {error})"
            ) from None
        return str(text)


def escape(text: str) -> str:
    """`text` as the inside of a JSON string, as `tojson` of chat templates writes it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _name(tokenizer: Any) -> str:
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
