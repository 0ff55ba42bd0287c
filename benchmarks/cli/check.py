"""`agentrec check`: the conformance suite on what someone plugs in, a line for each point that holds or does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.text import Text

from agentrec_env.arguments import Parser, json_object
from agentrec_env.registry import UnknownNameError

EXAMPLES = """examples:
  agentrec check agent mine:first_ten             a function of one observation, or a class with reset and act
  agentrec check agent llm --args '{"model": "runs/grpo/best", "temperature": 0}'
  agentrec check tool my_shop.tools:get_stock     schema, errors, time, and that it tells nothing of the future
  agentrec check dataset my_shop:interactions     a Dataset or a function that makes one, a folder, a CSV
  agentrec check env my_shop:MyShop-v0            an id that importing my_shop registers

Each point is tried, whatever became of the one before. In tests of your own, call agentrec_env.check.check_agent,
check_tool, check_dataset and check_rec_env, which raise ConformanceError.

exit codes: 0 all points hold; 1 some do not; 2 there is no such thing to check
"""


def main(arguments: Sequence[str]) -> int:
    """Check one thing; 0 where all points hold, 1 where some do not, 2 where there is nothing to check."""
    parser = Parser(prog="agentrec check", description="Test what you plug in.", epilog=EXAMPLES)
    parser.add_argument("kind", choices=tuple(CHECKS), metavar="KIND", help=", ".join(CHECKS))
    parser.add_argument("name", metavar="NAME", help="a name, or module:attribute; see agentrec list")
    parser.add_argument(
        "--args", type=json_object, default={}, metavar="JSON", help="arguments of an agent's class or env"
    )
    options = parser.parse_args(arguments)
    if options.args and options.kind not in ("agent", "env"):
        parser.error(f"--args are those of an agent or an env; a {options.kind} takes none")
    from agentrec_env.check import ConformanceError
    from agentrec_env.data.report import DataError

    console = Console(highlight=False, soft_wrap=True)
    failures: Sequence[str] = ()
    try:
        passed = CHECKS[options.kind](options.name, options.args)
    except ConformanceError as error:
        passed, failures = list(error.passed), error.failures
    except (UnknownNameError, DataError, TypeError, ValueError) as error:
        print(f"agentrec check: {error}", file=sys.stderr)
        return 2
    for point in passed:
        console.print(Text.assemble(("pass", "green"), f"  {point}"))
    for failure in failures:
        console.print(Text.assemble(("FAIL", "bold red"), f"  {failure}"))
    count = len(passed) + len(failures)
    verdict = "all hold" if not failures else f"{len(failures)} do not hold"
    console.print(Text(f"{options.kind} {options.name}: {count} points, {verdict}", "green" if not failures else "red"))
    return 1 if failures else 0


def _agent(name: str, arguments: dict[str, Any]) -> list[str]:
    from agentrec_env.check import check_agent
    from agents import AGENTS, make

    return check_agent(make(name, **arguments) if arguments else AGENTS.get(name))


def _tool(name: str, arguments: dict[str, Any]) -> list[str]:
    from agentrec_env.check import check_tool

    return check_tool(name)


def _dataset(name: str, arguments: dict[str, Any]) -> list[str]:
    from agentrec_env.check import check_dataset

    return check_dataset(name)


def _env(name: str, arguments: dict[str, Any]) -> list[str]:
    from agentrec_env.check import check_rec_env

    return check_rec_env(_made(name, arguments))


def _made(name: str, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    """The environment of an id, or at "module:attribute": one, or a class or function that makes one."""
    module, _, attribute = name.partition(":")
    try:
        thing = getattr(importlib.import_module(module), attribute, None) if attribute else None
        if thing is None:
            return gym.make(name, **arguments)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"environment {name!r} cannot be made: {error}") from error
    made: gym.Env[Any, Any] = thing if isinstance(thing, gym.Env) else thing(**arguments)
    return made


CHECKS: dict[str, Callable[[str, dict[str, Any]], list[str]]] = {
    "agent": _agent,
    "tool": _tool,
    "dataset": _dataset,
    "env": _env,
}
"""Kind -> its check: from a name and arguments to the points that hold."""
