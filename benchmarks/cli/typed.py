"""What a person types in `agentrec play`, as an action of the environment.

    score_candidates                  a tool without arguments
    search_items red kettle           a tool with one: the rest of the line
    compare first="red kettle" k=3    a tool with several, in order or by name
    8 3 15                            a ranking, best first (`rank ID ID` of the catalogue, A or B of a pair)

Words of the grammar itself (`<tool_call>…`, `<answer>…`) pass as they are. A slip of the keyboard costs nothing: it is
told, and the person asked again.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from agentrec_env.actions import Mode, parse, render
from agentrec_env.registry import did_you_mean
from agentrec_env.tools import Tool, ToolError
from agentrec_env.tools.schema import checked_arguments
from agentrec_env.types import Choice, Invalid, Ranking, ToolCall

COMMANDS = {
    "rank": "end with a ranking: rank 8 3 15, or the numbers alone",
    "show": "the task again",
    "help": "this",
    "quit": "leave without an answer",
}
"""Words that are no tools, and what they do; all but "rank" are the caller's to act on."""
_GRAMMAR = re.compile(r"<(?:think|tool_call|answer)>|\\boxed")
_NUMBERS = re.compile(r"[\[(]?\s*-?\d+(?:[\s,;]+-?\d+)*\s*[\])]?")


class MistypedError(ValueError):
    """A line that is no action; says what could have been meant."""


def action(line: str, tools: Mapping[str, Tool], mode: Mode, candidates: int) -> str:
    """The text of the action that a line stands for.

    Args:
        line: What was typed, not empty.
        tools: The tools on offer, by name.
        mode: Form of an answer.
        candidates: C, the size of the pool.

    Raises:
        MistypedError: There is no such tool, or the environment would refuse the call or the answer for its form.
    """
    line = line.strip()
    if _GRAMMAR.search(line):
        return line
    word, _, rest = line.partition(" ")
    if mode == "pair" and line.upper() in ("A", "B"):
        return render(Choice("A" if line.upper() == "A" else "B"))
    if word == "rank" or _NUMBERS.fullmatch(line):
        return _ranking(rest if word == "rank" else line, mode, candidates)
    if word not in tools:
        answer = {"pair": "A or B", "catalog": "rank and item ids"}.get(mode, "candidate numbers, best first")
        raise MistypedError(did_you_mean("tool or command", word, [*tools, *COMMANDS], f"To answer, type {answer}."))
    return render([ToolCall(word, _arguments(tools[word], rest.strip()))])


def _ranking(text: str, mode: Mode, candidates: int) -> str:
    entries = [entry.strip("\"'") for entry in re.split(r"[\s,;]+", text.strip(" [](){}")) if entry]
    if mode == "pair":
        raise MistypedError("the answer is A or B")
    if mode == "rank" and not all(re.fullmatch(r"-?\d+", entry) for entry in entries):
        raise MistypedError(f"a ranking holds candidate numbers, 1 to {candidates}; got {text.strip()!r}")
    ranking = Ranking(tuple(entries) if mode == "catalog" else tuple(int(entry) for entry in entries))
    written = render(ranking)
    read = parse(written, candidates, mode)
    if isinstance(read, Invalid):
        raise MistypedError(read.message)
    return written


def _arguments(tool: Tool, text: str) -> dict[str, Any]:
    parameters = tool.schema["function"]["parameters"]
    properties: Mapping[str, Any] = parameters.get("properties", {})
    words = _words(text)
    named = {key: value for key, _, value in (word.partition("=") for word in words) if key in properties}
    if named and len(named) == len(words):
        given = named
    elif len(properties) == 1:
        given = {next(iter(properties)): text} if text else {}
    elif len(words) <= len(properties):
        given = dict(zip(properties, words, strict=False))
    else:
        usage = " ".join(f"<{name}>" for name in properties)
        raise MistypedError(f"{tool.name} is called as: {tool.name} {usage}".rstrip() + ' ("…" keeps words together)')
    values = {name: _value(value, properties[name]) for name, value in given.items()}
    try:
        checked_arguments(tool.name, parameters, values)
    except ToolError as error:
        raise MistypedError(str(error)) from None
    return values


def _words(text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an apostrophe in a title, say
        return text.split()


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """A word as its parameter's type; as it is where it does not read as that."""
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
