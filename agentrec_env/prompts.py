"""Every string of the environment that a model reads: tasks, tool overview, answer format, observations, errors.

Kept in one file so that a change of wording is seen for what it is, a change of the task. All that comes from data or
from the agent itself passes through `neutralise` before it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

from agentrec_env.actions import Mode, example
from agentrec_env.data.dataset import Items
from agentrec_env.data.view import View
from agentrec_env.registry import did_you_mean
from agentrec_env.text import clip, neutralise, one_line
from agentrec_env.tools import Tool
from agentrec_env.types import Invalid

Direction: TypeAlias = Literal["more", "less"]

TITLE_LIMIT = 200
"""Characters of a title that a prompt shows."""

_GOAL = {
    "rank": "Rank the candidate items by how likely this user is to choose each of them next.",
    "catalog": "Name the items of the catalogue that this user is most likely to choose next.",
    "more": "Which of the two items is this user MORE likely to choose next?",
    "less": "Which of the two items is this user LESS likely to choose next?",
}
_ANSWER = {
    "rank": "{example} with up to ten candidate numbers, 1 to {candidates}, most likely first",
    "catalog": "{example} with up to ten item ids, most likely first",
    "pair": "{example}, or the same with B",
}
_CALL = '<tool_call>{"name": "tool", "arguments": {"argument": "value"}}</tool_call>'
_SUBMITTED = {
    "rank": "up to ten candidate numbers, 1 to {candidates}, most likely first",
    "catalog": "up to ten item ids, most likely first",
    "pair": "the letter of the item, A or B",
}
OVER = "The task is over."
"""What a model reads for the call that ended the task, where it talks on."""


def item_name(items: Items, item: int) -> str:
    """How an item is called wherever a model reads of it: its title on one line, or that it has none."""
    return _Names.of(items)[item]


class _Names(dict[int, str]):
    """Names made so far, item index -> name; one an `Items`, since every prompt of every row shows some of them."""

    def __init__(self, items: Items) -> None:
        self._items = items

    @classmethod
    def of(cls, items: Items) -> _Names:
        names: _Names | None = items.cache.get("prompts.names")
        if names is None:
            names = items.cache["prompts.names"] = cls(items)
        return names

    def __missing__(self, item: int) -> str:
        title = one_line(self._items.titles[item] or "")
        if title:
            name = neutralise(clip(title, TITLE_LIMIT))
        else:
            name = f"unknown title (item {neutralise(one_line(clip(self._items.ids[item], TITLE_LIMIT)))})"
        self[item] = name
        return name


def task_prompt(view: View, rules: str, mode: Mode, direction: Direction | None = None) -> str:
    """The first observation of an episode.

    Args:
        view: What is known when the task is asked.
        rules: What `rules` made for the environment.
        mode: Form of the answer.
        direction: Which of a pair is asked for.
    """
    names = _Names.of(view.items)
    lines = [_GOAL[direction or mode], "", "The user's latest items, oldest first:"]
    ratings = view.known_ratings[len(view.known_ratings) - len(view.history) :]
    for item, rating in zip(view.history.tolist(), ratings.tolist(), strict=True):
        rated = "" if math.isnan(rating) else f" (rated {rating:g} of 5)"
        lines.append(f"- {names[item]}{rated}")
    if mode == "rank":
        lines += ["", f"The {len(view.candidates)} candidates:"]
        lines += [f"{n}. {names[item]}" for n, item in enumerate(view.candidates.tolist(), 1)]
    elif mode == "pair":
        lines += ["", "The two items:"]
        lines += [f"{letter}. {names[item]}" for letter, item in zip("AB", view.candidates.tolist(), strict=True)]
    lines += ["", rules]
    return "\n".join(lines)


def rules(tools: Iterable[Tool], mode: Mode, max_calls: int, candidates: int) -> str:
    """The tools and the form of an action; the same for every task of an environment.

    Args:
        tools: Tools the agent may call; one line each, full schemas are `RecEnv.tool_schemas`.
        mode: Form of the answer.
        max_calls: Tool calls allowed.
        candidates: C, the size of the pool.
    """
    overview = [tool_line(tool.schema) for tool in tools] if max_calls else []
    answer = _ANSWER[mode].format(example=example(mode, candidates), candidates=candidates)
    if not overview:
        return f"Think in <think>…</think> if you like. Then answer {answer}."
    return "\n".join(
        [
            "Tools:",
            *overview,
            "",
            "Think in <think>…</think> if you like. Then either call tools, each as",
            _CALL,
            "and read what comes back in <observation>…</observation>, or answer",
            f"{answer}.",
            f"You may make up to {max_calls} tool calls in all. The answer ends the task.",
        ]
    )


def native_rules(mode: Mode, max_calls: int, candidates: int, submit: str) -> str:
    """`rules` for models that call tools through an API, which shows them the schemas itself.

    Args:
        mode: Form of the answer.
        max_calls: Tool calls allowed.
        candidates: C, the size of the pool.
        submit: Name of the call that answers.
    """
    answer = f"{submit} with {_SUBMITTED[mode].format(candidates=candidates)}. That ends the task."
    if not max_calls:
        return f"Call {answer}"
    return f"You may make up to {max_calls} calls of the other tools in all. Then call {answer}"


def tool_line(schema: Mapping[str, Any]) -> str:
    """One line on a tool: its name, parameters (optional ones with ?), and the first sentence on what it does."""
    function = schema["function"]
    required = function["parameters"].get("required", ())
    parameters = ", ".join(
        f"{name}{'' if name in required else '?'}: {_type(spec)}"
        for name, spec in function["parameters"].get("properties", {}).items()
    )
    purpose = one_line(function["description"].split("\n\n")[0])
    return f"- {function['name']}({parameters}): {clip(purpose, 300)}"


def observation(text: str) -> str:
    """What a tool returned. The text is safe already: `call_tool` disarmed it."""
    return f"<observation>{text}</observation>"


def tool_error(text: str) -> str:
    """What a tool said where it could not answer."""
    return f"<observation>Error: {text}</observation>"


def budget(left: int) -> str:
    """How many tool calls remain, said when it starts to matter; empty before."""
    if left > 2:
        return ""
    if left == 0:
        return "No tool calls are left: answer now."
    return f"{left} tool call{'s' if left > 1 else ''} left."


def unknown_tool(name: str, tools: Iterable[str]) -> Invalid:
    """A call of a tool that does not exist here."""
    return Invalid("unknown_tool", did_you_mean("tool", clip(one_line(name), 60), tools))


def unknown_item(item_id: str) -> Invalid:
    """An answer in catalogue mode with an id that is not in the catalogue."""
    return Invalid("unknown_item", f"{clip(one_line(item_id), 60)!r} is not an item id of this catalogue.")


def invalid(problem: Invalid, retries_left: int) -> str:
    """What the agent reads after an invalid action that it may still mend."""
    forgiven = (
        "the next invalid action ends the task"
        if retries_left == 0
        else f"{retries_left} more invalid action{'s' if retries_left > 1 else ''} will be forgiven"
    )
    return f"<observation>Invalid action: {neutralise(problem.message)} Try again; {forgiven}.</observation>"


def _type(spec: Mapping[str, Any]) -> str:
    if "enum" in spec:
        return " | ".join(repr(value) for value in spec["enum"])
    if "anyOf" in spec:
        return " | ".join(_type(option) for option in spec["anyOf"])
    kind = spec.get("type", "any")
    if isinstance(kind, list):
        return " | ".join(kind)
    if kind == "array" and "items" in spec:
        return f"list of {_type(spec['items'])}"
    return str(kind)
