"""The model card of a trained policy: what it scored, the command that made it again, and every setting of the run.

The command is made from the settings, so a run that was begun from Python has one too; a test reads it back.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import tyro

from agentrec_env.data.world import World
from agents.llm.card import Card
from algos import ALGORITHMS
from algos.config import algorithm_name, resolved

if TYPE_CHECKING:
    from algos.sft import SFTConfig
    from algos.training import Training

NAMES = {
    "valid/ndcg@10": "N@10",
    "valid/hit@1": "hit@1",
    "valid/reward": "reward",
    "valid/answered": "answered",
    "valid/calls": "tool calls",
    "valid/tokens": "tokens written",
}
"""Figures of an evaluation that a card shows, and what it calls them."""
PACKAGES = ("agentrec-env", "torch", "transformers")
"""Whose versions are told."""
_UNSAID = ("resume", "dry_run")
"""Settings that are no part of what was made."""
_BARE = get_args(tyro.conf.OmitArgPrefixes[int])[1]
"""What marks a field whose options go without its name."""
_MISSING = dataclasses.MISSING


def model_card(settings: Training[Any] | SFTConfig, step: int, figures: Mapping[str, float], world: World) -> Card:
    """The card of a policy.

    Args:
        settings: Of the run that it comes from.
        step: Steps it was trained for.
        figures: Of its evaluation, as they are logged; empty where it was not judged.
        world: What it was played in.
    """
    name = algorithm_name(settings)
    shown = {figure: figures[figure] for figure in NAMES if figure in figures}
    played = f"{min(settings.evaluate_tasks, world.num_tasks('valid')):,} valid tasks of {world.protocol}"
    return Card(
        title=f"{name} on {world.dataset.name}",
        text="\n".join(
            [
                f"A language model that calls tools and ranks items, trained by `{name}` from `{settings.model}` for "
                f"{step:,} of {settings.steps:,} steps, with AgentRec.",
                "",
                "## Figures",
                *(_table(shown, figures, played) if shown else ["It was not judged in training."]),
                "",
                f"## How it was made\nWith {', '.join(map(_version, PACKAGES))}:",
                "```bash",
                command(settings),
                "```",
                "<details><summary>Every setting, defaults included</summary>",
                "",
                "```json",
                json.dumps(resolved(settings), indent=1, ensure_ascii=False),
                "```",
                "</details>",
            ]
        ),
        figures={figure.removeprefix("valid/"): value for figure, value in shown.items()},
        protocol=played,
        tags=(name,) if name in ALGORITHMS else (),
    )


def command(settings: Training[Any] | SFTConfig) -> str:
    """The command line that begins this run."""
    return shlex.join(["agentrec", "train", algorithm_name(settings), *_options(settings, _own_default)])


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # a checkout on the path
        return package


def _table(shown: Mapping[str, float], figures: Mapping[str, float], played: str) -> Iterator[str]:
    intervals = any(f"{figure}/low" in figures for figure in shown)
    yield f"On {played}{'; 95 % bootstrap intervals' if intervals else ''}."
    yield ""
    yield "| figure | value |"
    yield "|---|---|"
    for figure, value in shown.items():
        low, high = figures.get(f"{figure}/low"), figures.get(f"{figure}/high")
        between = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        yield f"| {NAMES[figure]} | {value:.3f}{between} |"
    yield ""
    yield "The best policy of a run is chosen by these tasks, so its figures lean high; `agentrec run` has test tasks."


def _own_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not _MISSING:
        return field.default_factory()
    return field.default


def _options(settings: Any, default: Callable[[dataclasses.Field[Any]], Any], prefix: str = "") -> Iterator[str]:
    """Options for all that differs from its default, as tyro reads them."""
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        if field.name in _UNSAID and not prefix:
            continue
        value, usual = getattr(settings, field.name), default(field)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            bare = _BARE in getattr(hints[field.name], "__metadata__", ())
            known = _own_default if usual is _MISSING else _default_in(usual)
            yield from _options(value, known, prefix if bare else f"{prefix}{name}.")
        elif isinstance(value, bool) and value != usual:
            yield f"--{prefix}{'' if value else 'no-'}{name}"
        elif value != usual:
            yield f"--{prefix}{name}"
            yield from map(str, value) if isinstance(value, list | tuple) else (str(value),)


def _default_in(settings: object) -> Callable[[dataclasses.Field[Any]], Any]:
    return lambda field: getattr(settings, field.name)
