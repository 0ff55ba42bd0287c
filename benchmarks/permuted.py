"""Tools that answer for another task: their form with none of their knowledge.

What a tool is worth to an agent is what the agent loses with it. Left out of the prompt, a tool would be called all the
same by a policy that was taught with it, and an error it may never have read: its episodes would be invalid whatever
the tool is worth. So the answers of a tool are exchanged between tasks, as permutation importance exchanges the values
of a feature (Breiman, Machine Learning 2001). An item that an agent asks about by its title or id would be the same in
any task, so it is exchanged as well, for the candidate of the other task that has its number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.tools import TOOLS, Tool, ToolError, resolve_tools
from agentrec_env.tools.names import find_item


def permute(world: World, offered: Sequence[str] | None, names: Collection[str]) -> list[Tool]:
    """Tools of an environment, of which those called `names` answer for another test task, always the same one.

    Args:
        world: Of the environment.
        offered: As the environment's argument `tools`.
        names: By which a model calls them.
    """
    tools = resolve_tools(TOOLS.names() if offered is None else offered)
    return [_elsewhere(tool, world) if tool.name in names else tool for tool in tools.values()]


def _elsewhere(tool: Tool, world: World) -> Tool:
    def answer(view: View, **arguments: Any) -> str:
        key = [view.user, *view.candidates.tolist(), *view.history.tolist()]
        index = int(np.random.default_rng([item + 1 for item in key]).integers(world.num_tasks("test")))
        other = world.view(world.task("test", index))
        return tool(other, **{name: _exchanged(view, other, value) for name, value in arguments.items()})

    return replace(tool, function=answer)


def _exchanged(view: View, other: View, value: Any) -> Any:
    """What an argument becomes in the other task: an item the candidate there, anything else what it is."""
    if not isinstance(value, str):
        return value
    try:
        item = find_item(view, value)
    except ToolError:
        return value
    place = np.flatnonzero(view.candidates == item)
    number = int(place[0]) if len(place) else item
    there = int(other.candidates[number % len(other.candidates)])
    return other.items.titles[there] or other.items.ids[there]
