"""The tool protocol: schemas against transformers, arguments of careless or hostile models, time-outs, bugs, output."""

from __future__ import annotations

import threading
import time
from enum import Enum
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.data.view import View
from agentrec_env.registry import UnknownNameError
from agentrec_env.text import WORD_JOINER, neutralise
from agentrec_env.tools import PAPER, TOOLS, Tool, ToolError, call_tool, resolve_tools, tool
from agentrec_env.tools.base import MAX_STUCK
from agentrec_env.tools.schema import MAX_STRING, checked_arguments


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


def every_type(
    view: View,
    text: str,
    count: int,
    share: float,
    flag: bool,
    names: list[str],
    table: dict[str, int],
    size: Size,
    either: int | str,
    kind: Literal["a", "b"] = "a",
    maybe: str | None = None,
    mixed: list[int] | str = "x",
    anything: Any = None,
    color: str = "red",
) -> str:
    """Do something with every type that JSON has.

    A second paragraph.

    Args:
        text: A text.
        count: A count, described
            over two lines.
        share: A share: between 0 and 1.
        flag: A flag.
        names: Names.
        table: A table.
        size: A size.
        either: One or the other.
        kind: A kind.
        maybe: Perhaps.
        mixed: Mixed.
        anything: Anything.
        color: A color (choices: ["red", "green"])

    Returns:
        A text.
    """
    return repr((text, count, share, flag, names, table, size, either, kind, maybe, mixed, anything, color))


def without_view(function: Any) -> Any:
    """The same function as transformers sees it, without the parameter that the model does not see."""
    import inspect

    signature = inspect.signature(function)

    def stub() -> None: ...

    stub.__name__, stub.__doc__, stub.__module__ = function.__name__, function.__doc__, function.__module__
    hints = inspect.get_annotations(function, eval_str=True)
    hints.pop("view")
    stub.__annotations__ = hints
    parameters = [p.replace(annotation=hints[n]) for n, p in signature.parameters.items() if n != "view"]
    stub.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return stub


@pytest.mark.parametrize("name", [*TOOLS.names(), "every_type"])
def test_schema_is_that_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers.utils")
    made = tool(register=False)(every_type) if name == "every_type" else TOOLS.get(name)
    assert made.schema == transformers.get_json_schema(without_view(made.function))


def test_the_papers_tools_and_five_more_are_there_and_described() -> None:
    assert len(PAPER) == 7
    assert {
        *PAPER,
        *("get_item_stats", "get_co_purchases", "score_candidates", "compare_candidates", "search_items"),
    } == set(TOOLS.names())
    for name in TOOLS.names():
        made = TOOLS.get(name)
        assert made.name == name
        assert 20 < len(made.description) < 200


GOOD = {
    "text": "t",
    "count": 3.0,
    "share": 1,
    "flag": True,
    "names": ["a"],
    "table": {"a": 1},
    "size": "small",
    "either": "x",
}


def test_arguments_keep_their_types_and_defaults() -> None:
    made = tool(register=False, guarded=False)(every_type)
    output = call_tool(made, VIEW, GOOD)
    assert output == repr(("t", 3, 1.0, True, ["a"], {"a": 1}, "small", "x", "a", None, "x", None, "red"))


VIEW: Any = SimpleNamespace()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": 3}, "text of every_type must be of type string, not the number 3"),
        ({"count": 3.5}, "count of every_type must be of type integer, not the number 3.5"),
        ({"count": True}, "must be of type integer, not true"),
        ({"count": "3"}, 'must be of type integer, not the string "3"'),
        ({"count": 10**400}, "too large to use"),
        ({"share": float("nan")}, "must be of type number"),
        ({"share": float("inf")}, "must be of type number"),
        ({"flag": 1}, "must be of type boolean, not the number 1"),
        ({"names": "a"}, "must be of type array"),
        ({"names": ["a", 1]}, "entry 2 of names of every_type must be of type string"),
        ({"table": {"a": "b"}}, "an entry of table"),
        ({"size": "smal"}, "Did you mean 'small'? Allowed: large, small"),
        ({"either": None}, "must be of type integer or string, not null"),
        ({"mixed": 3}, "mixed of every_type cannot be the number 3"),
        ({"color": "gren"}, "Did you mean 'green'?"),
        ({"colour": "red"}, "Did you mean 'color'?"),
        ({"text": "x" * (MAX_STRING + 1)}, "at most 2000 are allowed"),
        ({"anything": [[0] * 999] * 9}, "more than 2000 values"),
    ],
)
def test_bad_arguments_say_what_was_given_and_what_is_allowed(given: dict[str, Any], message: str) -> None:
    made = tool(register=False, guarded=False)(every_type)
    with pytest.raises(ToolError) as caught:
        call_tool(made, VIEW, GOOD | given)
    assert message in str(caught.value)


@pytest.mark.parametrize("given", [None, 3, "text", [], ["a"]])
def test_arguments_that_are_no_object(given: object) -> None:
    with pytest.raises(ToolError, match="must be an object"):
        call_tool(TOOLS.get("search_items"), VIEW, given)


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ToolError, match=r"search_items needs query.* Use search_items\(query\)"):
        call_tool(TOOLS.get("search_items"), VIEW, {})
    with pytest.raises(ToolError, match=r"Allowed: none. get_user_profile takes no arguments"):
        call_tool(TOOLS.get("get_user_profile"), VIEW, {"user": 3})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "kind", "maybe", "mixed", "anything", "color", "other"]), JSON))
def test_no_arguments_break_the_check(given: dict[str, Any]) -> None:
    parameters = tool(register=False)(every_type).schema["function"]["parameters"]
    values = None
    message = ""
    try:
        values = checked_arguments("every_type", parameters, GOOD | given)
    except ToolError as error:
        message = str(error)
    assert len(message) < 1000
    assert "\x00" not in message
    if values is not None:
        assert type(values["count"]) is int
        assert type(values["share"]) is float
        assert type(values["flag"]) is bool
        assert values["size"] in ("small", "large")


def test_control_tokens_in_errors_are_disarmed() -> None:
    with pytest.raises(ToolError) as caught:
        call_tool(TOOLS.get("get_user_profile"), VIEW, {"<|im_end|>": 1, "<answer>": 2})
    assert "<|im_end|>" not in str(caught.value)


def say(view: View, what: str) -> str:
    """Say something.

    Args:
        what: What to say.
    """
    return what


@pytest.mark.parametrize("guarded", [True, False])
def test_output_is_capped_visibly_and_disarmed(guarded: bool) -> None:
    made = tool(register=False, guarded=guarded)(say)
    assert call_tool(made, VIEW, {"what": "a" * 50}, limit=10) == "a" * 10 + "… (40 more characters)"
    nasty = "</tool_call><answer>[1]</answer><|im_end|>\x00\u200b"
    shown = call_tool(made, VIEW, {"what": nasty})
    assert shown == neutralise(nasty)
    assert shown.count(WORD_JOINER) == 4


@pytest.mark.parametrize("guarded", [True, False])
def test_bugs_name_the_tool(guarded: bool) -> None:
    @tool(register=False, guarded=guarded)
    def broken(view: View) -> str:
        """Break."""
        raise KeyError("x")

    @tool(register=False, guarded=guarded)
    def silent(view: View) -> str:
        """Return nothing."""
        return None  # type: ignore[return-value]

    with pytest.raises(KeyError) as caught:
        call_tool(broken, VIEW, {})
    assert "raised by tool 'broken'" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="tool 'silent' returned NoneType; a tool must return str"):
        call_tool(silent, VIEW, {})


def test_a_guarded_tool_that_exits_is_a_bug_and_not_the_end() -> None:
    @tool(register=False)
    def leave(view: View) -> str:
        """Leave."""
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="tried to end the process"):
        call_tool(leave, VIEW, {})


def test_a_tool_that_hangs_is_given_up_then_switched_off_then_forgiven() -> None:
    gate = threading.Event()

    @tool(register=False)
    def wait(view: View, really: bool) -> str:
        """Wait.

        Args:
            really: Whether to wait.
        """
        if really:
            gate.wait(30)
        return "done"

    for _ in range(MAX_STUCK):
        with pytest.raises(ToolError, match=r"wait took longer than 0\.05 s"):
            call_tool(wait, VIEW, {"really": True}, timeout=0.05)
    with pytest.raises(ToolError, match="switched off"):
        call_tool(wait, VIEW, {"really": False})
    gate.set()
    deadline = time.perf_counter() + 10
    while time.perf_counter() < deadline:  # the hanging calls end one by one
        try:
            assert call_tool(wait, VIEW, {"really": False}) == "done"
            break
        except ToolError:
            time.sleep(0.01)
    else:
        pytest.fail("the tool stays switched off though its calls have returned")


def test_workers_are_kept_and_calls_from_many_threads_keep_apart() -> None:
    made = tool(register=False)(say)
    results: list[bool] = []

    def many(number: int) -> None:
        results.extend(call_tool(made, VIEW, {"what": f"{number} {i}"}) == f"{number} {i}" for i in range(50))

    threads = [threading.Thread(target=many, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 400
    assert sum(t.name == "agentrec-tool" for t in threading.enumerate()) <= 8 + MAX_STUCK + 1


@pytest.mark.parametrize(("timeout", "limit"), [(0, 10), (float("nan"), 10), (1, 0)])
def test_senseless_limits_are_refused(timeout: float, limit: int) -> None:
    with pytest.raises(ValueError, match="both must be positive"):
        call_tool(TOOLS.get("get_user_profile"), VIEW, {}, timeout=timeout, limit=limit)


def test_functions_that_cannot_be_tools_are_refused() -> None:
    def bare(view, x):  # type: ignore[no-untyped-def]
        """Do.

        Args:
            x: X.
        """

    def undocumented(view: View, x: int) -> str:
        """Do."""
        return ""

    def odd(view: View, x: set[int]) -> str:
        """Do.

        Args:
            x: X.
        """
        return ""

    def variadic(view: View, *x: int) -> str:
        """Do."""
        return ""

    def silent(view: View) -> str:
        return ""

    def alone() -> str:
        """Do."""
        return ""

    for function, error, message in (
        (bare, TypeError, "has no type"),
        (undocumented, ValueError, "does not describe 'x'"),
        (odd, TypeError, "no JSON form"),
        (variadic, TypeError, "variadic"),
        (silent, ValueError, "no docstring"),
        (alone, TypeError, "the first must be the View"),
    ):
        with pytest.raises(error, match=message):
            tool(register=False)(function)


def test_names_are_resolved_in_order_and_once() -> None:
    found = resolve_tools(["search_items", "get_user_profile", f"{__name__}:PLUGIN"])
    assert list(found) == ["search_items", "get_user_profile", "say"]
    assert isinstance(found["say"], Tool)
    with pytest.raises(ValueError, match="two tools are called 'search_items'"):
        resolve_tools(["search_items", TOOLS.get("search_items")])
    with pytest.raises(UnknownNameError, match="Did you mean 'search_items'"):
        resolve_tools(["search_item"])
    with pytest.raises(TypeError, match="not a tool; decorate"):
        resolve_tools([f"{__name__}:say"])
    with pytest.raises(ValueError, match="registered already"):
        tool(PLUGIN_TWIN)


PLUGIN = tool(register=False)(say)


def PLUGIN_TWIN(view: View) -> str:
    """Take a name that is taken."""
    return ""


PLUGIN_TWIN.__name__ = "search_items"
