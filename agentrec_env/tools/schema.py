"""From a typed, documented Python function to the JSON schema that a model reads, and the check of what it wrote.

The schema is the one of ``transformers.utils.get_json_schema`` for the same function without its ``view`` parameter (a
test compares the two), made here without transformers, which the environment does not need.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, Union

from agentrec_env.registry import did_you_mean
from agentrec_env.text import clip, neutralise, one_line

MAX_STRING = 2_000
"""Characters in one string argument; real titles stay under it."""
MAX_VALUES = 2_000
"""Values in all arguments of a call together, nested ones included."""
MAX_INTEGER = 2**53
"""Largest whole number that JSON readers agree on."""

_SCALARS: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_SECTION = re.compile(r"[ \t]*(Args|Returns|Raises):")
_ARGUMENT = re.compile(r"(?:^|\n)([ \t]*)(\w+):\s*(.*?)\s*(?=\n(?!\1[ \t])[ \t]*\w+:|\Z)", re.DOTALL)
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


class ToolError(Exception):
    """What a tool tells the model when it cannot answer: what was given, what is allowed, what to do next.

    It is part of the conversation and no failure of the environment. Any other exception of a tool is a bug.
    """


def function_schema(function: Callable[..., Any], hidden: str) -> dict[str, Any]:
    """The OpenAI-style schema ``{"type": "function", "function": {...}}`` of ``function``.

    Args:
        function: typed, with a Google docstring that describes each parameter but ``hidden``.
        hidden: the parameter that the model does not see.

    Raises:
        TypeError: a parameter without type, with a type that JSON cannot write, or variadic.
        ValueError: no docstring, or a parameter that it does not describe.
    """
    name = function.__name__
    documentation = inspect.getdoc(function)
    if not documentation:
        raise ValueError(f"tool {name!r} has no docstring; the model reads it, so write one in Google style")
    description, documented, returned = _docstring(documentation.strip())
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == hidden:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"parameter *{parameter.name} of tool {name!r} is variadic; name each parameter")
        if parameter.name not in hints:
            raise TypeError(f"parameter {parameter.name!r} of tool {name!r} has no type; give it one")
        if parameter.name not in documented:
            raise ValueError(f"the docstring of tool {name!r} does not describe {parameter.name!r} under Args:")
        schema = _type_schema(hints[parameter.name], f"parameter {parameter.name!r} of tool {name!r}")
        text = documented[parameter.name]
        choices = _CHOICES.search(text)
        if choices:
            schema["enum"] = [c.strip() if isinstance(c, str) else c for c in json.loads(choices.group(1))]
            text = text[: choices.start()].strip()
        properties[parameter.name] = schema | {"description": text}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    entry: dict[str, Any] = {"name": name, "description": description, "parameters": parameters}
    if "return" in hints:
        entry["return"] = _type_schema(hints["return"], f"what tool {name!r} returns")
        if returned is not None:
            entry["return"]["description"] = returned
    return {"type": "function", "function": entry}


def _docstring(text: str) -> tuple[str, dict[str, str], str | None]:
    """Description, description of each argument, and of what is returned."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.split("\n"):
        if (match := _SECTION.match(line)) and line.strip() == f"{match.group(1)}:":
            current = match.group(1)
            sections.setdefault(current, [])
        else:
            sections[current].append(line)
    block = "\n".join(line for line in sections.get("Args", []) if line.strip())
    arguments = {name: re.sub(r"\s*\n+\s*", " ", text.strip()) for _, name, text in _ARGUMENT.findall(block)}
    returned = "\n".join(sections["Returns"]).strip() if "Returns" in sections else None
    return "\n".join(sections[""]).strip(), arguments, returned


def _type_schema(hint: Any, where: str) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin is None and isinstance(hint, type):
        if issubclass(hint, Enum):
            return _enum([member.value for member in hint], where)
        if hint in _SCALARS:
            return {"type": _SCALARS[hint]}
        if hint in (list, tuple, dict):
            return {"type": "object" if hint is dict else "array"}
    if origin is Literal:
        return _enum(list(arguments), where)
    if origin in (Union, types.UnionType):
        options = [_type_schema(a, where) for a in arguments if a is not type(None)]
        if len(options) == 1:
            schema = options[0]
        elif all(option.keys() == {"type"} and isinstance(option["type"], str) for option in options):
            names = sorted({option["type"] for option in options})
            schema = {"type": names[0] if len(names) == 1 else names}
        else:
            schema = {"anyOf": options}
        return schema | ({"nullable": True} if type(None) in arguments else {})
    if origin is list:
        return {"type": "array", "items": _type_schema(arguments[0], where)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], where)}
    raise TypeError(
        f"{where} has the type {hint!r}, which has no JSON form; use str, int, float, bool, Literal, Enum, or list, "
        "dict and unions of them"
    )


def _enum(values: list[Any], where: str) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise TypeError(f"{where} allows {values!r}; each choice must be a str, int, float, bool or None")
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def checked_arguments(name: str, parameters: Mapping[str, Any], arguments: object) -> dict[str, Any]:
    """``arguments`` as the function takes them, or a :class:`ToolError` in words meant for the model.

    Nothing is converted but a whole number written as 3.0 where an integer is asked for, and an integer where a number
    is.

    Args:
        name: of the tool, for messages.
        parameters: the ``parameters`` part of its schema.
        arguments: what the model wrote, decoded from JSON: any value at all.
    """
    properties = parameters["properties"]
    usage = f"Use {name}({', '.join(properties)})." if properties else f"{name} takes no arguments."
    if not isinstance(arguments, Mapping):
        raise ToolError(f'arguments must be an object such as {{"name": value}}, not {_shown(arguments)}. {usage}')
    _check_size(arguments)
    for key in arguments:
        if key not in properties:
            raise ToolError(did_you_mean(f"argument of {name}", _short(key), properties, usage))
    missing = [key for key in parameters.get("required", ()) if key not in arguments]
    if missing:
        raise ToolError(f"{name} needs {', '.join(missing)}, which was not given. {usage}")
    return {key: _value(properties[key], value, f"{key} of {name}") for key, value in arguments.items()}


def _value(schema: Mapping[str, Any], value: Any, where: str) -> Any:
    if value is None and schema.get("nullable"):
        return None
    if "anyOf" in schema:
        for option in schema["anyOf"]:
            try:
                return _value(option, value, where)
            except ToolError:
                continue
        raise ToolError(f"{where} cannot be {_shown(value)}. Allowed: {json.dumps(schema['anyOf'])}.")
    kinds = schema.get("type")
    if kinds is not None:
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            matches, converted = _of_kind(kind, value)
            if matches:
                value = converted
                break
        else:
            wanted = kinds if isinstance(kinds, str) else " or ".join(kinds)
            raise ToolError(f"{where} must be of type {wanted}, not {_shown(value)}.")
    if "enum" in schema and value not in schema["enum"]:
        raise ToolError(did_you_mean(where, _short(value), [str(choice) for choice in schema["enum"]]))
    if isinstance(value, list) and "items" in schema:
        return [_value(schema["items"], entry, f"entry {i} of {where}") for i, entry in enumerate(value, 1)]
    if isinstance(value, Mapping) and "additionalProperties" in schema:
        return {k: _value(schema["additionalProperties"], v, f"an entry of {where}") for k, v in value.items()}
    return value


def _of_kind(kind: str, value: Any) -> tuple[bool, Any]:
    """Whether ``value`` is of the JSON type ``kind``, and the value as that type."""
    if kind == "string":
        return isinstance(value, str), value
    if kind == "boolean":
        return isinstance(value, bool), value
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_INTEGER:
            return False, value
        if kind == "number":
            return True, float(value)
        return float(value).is_integer(), int(value) if math.isfinite(value) else value
    if kind == "array":
        return isinstance(value, list), value
    if kind == "object":
        return isinstance(value, Mapping), value
    return value is None, value


def _check_size(arguments: object) -> None:
    """Refuse what would cost more to look at than any honest call needs."""
    pending: list[object] = [arguments]
    seen = 0
    while pending:
        value = pending.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ToolError(f"the arguments hold more than {MAX_VALUES} values; send fewer.")
        if isinstance(value, str) and len(value) > MAX_STRING:
            raise ToolError(f"a string of {len(value)} characters was given; at most {MAX_STRING} are allowed.")
        if isinstance(value, Mapping):
            pending.extend(value.keys())
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value[: MAX_VALUES + 1])


def _short(value: object) -> str:
    return clip(one_line(neutralise(str(value))), 60)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"the string {json.dumps(_short(value), ensure_ascii=False)}"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value if abs(value) <= MAX_INTEGER else 'too large to use'}"
    return f"{'an object' if isinstance(value, Mapping) else 'an array' if isinstance(value, list) else 'a value'}"
