r"""The action grammar: from the text that an agent writes to tool calls or an answer, and back.

The form is AgenticRec's (arXiv:2603.21613, sec. 3), which is also the Hermes / Qwen tool-call form. `parse` takes any
text at all, never raises, and needs time linear in its length; `render` is its inverse.

    action   = prose, thoughts, and then tool calls or one answer, in any mixture of white space and prose
    thought  = <think> … </think>                                  nothing inside counts
    call     = <tool_call>{"name": …, "arguments": {…}}</tool_call>
    answer   = <answer>LIST</answer> | <answer>\boxed{LIST}</answer> | \boxed{LIST}
    LIST     = [8, 3, 15]           list-wise tasks: candidate numbers
             | ["B00A", "B00B"]     catalogue mode: item ids
             | A | B                pair tasks

Rules for what the paper leaves open:

- A thought that the prompt opened may be closed alone: everything before an unopened `</think>` is thought.
- A thought that never closes is invalid.
- A closing `</tool_call>`, `</answer>` or `}` may be missing at the very end of the text: many servers cut off the stop
  string.
- Several calls in one action run in order. A call beside an answer, or two answers that differ, is invalid: no guess.
- Prose after a call or an answer is ignored.
- A list may be shorter than ten; of a longer one only the first ten are judged. An empty list, an item twice, or a
  number outside the pool is invalid. Item ids are checked against the catalogue by the session.
- Reading stops at the sixteenth malformed tag.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal, TypeAlias

from agentrec_env.types import Choice, Invalid, Ranking, ToolCall

Mode: TypeAlias = Literal["rank", "pair", "catalog"]
Action: TypeAlias = list[ToolCall] | Ranking | Choice | Invalid

_MARK = re.compile(r"<(?:think|/think|tool_call|answer)>|\\boxed\s{0,8}\{")
# A JSON error costs time linear in the text before it (its line number is counted), so there may only be so many.
_MAX_FAILURES = 16
_SPACE = re.compile(r"\s*")
_BOXED = re.compile(r"\\boxed\s{0,8}\{")
_LETTER = re.compile(r"[AB](?![A-Za-z])")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


# The C scanner under raw_decode, which typeshed leaves out.
_scan = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite).scan_once  # type: ignore[attr-defined]


class _Malformed(Exception):
    """Carries an Invalid out of a sub-parser."""

    def __init__(self, code: str, message: str) -> None:
        self.invalid = Invalid(code, message)


def parse(text: str, num_candidates: int, mode: Mode = "rank") -> Action:
    """Read one action.

    Args:
        text: Whatever the agent wrote.
        num_candidates: C, the size of the pool; unused in catalogue and pair mode.
        mode: What an answer holds: candidate numbers, a letter, or item ids.

    Returns:
        The tool calls in order; or the answer; or what was wrong, in words meant for the agent.
    """
    calls: list[ToolCall] = []
    answers: list[Ranking | Choice] = []
    errors: list[Invalid] = []
    at = failures = 0
    while (mark := _MARK.search(text, at)) is not None:
        token, at = mark.group(), mark.end()
        if token == "<think>":
            at = text.find("</think>", at) + len("</think>")
            if at < len("</think>"):
                errors.append(Invalid("unclosed_thought", "<think> is never closed; write </think> before you act."))
                break
        elif token == "</think>":
            for found in (calls, answers, errors):
                found.clear()
        else:
            try:
                if token == "<tool_call>":
                    call, at = _call(text, at)
                    calls.append(call)
                elif token == "<answer>":
                    answer, at = _answer(text, at, num_candidates, mode)
                    answers.append(answer)
                else:
                    answer, at = _boxed(text, at, num_candidates, mode)
                    answers.append(answer)
            except _Malformed as malformed:
                errors.append(malformed.invalid)
                failures += 1
                if failures == _MAX_FAILURES:
                    break
    if errors:
        return errors[0]
    if calls and not answers:
        return calls
    if calls:
        return Invalid("mixed", "A tool call and an answer in one message; send either calls or the answer.")
    if len(answers) > 1 and any(answer != answers[0] for answer in answers):
        return Invalid("several_answers", f"{len(answers)} answers that differ in one message; send one.")
    if answers:
        return answers[0]
    return Invalid(
        "no_action",
        'Neither a tool call nor an answer. Write <tool_call>{"name": …, "arguments": {…}}</tool_call> '
        f"or {example(mode, num_candidates)}.",
    )


def render(action: list[ToolCall] | Ranking | Choice, thought: str | None = None) -> str:
    r"""The text of an action: ``parse(render(action)) == action``.

    Args:
        action: Calls, a ranking or a choice.
        thought: Put before it in ``<think>``; must not hold ``</think>``.
    """
    if isinstance(action, Ranking):
        entries = [entry if isinstance(entry, str) else int(entry) for entry in action.entries]
        body = f"<answer>\\boxed{{{json.dumps(entries, ensure_ascii=False)}}}</answer>"
    elif isinstance(action, Choice):
        body = f"<answer>\\boxed{{{action.letter}}}</answer>"
    else:
        if not action:
            raise ValueError("nothing to render: give at least one tool call, a ranking or a choice")
        body = "\n".join(
            "<tool_call>"
            + json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False, allow_nan=False)
            + "</tool_call>"
            for call in action
        )
    if thought is None:
        return body
    if "</think>" in thought:
        raise ValueError("a thought cannot hold </think>: it would end there; leave the tag out")
    return f"<think>{thought}</think>\n{body}"


def _call(text: str, at: int) -> tuple[ToolCall, int]:
    """A call whose JSON starts at ``at``; strings in it may hold any tag."""
    value, end = _json(text, at, "tool call", 'write <tool_call>{"name": …, "arguments": {…}}</tool_call>')
    end = _close(text, end, "</tool_call>", "bad_call")
    if not isinstance(value, dict):
        raise _Malformed("bad_call", f"A tool call is a JSON object; got {_kind(value)}.")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        raise _Malformed("bad_call", 'A tool call needs "name", the name of a tool as a string.')
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise _Malformed("bad_call", f'"arguments" of {name[:50]} must be a JSON object; got {_kind(arguments)}.')
    return ToolCall(name, arguments), end


def _answer(text: str, at: int, num_candidates: int, mode: Mode) -> tuple[Ranking | Choice, int]:
    """What stands in <answer>, boxed or bare."""
    at = _skip(text, at)
    boxed = _BOXED.match(text, at)
    if boxed:
        answer, end = _boxed(text, boxed.end(), num_candidates, mode)
    else:
        answer, end = _content(text, at, num_candidates, mode)
    return answer, _close(text, end, "</answer>", "bad_answer")


def _boxed(text: str, at: int, num_candidates: int, mode: Mode) -> tuple[Ranking | Choice, int]:
    r"""What stands in \boxed{…}, from after the brace."""
    answer, end = _content(text, _skip(text, at), num_candidates, mode)
    return answer, _close(text, end, "}", "bad_answer")


def _content(text: str, at: int, num_candidates: int, mode: Mode) -> tuple[Ranking | Choice, int]:
    if mode == "pair":
        letter = _LETTER.match(text, at)
        if not letter:
            raise _Malformed("bad_answer", f"The answer is one letter, A or B: write {example(mode, 2)}.")
        return Choice("A" if letter.group() == "A" else "B"), letter.end()

    advice = f"write {example(mode, num_candidates)}"
    value, end = _json(text, at, "answer", advice)
    if not isinstance(value, list):
        raise _Malformed("bad_answer", f"The answer is a list; got {_kind(value)}: {advice}.")
    if not value:
        raise _Malformed("empty_answer", f"The answer is an empty list; name at least one item: {advice}.")
    wanted = str if mode == "catalog" else int
    for entry in value:
        if type(entry) is not wanted:
            what = "item ids as strings" if mode == "catalog" else "whole candidate numbers"
            raise _Malformed("bad_answer", f"The answer holds {what}; got {_kind(entry)}: {advice}.")
    seen: set[int | str] = set()
    for entry in value:
        if entry in seen:
            raise _Malformed("duplicate", f"{str(entry)[:50]} stands in the answer twice; name each item once.")
        seen.add(entry)
    if mode == "rank":
        for entry in value:
            if not 1 <= entry <= num_candidates:
                given = entry if abs(entry) < 10**12 else "a huge number"
                raise _Malformed("outside_pool", f"{given} is not a candidate; the numbers are 1 to {num_candidates}.")
    return Ranking(tuple(value)), end


def _json(text: str, at: int, what: str, advice: str) -> tuple[Any, int]:
    at = _skip(text, at)
    try:
        value, end = _scan(text, at)
        written = text[at:end]
        if "\\u" in written or not written.isascii():
            json.dumps(value, ensure_ascii=False).encode()  # fails on lone surrogates
    except StopIteration:
        raise _Malformed("bad_json", f"The {what} is not valid JSON (a value is missing); {advice}.") from None
    except RecursionError:
        raise _Malformed("bad_json", f"The {what} is nested too deeply; {advice}.") from None
    except UnicodeEncodeError:
        raise _Malformed("bad_json", f"The {what} holds a broken character (a lone surrogate); {advice}.") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0][:80]
        raise _Malformed("bad_json", f"The {what} is not valid JSON ({reason}); {advice}.") from None
    return value, end


def _close(text: str, at: int, token: str, code: str) -> int:
    """The place after ``token``, which may be missing only at the end of the text."""
    if text.startswith(token, at):
        return at + len(token)
    at = _skip(text, at)
    if text.startswith(token, at):
        return at + len(token)
    if at == len(text):
        return at
    raise _Malformed(code, f"Expected {token} but found {text[at : at + 20]!r}.")


def _skip(text: str, at: int) -> int:
    """The place of the next character that is no white space."""
    if at < len(text) and "!" <= text[at] <= "~":
        return at
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def example(mode: Mode, num_candidates: int) -> str:
    """An answer that is valid in form, for prompts and error messages."""
    if mode == "rank":
        inner = "[8, 3, 15]" if num_candidates >= 15 else "[2, 1]"
    else:
        inner = {"pair": "A", "catalog": '["ID1", "ID2"]'}[mode]
    return f"<answer>\\boxed{{{inner}}}</answer>"
