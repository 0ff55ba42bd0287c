"""What a tool is, and the one way to call it: arguments checked, time limited, output capped and disarmed.

Arguments are written by a model and titles by strangers, so neither is trusted; that is dealt with here and nowhere
else, and a tool itself is a plain function from a ``View`` to text.
"""

from __future__ import annotations

import inspect
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

from agentrec_env.data.view import View
from agentrec_env.registry import Registry
from agentrec_env.text import clip, neutralise
from agentrec_env.tools.schema import ToolError, checked_arguments, function_schema

__all__ = ["TOOLS", "Tool", "ToolError", "call_tool", "resolve_tools", "tool"]

TIMEOUT = 10.0
"""Seconds that a guarded tool may take, where the caller sets nothing."""
MAX_OUTPUT = 4_000
"""Characters of a tool's output that a model gets to see, where the caller sets nothing."""
MAX_STUCK = 4
"""Calls of one tool that may hang at a time; from then on the tool is refused."""

TOOLS: Registry[Tool] = Registry("tool")


@dataclass(frozen=True, eq=False)
class Tool:
    """A function that an agent may call. Made by :func:`tool`; called through :func:`call_tool`."""

    name: str
    description: str
    schema: Mapping[str, Any]
    """OpenAI form: ``{"type": "function", "function": {"name", "description", "parameters", "return"}}``."""
    function: Callable[..., str]
    """``(view, **arguments) -> str``, as written."""
    guarded: bool = True
    """Whether it runs on a worker thread under the time-out, or inline, trusted to return."""

    def __call__(self, view: View, **arguments: Any) -> str:
        """The function as written: nothing checked, capped or disarmed."""
        return self.function(view, **arguments)


@overload
def tool(function: Callable[..., str], /) -> Tool: ...
@overload
def tool(*, register: bool = ..., guarded: bool = ...) -> Callable[[Callable[..., str]], Tool]: ...
def tool(
    function: Callable[..., str] | None = None, /, *, register: bool = True, guarded: bool = True
) -> Tool | Callable[[Callable[..., str]], Tool]:
    """Make a tool of a typed function with a Google docstring whose first parameter is the ``View``.

    The name is the function's; the schema comes from its types and docstring, and the view is left out of it::

        @tool
        def get_price(view: View, item_id: str) -> str:
            \"\"\"
            The price of an item.

            Args:
                item_id: The id of the item.
            \"\"\"

    Args:
        function: the function, where the decorator is used bare.
        register: whether to add it to ``TOOLS``; a tool named by ``"module:attribute"`` needs no entry.
        guarded: keep True unless the tool is known to return: see :func:`call_tool`.

    Raises:
        TypeError, ValueError: the function has no view parameter, docstring or types; or the name is taken.
    """
    if function is None:
        return lambda function: _make(function, register, guarded)
    return _make(function, register, guarded)


def _make(function: Callable[..., str], register: bool, guarded: bool) -> Tool:
    parameters = list(inspect.signature(function).parameters)
    if not parameters:
        raise TypeError(f"tool {function.__name__!r} has no parameters; the first must be the View")
    schema = function_schema(function, hidden=parameters[0])
    made = Tool(function.__name__, schema["function"]["description"], schema, function, guarded)
    if register:
        TOOLS.register(made.name, made)
    return made


def resolve_tools(names: Iterable[str | Tool]) -> dict[str, Tool]:
    """The tools that ``names`` mean, by the name that a model calls, in that order.

    Args:
        names: registered names, ``"module:attribute"``, or tools.

    Raises:
        UnknownNameError: no such tool.
        TypeError: what was named is no tool.
        ValueError: two tools of one name.
    """
    found: dict[str, Tool] = {}
    for name in names:
        made = TOOLS.get(name) if isinstance(name, str) else name
        if not isinstance(made, Tool):
            raise TypeError(f"{name!r} is a {type(made).__name__}, not a tool; decorate the function with @tool")
        if made.name in found:
            raise ValueError(f"two tools are called {made.name!r}; name each tool once")
        found[made.name] = made
    return found


def call_tool(tool: Tool, view: View, arguments: object, timeout: float = TIMEOUT, limit: int = MAX_OUTPUT) -> str:
    """Call ``tool`` for a model.

    A guarded tool (every plug-in, unless its author says otherwise) runs on a worker thread, kept for the next call.
    One that does not return in time is given up: the model gets a :class:`ToolError` and the thread is left behind as a
    daemon, because Python cannot stop a thread; once ``MAX_STUCK`` calls of a tool hang, further ones are refused. A
    tool that holds the interpreter lock for ever in C code cannot be guarded against inside one process. The built-in
    tools do bounded work and run inline, where a time-out could only throw away an answer that is already there, so
    they have none and their output does not depend on the clock.

    Args:
        tool: the tool.
        view: what may be known for the task.
        arguments: what the model wrote, decoded from JSON; checked here.
        timeout: seconds, for a guarded tool.
        limit: characters kept of the output; a cut is visible.

    Returns:
        Text that is safe to show: at most about ``limit`` characters, with no live control token.

    Raises:
        ToolError: for the model; its text is capped and disarmed as well.
        Exception: anything else is a bug of the tool, and names it.
    """
    if not timeout > 0 or limit < 1:
        raise ValueError(f"timeout is {timeout} s and limit {limit} characters; both must be positive")
    try:
        values = checked_arguments(tool.name, tool.schema["function"]["parameters"], arguments)
        output = _guarded(tool, view, values, timeout) if tool.guarded else tool.function(view, **values)
    except ToolError as error:
        raise ToolError(neutralise(clip(str(error), limit))) from None
    except Exception as error:
        error.add_note(f"raised by tool {tool.name!r}; a tool tells the model of a problem with ToolError")
        raise
    if not isinstance(output, str):
        raise TypeError(f"tool {tool.name!r} returned {type(output).__name__}; a tool must return str")
    return neutralise(clip(output, limit))


_idle: list[_Worker] = []
_stuck: Counter[Tool] = Counter()  # calls that hang now
_lock = threading.Lock()


class _Call:
    """One call on its way through a worker."""

    def __init__(self, run: Callable[[], object], tool: Tool) -> None:
        self.run, self.tool = run, tool
        self.answer: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()
        self.over = False
        self.given_up = False


class _Worker:
    """A daemon thread that runs one call at a time; daemon, so that a hanging tool cannot keep the process alive."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="agentrec-tool", daemon=True).start()

    def _serve(self) -> None:
        while True:
            call = self.calls.get()
            output: object = None
            problem: BaseException | None = None
            try:
                output = call.run()
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                problem = error
            with _lock:
                call.over = True
                if call.given_up:
                    _stuck[call.tool] -= 1
                _idle.append(self)
            call.answer.put((output, problem))
            del call, output, problem


def _guarded(tool: Tool, view: View, values: dict[str, Any], timeout: float) -> object:
    with _lock:
        if _stuck[tool] >= MAX_STUCK:
            raise ToolError(f"{tool.name} is switched off: {MAX_STUCK} calls of it never returned. Use other tools.")
        worker = _idle.pop() if _idle else _Worker()
    call = _Call(lambda: tool.function(view, **values), tool)
    worker.calls.put(call)
    try:
        output, problem = call.answer.get(timeout=timeout)
    except queue.Empty:
        with _lock:
            if not call.over:
                call.given_up = True
                _stuck[tool] += 1
        if call.given_up:
            raise ToolError(
                f"{tool.name} took longer than {timeout:g} s and was given up; try other arguments or other tools."
            ) from None
        output, problem = call.answer.get()
    if problem is None:
        return output
    if isinstance(problem, Exception):
        raise problem
    raise RuntimeError(f"tool {tool.name!r} tried to end the process: {problem!r}") from problem


def _forget_workers() -> None:
    """A forked child has the list of workers, but not their threads."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()
    _stuck.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
