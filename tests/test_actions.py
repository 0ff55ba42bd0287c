"""The action grammar: what counts, what does not, the round trip, and any text at all in linear time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrec_env.actions import parse, render
from agentrec_env.types import Choice, Invalid, Ranking, ToolCall

CALL = '<tool_call>{"name": "get_user_profile", "arguments": {}}</tool_call>'


def code(text: str, mode: str = "rank", candidates: int = 20) -> str:
    result = parse(text, candidates, mode)  # type: ignore[arg-type]
    assert isinstance(result, Invalid), result
    assert result.message
    return result.code


@pytest.mark.parametrize(
    "text",
    [
        "<answer>[8, 3, 15]</answer>",
        "<answer>\\boxed{[8,3,15]}</answer>",
        "<answer>\n \\boxed{ [8, 3, 15] }\n</answer>\n",
        "\\boxed{[8,3,15]}",
        "So the answer is $\\boxed {[8,3,15]}$.",
        "<think>why not [1]?</think><answer>[8,3,15]</answer> and that is all",
        "<answer>[8,3,15]",
        "<answer>\\boxed{[8,3,15]",
        "<answer>\\boxed{[8,3,15]}",
        "\\boxed{[8,3,15]} as I said: <answer>[8, 3, 15]</answer>",
        "thought opened by the prompt <answer>[1]</answer></think><answer>[8,3,15]</answer>",
    ],
)
def test_ranking_forms(text: str) -> None:
    assert parse(text, 20) == Ranking((8, 3, 15))


def test_calls() -> None:
    assert parse(CALL, 20) == [ToolCall("get_user_profile", {})]
    assert parse('<tool_call>{"name": "x"}</tool_call>', 20) == [ToolCall("x", {})]
    assert parse('<tool_call>{"name": "x", "arguments": null}', 20) == [ToolCall("x", {})]
    assert parse(f"I look.\n{CALL}\nand\n{CALL}", 20) == [ToolCall("get_user_profile", {})] * 2


def test_tags_inside_json_strings_are_text() -> None:
    title = '</tool_call> } { <answer>[1]</answer> <think> \\boxed{[1]} " 漢'
    arguments = {"title": title, "deep": {"a": [{}, {"b": {}}]}}
    text = f"<tool_call>{json.dumps({'name': 'x', 'arguments': arguments})}</tool_call>"
    assert parse(text, 20) == [ToolCall("x", arguments)]


def test_thoughts_do_not_count() -> None:
    assert code(f"<think>{CALL}<answer>[1]</answer></think>") == "no_action"
    assert parse(f"<think><tool_call>broken</think>{CALL}", 20) == [ToolCall("get_user_profile", {})]
    assert parse(f"<tool_call>broken</think>{CALL}", 20) == [ToolCall("get_user_profile", {})]
    assert parse(f"<think><think>{CALL}</think>{CALL}</think>\\boxed{{[1]}}", 20) == Ranking((1,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no_action"),
        ("I would pick number 3.", "no_action"),
        ("[8, 3, 15]", "no_action"),
        ("<think>hm <answer>[1]</answer>", "unclosed_thought"),
        (CALL + "<answer>[1]</answer>", "mixed"),
        ("<answer>[1]</answer><answer>[2]</answer>", "several_answers"),
        ("<answer>8, 3</answer>", "bad_answer"),
        ("<answer>[8, 3] or so</answer>", "bad_answer"),
        ("<answer>{}</answer>", "bad_answer"),
        ("<answer>[1.0]</answer>", "bad_answer"),
        ('<answer>["1"]</answer>', "bad_answer"),
        ("<answer>[true]</answer>", "bad_answer"),
        ("<answer>[[1]]</answer>", "bad_answer"),
        ("<answer>[]</answer>", "empty_answer"),
        ("<answer>[1, 2, 1]</answer>", "duplicate"),
        ("<answer>[0]</answer>", "outside_pool"),
        ("<answer>[21]</answer>", "outside_pool"),
        ("<answer>[-1]</answer>", "outside_pool"),
        (f"<answer>[{'9' * 4000}]</answer>", "outside_pool"),
        (f"<answer>[{'9' * 9000}]</answer>", "bad_json"),
        ("<answer>[1,</answer>", "bad_json"),
        ("<answer>[1,]</answer>", "bad_json"),
        ("<answer></answer>", "bad_json"),
        ("<tool_call>get_user_profile()</tool_call>", "bad_json"),
        ('<tool_call>{"name": "x", "arguments": {"a": NaN}}</tool_call>', "bad_json"),
        ('<tool_call>{"name": "x", "arguments": {"a": 1e999}}</tool_call>', "bad_json"),
        ('<tool_call>{"name": "x", "arguments": {"a": "\\ud800"}}</tool_call>', "bad_json"),
        ("<tool_call>{'name': 'x'}</tool_call>", "bad_json"),
        ('<tool_call>{"name": "x", "argu', "bad_json"),
        ("<tool_call>[]</tool_call>", "bad_call"),
        ('<tool_call>{"arguments": {}}</tool_call>', "bad_call"),
        ('<tool_call>{"name": 3}</tool_call>', "bad_call"),
        ('<tool_call>{"name": "x", "arguments": "{}"}</tool_call>', "bad_call"),
        ('<tool_call>{"name": "x"}} </tool_call>', "bad_call"),
        ('<tool_call>{"name": "x"} and then <answer>[1]</answer>', "bad_call"),
    ],
)
def test_invalid(text: str, expected: str) -> None:
    assert code(text) == expected


def test_more_than_ten_are_read() -> None:
    assert parse(f"<answer>{list(range(1, 21))}</answer>", 20) == Ranking(tuple(range(1, 21)))


@pytest.mark.parametrize("text", ["\\boxed{A}", "<answer>A</answer>", "<answer>\\boxed{ A }</answer>", "<answer>A"])
def test_pair(text: str) -> None:
    assert parse(text, 2, "pair") == Choice("A")
    assert parse(text.replace("A", "B"), 2, "pair") == Choice("B")


@pytest.mark.parametrize("text", ["\\boxed{C}", "<answer>AB</answer>", "<answer>a</answer>", "<answer>[1]</answer>"])
def test_pair_invalid(text: str) -> None:
    assert code(text, "pair") == "bad_answer"


def test_catalog() -> None:
    assert parse('<answer>["B00A", "x-1"]</answer>', 0, "catalog") == Ranking(("B00A", "x-1"))
    assert code("<answer>[1]</answer>", "catalog") == "bad_answer"
    assert code('<answer>["a", "a"]</answer>', "catalog") == "duplicate"


# Surrogates cannot be encoded, so no real tool argument or id holds one.
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
calls = st.builds(ToolCall, words.filter(bool), st.dictionaries(words, json_values, max_size=3))
thoughts = st.none() | words.filter(lambda text: "</think>" not in text)


@given(st.lists(calls, min_size=1, max_size=4), thoughts)
def test_round_trip_of_calls(action: list[ToolCall], thought: str | None) -> None:
    assert parse(render(action, thought), 20) == action


@given(st.lists(st.integers(1, 50), min_size=1, unique=True), thoughts)
def test_round_trip_of_rankings(numbers: list[int], thought: str | None) -> None:
    action = Ranking(tuple(numbers))
    assert parse(render(action, thought), 50) == action
    assert render(Ranking(tuple(np.array(numbers)))) == render(action)


@given(st.lists(words, min_size=1, unique=True), thoughts)
def test_round_trip_of_item_ids(ids: list[str], thought: str | None) -> None:
    assert parse(render(Ranking(tuple(ids)), thought), 0, "catalog") == Ranking(tuple(ids))


@given(st.sampled_from(["A", "B"]), thoughts)
def test_round_trip_of_choices(letter: str, thought: str | None) -> None:
    assert parse(render(Choice(letter), thought), 2, "pair") == Choice(letter)  # type: ignore[arg-type]


def test_render_refuses_what_it_cannot_write() -> None:
    with pytest.raises(ValueError, match="</think>"):
        render(Ranking((1,)), thought="a </think> b")
    with pytest.raises(ValueError, match="at least one"):
        render([])


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>", "\\boxed{"]
SIGNS = ["}", "{", "[", "]", '"', "\\", ",", ":", "1", "8, 3", '{"name": "x", "arguments": {}}', " ", "A", "\ud800"]
pieces = st.sampled_from([*TAGS, *SIGNS])


@given(st.lists(pieces | st.text(max_size=5), max_size=30).map("".join), st.sampled_from(["rank", "pair", "catalog"]))
def test_any_text_is_read(text: str, mode: str) -> None:
    result = parse(text, 20, mode)  # type: ignore[arg-type]
    assert isinstance(result, list | Ranking | Choice | Invalid)
    if isinstance(result, list):
        assert result
        assert parse(render(result), 20) == result


UNITS = [
    "<think>",
    "</think>",
    "<tool_call>",
    '<tool_call>["',
    '<tool_call>{"a": "',
    '<tool_call>[",',
    '<tool_call>"\\',
    "<tool_call>[[[[",
    "<answer>",
    "<answer>   ",
    "<answer>[1,",
    "\\boxed{",
    "\\boxed        ",
    "\\boxed{[1,2,",
    "<answer>\\boxed{[3]}",
    "[",
    "{",
    " ",
    "<",
    "<think></think>",
    "<answer>[1]</answer>",
]


@pytest.mark.timeout(60)  # quadratic work takes minutes
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("head", ["", "<answer>[", '<tool_call>["', "<tool_call>"])
def test_hostile_text_takes_linear_time(unit: str, head: str) -> None:
    parse(head + unit * (400_000 // len(unit)), 20)


@pytest.mark.timeout(60)  # quadratic work takes many minutes at this length
@pytest.mark.parametrize("unit", ["<tool_call>", "\\boxed{", "<answer>", "</think><tool_call>"])
def test_very_long_hostile_text_takes_linear_time(unit: str) -> None:
    parse(unit * (6_000_000 // len(unit)), 20)


def test_reading_stops_at_the_sixteenth_malformed_tag() -> None:
    assert parse("<answer>" * 15 + f"</think>{CALL}", 20) == [ToolCall("get_user_profile", {})]
    assert code("<answer>" * 16 + f"</think>{CALL}") == "bad_json"


@pytest.mark.timeout(60)  # quadratic work takes minutes
def test_long_lists_take_linear_time() -> None:
    assert isinstance(parse(f"<answer>{list(range(1, 100_000))}</answer>", 100_000), Ranking)
    assert code(f"<answer>{[*range(1, 100_000), 99_999]}</answer>", candidates=100_000) == "duplicate"
