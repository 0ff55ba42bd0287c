"""Command lines that teach: examples below the options, and the nearest name where one is misspelt.

One parser for every command of the project, so that they look and fail alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, overload

from agentrec_env.registry import did_you_mean


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose epilog keeps its lines and whose errors name what was meant; they exit with 2."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    @overload  # type: ignore[override]
    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace: ...
    @overload
    def parse_args(self, args: Sequence[str] | None, namespace: argparse.Namespace) -> argparse.Namespace: ...
    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The arguments; an unknown option ends the program with the nearest one."""
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            options = [name for name in _options(self) if name.startswith("--")]
            wrong = next((word for word in rest if word.startswith("-")), None)
            if wrong is None:
                self.error(f"unexpected argument {rest[0]!r}; see {self.prog} --help")
            self.error(did_you_mean("option", wrong.split("=")[0], options, f"See {self.prog} --help."))
        return known

    def error(self, message: str) -> NoReturn:
        """Say what was wrong and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, did_you_mean("value", value, map(str, action.choices)))


def json_object(text: str) -> dict[str, Any]:
    """What an option that takes a JSON object was given.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('a JSON object is needed, as {"temperature": 0.7}')
    return value


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Names of the options of a parser and its sub-commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)
