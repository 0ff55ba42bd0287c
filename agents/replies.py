"""What a server's answer means: a checked completion, or a failure and what follows from it.

The server is untrusted, and those that call themselves compatible differ in small things, so an answer is held to a
schema of what is needed and no more, and an error is searched for its message wherever servers put one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from agentrec_env.text import clip, one_line

LONGEST_WAIT = 120.0
"""Seconds that a server may ask to wait; one that asks for more is taken to refuse."""

_SAID = 300
_CONTEXT = re.compile(r"context[ _](?:length|size|window)|maximum context|prompt is too long", re.IGNORECASE)
_AGAIN = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({401, 402, 403, 404})


class Function(msgspec.Struct, frozen=True):
    """What a native tool call calls."""

    name: str
    arguments: str | dict[str, Any] | None = None
    """JSON text as the model wrote it, or read already."""


class Call(msgspec.Struct, frozen=True):
    """A native tool call."""

    function: Function
    id: str | None = None


class _Part(msgspec.Struct, frozen=True):
    text: str | None = None


class _Message(msgspec.Struct, frozen=True):
    content: str | list[_Part] | None = None
    tool_calls: list[Call] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct, frozen=True):
    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion, and what it took."""

    content: str
    calls: tuple[Call, ...]
    finish: str | None
    prompt_tokens: int | None
    """As the server counts them; None where it does not say."""
    completion_tokens: int | None
    retries: int = 0
    seconds: float = 0.0
    """On the way, in all tries; waiting for a free place and between tries left out."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that failed, and what follows."""

    said: str
    again: bool = False
    """Worth another try."""
    wait: float | None = None
    """Seconds that the server asked to wait before it."""
    stop: bool = False
    """Every other request would fail as well."""
    overflow: bool = False
    """The conversation does not fit into the model's context."""
    unreachable: bool = False


def read(data: bytes) -> Reply | Failure:
    """The completion that a body with status 200 holds."""
    try:
        completion = msgspec.json.decode(data, type=_Completion)
        reason = "" if completion.choices else "choices is empty"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    if reason:
        sample = brief(data[: 2 * _SAID].decode(errors="replace"))
        return Failure(f"the reply is no chat completion ({reason}): {sample!r}", again=True)
    choice, usage = completion.choices[0], completion.usage or _Usage()
    content = choice.message.content
    if isinstance(content, list):
        content = "".join(part.text or "" for part in content)
    return Reply(
        content or choice.message.refusal or "",
        tuple(choice.message.tool_calls or ()),
        choice.finish_reason,
        usage.prompt_tokens,
        usage.completion_tokens,
    )


def refused(status: int, said: str, retry_after: str | None) -> Failure:
    """What follows from a reply with a status that is no success.

    Args:
        status: of HTTP.
        said: the message in its body.
        retry_after: the header.
    """
    text = f"HTTP {status}: {brief(said)}"
    if status in (400, 413, 422) and _CONTEXT.search(said):
        return Failure(f"the conversation is longer than the model's context ({text})", overflow=True)
    if status in _REFUSED or "insufficient_quota" in said:
        return Failure(text, stop=True)
    wait = _seconds(retry_after)
    if wait is not None and wait > LONGEST_WAIT:
        return Failure(f"{text} (asks to wait {wait:.0f} s, longer than {LONGEST_WAIT:.0f})")
    return Failure(text, again=status in _AGAIN or status >= 500, wait=wait)


def message(body: bytes) -> str:
    """What the body of a refusal says, wherever servers put it, with its code; as it stands where that is not found."""
    try:
        return _said(msgspec.json.decode(body))
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


def _said(body: object) -> str:
    if isinstance(body, Mapping):
        said = next((_said(body[name]) for name in ("message", "detail", "error") if body.get(name)), str(dict(body)))
        code = body.get("code")
        return f"{said} ({code})" if isinstance(code, str) and code not in said else said
    return "" if body is None else str(body)


def brief(text: str) -> str:
    """Some words of a text on one line."""
    return clip(one_line(text), _SAID)


def _seconds(retry_after: str | None) -> float | None:
    """Seconds to wait, from a number or an HTTP date."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
