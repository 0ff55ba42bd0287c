"""Names for things that users plug in: tools, rewards, agents, datasets, splits.

A registry maps a name to an object or to a lazy ``"module:attribute"`` string, so that naming a thing costs no import
until it is used; an unregistered ``"module:attribute"`` is accepted wherever a name is.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar, cast, overload

T = TypeVar("T")


class UnknownNameError(LookupError):
    """A name that no one registered. The message lists what is allowed and the nearest name."""


def did_you_mean(kind: str, name: object, allowed: Iterable[str], hint: str = "") -> str:
    """An error sentence: what was given, the nearest allowed name, all allowed names, what to do next."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    nearest = next((n for n in names if near and n.lower() == near[0]), None)
    guess = f" Did you mean {nearest!r}?" if nearest else ""
    return f"unknown {kind} {name!r}.{guess} Allowed: {', '.join(names) or 'none'}.{' ' + hint if hint else ''}"


class Registry(Generic[T]):
    """Names of one kind of thing, such as "tool"."""

    def __init__(self, kind: str, attribute_hint: bool = True) -> None:
        self.kind = kind
        self._entries: dict[str, T | str] = {}
        self._hint = f'Or give "module:attribute" of your own {kind}.' if attribute_hint else ""

    @overload
    def register(self, name: str) -> Callable[[T], T]: ...
    @overload
    def register(self, name: str, value: T | str) -> T | str: ...
    def register(self, name: str, value: T | str | None = None) -> Callable[[T], T] | T | str:
        """Register ``value`` under ``name``; without ``value``, a decorator. A taken name is a ``ValueError``."""
        if value is None:

            def decorator(value: T) -> T:
                self.register(name, value)
                return value

            return decorator
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name or unregister it first")
        self._entries[name] = value
        return value

    def unregister(self, name: str) -> None:
        self._entries.pop(name, None)

    def get(self, name: str) -> T:
        """The thing named ``name``, or at ``"module:attribute"``; else ``UnknownNameError``."""
        if name not in self._entries:
            if isinstance(name, str) and ":" in name:
                return cast(T, _load(self.kind, name))
            raise UnknownNameError(did_you_mean(self.kind, name, self._entries, self._hint))
        value = self._entries[name]
        if isinstance(value, str):
            value = self._entries[name] = cast(T, _load(self.kind, value))
        return value

    def names(self) -> tuple[str, ...]:
        """Registered names in order of registration."""
        return tuple(self._entries)

    def describe(self, name: str) -> str:
        """The first sentence of what ``name`` says of itself; "" where it says nothing.

        A lazy entry is read, not imported, so a list of names costs none of what they need.
        """
        value = self._entries.get(name, name)
        text = _written(value) if isinstance(value, str) else inspect.getdoc(value)
        return first_sentence(text or "")

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def first_sentence(text: str) -> str:
    """Of the first paragraph of a docstring, on one line and without its full stop."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"\.(?=\s+[A-Z`\"']|$)", paragraph, maxsplit=1)[0]


def _written(path: str) -> str | None:
    """The docstring of what stands at "module:attribute", from the source; None where there is none to be read."""
    module, _, attribute = path.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else None
    except (ImportError, ValueError, OSError, SyntaxError):
        return None
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return ast.get_docstring(node)
    return None


def _load(kind: str, path: str) -> object:
    module_name, _, attribute = path.partition(":")
    try:
        value: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownNameError(
            f"{kind} {path!r} cannot be imported: {error}. Check the spelling, and that what it needs is installed "
            "and on PYTHONPATH."
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise UnknownNameError(did_you_mean(f"attribute of {module_name}", part, vars(value)))
        value = getattr(value, part)
    return value
