"""Tools that answer for another task: their form with none of their knowledge.

What a tool is worth to an agent is what the agent loses with it. Left out of the prompt, a tool would be called all the
same by a policy that was taught with it, and an error it may never have read: its episodes would be invalid whatever
the tool is worth. So the answers of a tool are exchanged between tasks, as permutation importance exchanges the values
of a feature (Breiman, Machine Learning 2001).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.tools import TOOLS, Tool, resolve_tools


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
        other = int(np.random.default_rng([item + 1 for item in key]).integers(world.num_tasks("test")))
        return tool(world.view(world.task("test", other)), **arguments)

    return replace(tool, function=answer)
