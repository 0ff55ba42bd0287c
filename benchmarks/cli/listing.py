"""`agentrec list`: what there is to name, one line each, from the registries.

Nothing is imported that a name merely stands for, so the list comes at once, without torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from agentrec_env.arguments import Parser
from agentrec_env.registry import Registry, did_you_mean, first_sentence

Lines = Iterator[tuple[str, str]]

EXAMPLES = """examples:
  agentrec list                     everything
  agentrec list agents tools
  agentrec list datasets            with every Amazon category that can be downloaded

What is listed goes by its name on the command line and in Python; "module:attribute" of your own goes wherever a name
does.
"""
USES = {
    "ids": 'gymnasium.make("agentrec_env:ID"), agentrec play ID',
    "agents": "agentrec run --agent NAME, agentrec play --against NAME",
    "tools": 'gymnasium.make(…, tools=["NAME"]), agentrec play --tools NAME',
    "datasets": "agentrec run --dataset NAME, gymnasium.make(…, dataset=NAME)",
    "rewards": "gymnasium.make(…, reward=NAME), agentrec train grpo --env.reward NAME",
    "algorithms": "agentrec train NAME",
}
"""Kind -> where its names go."""


def main(arguments: Sequence[str]) -> int:
    """List names; 0."""
    parser = Parser(prog="agentrec list", description="Name what there is, a line each.", epilog=EXAMPLES)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (default: all)")
    kinds = parser.parse_args(arguments).kinds
    for kind in kinds:
        if kind not in KINDS:
            parser.error(did_you_mean("kind", kind, KINDS))
    console = Console(highlight=False, soft_wrap=True)
    for kind in kinds or KINDS:
        console.print(Text.assemble((kind, "bold"), "   ", (USES[kind], "dim")))
        found = list(KINDS[kind](bool(kinds)))
        column = max(len(name) for name, _ in found)
        for name, about in found:
            # One line each where grep reads, and as many as the window needs where a person does.
            room = max(20, console.width - column - 4) if console.is_terminal else len(about) + 1
            first, *more = textwrap.wrap(about, room) or [""]
            console.print(Text.assemble("  ", (name.ljust(column), "bold"), f"  {first}"))
            for line in more:
                console.print(Text(" " * (column + 4) + line))
    return 0


def _ids(_: bool) -> Lines:
    from agentrec_env.registration import ABOUT

    yield from ABOUT.items()


def _agents(_: bool) -> Lines:
    from agents import AGENTS

    return _described(AGENTS)


def _tools(_: bool) -> Lines:
    from agentrec_env.tools import TOOLS

    for name in TOOLS.names():
        yield name, first_sentence(TOOLS.get(name).description)


def _datasets(whole: bool) -> Lines:
    from agentrec_env.data.cache import cache_dir
    from agentrec_env.data.categories import CATEGORIES
    from agentrec_env.data.load import DATASETS

    yield from _described(DATASETS)
    held = {folder.parent.name: folder.name for folder in (cache_dir() / "downloads").glob("*/*") if folder.is_dir()}
    for edition, name in sorted(held.items()):
        yield f"{edition}/{name}", "downloaded"
    for edition, names in CATEGORIES.items():
        if whole:
            yield edition, f"to be downloaded (agentrec data download NAME --edition {edition}): {', '.join(names)}"
        else:
            yield edition, f"{len(names)} Amazon categories to download: agentrec list datasets names them"
    yield "PATH", "reviews and metadata of Amazon, or a CSV or Parquet: agentrec data describe PATH"


def _rewards(_: bool) -> Lines:
    from agentrec_env.rewards import REWARDS

    return _described(REWARDS)


def _algorithms(_: bool) -> Lines:
    from algos import ALGORITHMS

    return _described(ALGORITHMS)


def _described(registry: Registry[Any]) -> Lines:
    for name in registry.names():
        yield name, registry.describe(name).replace("`", "")


KINDS: dict[str, Callable[[bool], Lines]] = {
    "ids": _ids,
    "agents": _agents,
    "tools": _tools,
    "datasets": _datasets,
    "rewards": _rewards,
    "algorithms": _algorithms,
}
"""Kind -> its names with a line each; whether it was asked for by name says if long lists are written out."""
