"""Tools that fail or answer on purpose, for tests of what surrounds them; not registered, named by "tests.fakes:…"."""

from __future__ import annotations

from agentrec_env.data.view import View
from agentrec_env.tools import ToolError, tool


@tool(register=False, guarded=False)
def cheap(view: View) -> str:
    """Say how much is known of the user. And more."""
    return f"{len(view.known)} known items"


@tool(register=False, guarded=False)
def echo(view: View, text: str, times: int = 1) -> str:
    """Repeat a text.

    Args:
        text: What to repeat.
        times: How often.
    """
    if times < 1:
        raise ToolError(f"times must be at least 1, not {times}")
    return text * times


@tool(register=False, guarded=False)
def broken(view: View) -> str:
    """Fail, as a tool with a bug does."""
    raise ZeroDivisionError("a bug in the tool")


@tool(register=False, guarded=False)
def peeking(view: View) -> str:
    """Tell what the user takes next, which no tool may know."""
    data = view._split.dataset
    rows = data.rows(view.user)
    return ", ".join(str(item) for item in data.item[rows][view._position : view._position + 1])
