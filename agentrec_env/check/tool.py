"""Conformance of tools: schema, errors, output, time, and that nothing hidden reaches the model."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from agentrec_env.check.leaks import check_hidden, some_tasks
from agentrec_env.check.points import Points
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.env import RecEnv
from agentrec_env.tools import Tool, ToolError, call_tool, resolve_tools
from agentrec_env.types import Task

TOOL_SECONDS = 1.0
"""What a tool may take for one call, on average."""


def check_tool(
    tool: str | Tool, world: World | None = None, arguments: Sequence[Mapping[str, Any]] = (), tasks: int = 4
) -> list[str]:
    """Check a tool: schema, errors, output, time, and that nothing hidden reaches the model.

    Args:
        tool: A tool, a registered name or "module:attribute".
        world: Whose tasks to call it for; by default the embedded world.
        arguments: Calls to try, beside those made from the schema.
        tasks: How many tasks of each split.

    Returns:
        The points that hold.

    Raises:
        ConformanceError: Listing those that do not.
    """
    (made,) = resolve_tools([tool]).values()
    points = Points(f"tool {made.name}")
    world = world or RecEnv().world
    chosen, before = some_tasks(world, tasks), _checksum(world)
    with points.point("the schema is JSON and describes every parameter"):
        function = json.loads(json.dumps(made.schema))["function"]
        assert function["name"] == made.name, f"it names {function['name']!r}"
        assert function["description"].strip(), "no description"
        for name, spec in function["parameters"].get("properties", {}).items():
            assert str(spec.get("description", "")).strip(), f"parameter {name!r} is not described"
    with points.point("it answers plausible calls with text or ToolError"):
        for task in chosen:
            for call in _calls(made, world, task, arguments):
                assert isinstance(_answer(made, world.view(task), call), str)
    with points.point("wrong arguments are a ToolError"):
        for wrong in ({"no such argument": 1}, {name: {"a": [None]} for name in _parameters(made)}):
            if wrong:
                try:
                    call_tool(made, world.view(chosen[0]), wrong)
                except ToolError:
                    continue
                raise AssertionError(f"{wrong!r} was accepted")
    with points.point("equal calls give equal answers"):
        for task in chosen:
            for call in _calls(made, world, task, arguments):
                first, second = (_answer(made, world.view(task), call) for _ in range(2))
                assert first == second, f"{call!r}: {first[:80]!r}, then {second[:80]!r}"
    with points.point(f"a call takes under {TOOL_SECONDS:g} s"):
        calls = [(world.view(task), call) for task in chosen for call in _calls(made, world, task, arguments)]
        begin = time.perf_counter()
        for view, call in calls:
            _answer(made, view, call)
        mean = (time.perf_counter() - begin) / len(calls)
        assert mean < TOOL_SECONDS, f"{mean:.2f} s on average"
    with points.point("it leaves the data as it was"):
        assert _checksum(world) == before, "the dataset's arrays have changed"
    with points.point("it tells nothing that is hidden"):
        for task in chosen:
            for call in _calls(made, world, task, arguments):
                check_hidden(world, task, partial(_answer, made, arguments=call), f"{made.name}({call})")
    return points.result()


def _parameters(tool: Tool) -> Mapping[str, Any]:
    properties: Mapping[str, Any] = tool.schema["function"]["parameters"].get("properties", {})
    return properties


def _calls(tool: Tool, world: World, task: Task, extra: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plausible arguments: titles and numbers of the items at hand, and nonsense."""
    items = world.dataset.items
    at_hand = [*task.candidates[:2].tolist(), *task.history[-1:].tolist()]
    texts = [items.titles[item] or items.ids[item] for item in at_hand] + ["1", "no such thing"]
    properties = _parameters(tool)
    if not properties:
        return [{}, *map(dict, extra)]
    calls = []
    for number, text in enumerate(texts):
        by_type = {"string": text, "integer": number + 1, "number": 1.0, "boolean": bool(number % 2), "array": []}
        calls.append(
            {
                name: spec["enum"][number % len(spec["enum"])]
                if "enum" in spec
                else by_type.get(spec.get("type"), text)
                for name, spec in properties.items()
            }
        )
    return [*calls, *map(dict, extra)]


def _answer(tool: Tool, view: View, arguments: Mapping[str, Any]) -> str:
    try:
        return call_tool(tool, view, arguments)
    except ToolError as error:
        return f"error: {error}"


def _checksum(world: World) -> int:
    """Of the arrays that a view can reach."""
    data = world.dataset
    arrays = (data.user, data.item, data.rating, data.time, data.items.prices)
    return sum(zlib.crc32(array.tobytes()) for array in arrays if array is not None)
