"""Endpoints are asked over real HTTP: what is sent, what comes of sound replies, and of every kind of misbehaviour."""

from __future__ import annotations

import gc
import json
import logging
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from agentrec_env.actions import parse
from agentrec_env.check import check_agent
from agentrec_env.data.world import World
from agentrec_env.types import Episode, Invalid, StopReason, ToolCall
from agentrec_env.vector import RecVectorEnv, rows_of
from agents import make, play
from agents.completions import MAX_BYTES
from agents.endpoint import Endpoint, EndpointError
from tests.agents.chat_server import (
    ANSWER,
    CALL,
    Body,
    ChatServer,
    completion,
    endless,
    good,
    half,
    hang_up,
    send,
    serving,
)

CORE = "0123456789abcdef"
SECRET = f"sk-test/{CORE}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        yield server


@pytest.fixture
def envs(shop: World) -> RecVectorEnv:
    return RecVectorEnv(4, world=shop, task_split="test")


def endpoint(server: ChatServer, **kwargs: Any) -> Endpoint:
    return Endpoint(server.url, "toy", **({"retries": 1, "timeout": 5.0} | kwargs))


def prompt(envs: RecVectorEnv, task: int) -> str:
    """The prompt of a task without the rules."""
    single = RecVectorEnv(1, world=envs.world, task_split="test")
    text = single.reset(options={"task": task})[0]["text"][0]
    return str(text.removesuffix(single.scenario.rules.text).rstrip())


def except_for(text: str, misbehave: Any) -> Callable[[Body], Any]:
    """A good server, but for the episode whose prompt is `text`."""

    def answer(body: Body) -> Any:
        return misbehave if any(message["content"] == text for message in body["messages"]) else good(body)

    return answer


def essence(episodes: list[Episode]) -> list[Any]:
    return [(e.task_index, [(t.action, t.observation) for t in e.turns], e.ranking, e.stop, e.error) for e in episodes]


def test_rules_prompt_tools_and_results_have_their_places(server: ChatServer, envs: RecVectorEnv) -> None:
    (episode,) = play(envs, endpoint(server, temperature=0.5, max_turn_tokens=300), tasks=[3])
    assert episode.stop == StopReason.ANSWERED
    assert [turn.calls for turn in episode.turns] == [(ToolCall("score_candidates", {}),), ()]
    first, second = server.asked
    system, user = first["messages"]
    assert system == {"role": "system", "content": envs.scenario.rules.text}
    assert user == {"role": "user", "content": prompt(envs, 3)}
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert second["messages"][2] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert second["messages"][3]["tool_call_id"] == "abc123"
    assert second["messages"][3]["content"] == episode.turns[0].observation
    assert {tool["function"]["name"] for tool in first["tools"]} == set(envs.scenario.rules.tools)
    assert all(set(tool["function"]) == {"name", "description", "parameters"} for tool in first["tools"])
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("toy", 0.5, 300)
    assert "top_p" not in first
    assert 0 <= first["seed"] == second["seed"] < 2**31
    assert episode.info["prompt_tokens"] == 200
    assert episode.info["completion_tokens"] == 20
    assert episode.info["requests"] == 2
    assert episode.info["seconds"] > 0


def test_content_depends_on_neither_rows_nor_timing(server: ChatServer, shop: World) -> None:
    def seeded(body: Body) -> Body:
        time.sleep(body["seed"] % 7 * 0.01)
        reply = good(body)
        if reply["choices"][0]["message"]["content"] == ANSWER:
            first = body["seed"] % 20 + 1
            reply["choices"][0]["message"]["content"] = f"<answer>[{first}]</answer>"
        return reply

    server.answer = seeded
    runs = []
    for rows, seed in ((1, 0), (6, 0), (6, 1)):
        agent = endpoint(server)
        runs.append(essence(play(RecVectorEnv(rows, world=shop, task_split="test"), agent, range(8), seed)))
        assert agent.metrics["requests"] == 17
        assert agent.metrics["prompt_tokens"] == 1700
    assert runs[0] == runs[1] != runs[2]


def test_rows_are_answered_as_replies_come(server: ChatServer, envs: RecVectorEnv) -> None:
    free = threading.Event()

    def answer(body: Body) -> Body:
        if body["messages"][-1]["content"] == "slow":
            free.wait(20)
        return completion(body["messages"][-1]["content"])

    server.answer = answer
    agent = endpoint(server)
    agent.reset(3, 0)
    agent.send([{"text": text, "turn": 0} for text in ("slow", "a", "b")], [0, 1, 2], [0, 1, 2])
    got: dict[int, Any] = {}
    while len(got) < 2:
        actions, rows = agent.recv()
        got.update(zip(rows, actions, strict=True))
    assert got == {1: "a", 2: "b"}
    agent.send([{"text": "c", "turn": 1}], [2], [2])
    assert agent.recv() == (["c"], [2])
    free.set()
    assert agent.recv() == (["slow"], [0])


def test_no_more_requests_at_once_than_allowed(server: ChatServer, shop: World) -> None:
    def answer(body: Body) -> Body:
        deadline = time.monotonic() + 5  # the first ones wait for a third, and a little for a fourth
        while server.asked and server.most < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
        return good(body)

    server.answer = answer
    play(RecVectorEnv(12, world=shop, task_split="test"), endpoint(server, concurrency=3), range(12))
    assert server.most == 3


def test_without_native_tools_all_is_text(server: ChatServer, envs: RecVectorEnv) -> None:
    call = '<think>hm</think>\n<tool_call>{"name": "score_candidates", "arguments": {}}</tool_call>'
    server.answer = lambda body: completion(ANSWER if len(body["messages"]) > 2 else call)
    (episode,) = play(envs, endpoint(server, native_tools=False), tasks=[0])
    assert episode.turns[0].action == call
    assert not any("tools" in body for body in server.bodies)
    roles = [message["role"] for message in server.asked[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert server.asked[-1]["messages"][2]["content"] == call


def test_tools_are_not_offered_where_no_call_is_allowed(server: ChatServer, shop: World) -> None:
    (episode,) = play(RecVectorEnv(1, world=shop, task_split="test", max_calls=0), endpoint(server), tasks=[0])
    assert episode.stop == StopReason.ANSWERED
    assert not any("tools" in body for body in server.bodies)


def native(name: str, arguments: Any, id: Any = None) -> Body:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"content": "", "tool_calls": [native("a", '{"x": "</tool_call>"}')]}, [ToolCall("a", {"x": "</tool_call>"})]),
        ({"content": None, "tool_calls": [native("a", {"x": [1]})]}, [ToolCall("a", {"x": [1]})]),
        ({"tool_calls": [native("a", ""), native("b", None)]}, [ToolCall("a", {}), ToolCall("b", {})]),
        ({"content": "I look.", "tool_calls": [native("a", "{}")]}, [ToolCall("a", {})]),
        (
            {"content": '<tool_call>{"name": "a", "arguments": {}}', "tool_calls": [native("a", "{}")]},
            [ToolCall("a", {})],
        ),
        ({"content": ANSWER, "tool_calls": [native("a", "{}")]}, "mixed"),
        ({"content": None, "tool_calls": [native("a", '{"x": ')]}, "bad_json"),
        ({"content": None, "tool_calls": [native("a", '{"x": NaN}')]}, "bad_json"),
        ({"content": None, "tool_calls": [native("a", "[1]")]}, "bad_call"),
        ({"content": None, "tool_calls": [native("", "{}")]}, "bad_call"),
        ({"content": None, "tool_calls": [native("a", "[" * 100_000)]}, "bad_json"),
        ({"content": [{"type": "text", "text": "<answer>"}, {"type": "text", "text": "[3]</answer>"}]}, (3,)),
        ({"content": None, "reasoning_content": "<answer>[3]</answer>", "refusal": None}, "no_action"),
        ({"content": None, "tool_calls": []}, "no_action"),
        ({"tool_calls": [native("a", '{"x": "\\ud800"}')]}, [ToolCall("a", {"x": "?"})]),
    ],
)
def test_replies_become_actions(server: ChatServer, message: Body, read: Any) -> None:
    server.answer = lambda body: {"choices": [{"message": message, "finish_reason": "stop"}]}
    agent = endpoint(server)
    (text,) = agent.act([{"text": "q", "turn": 0}], [0])
    action = parse(text, 20)
    if isinstance(read, str):
        assert isinstance(action, Invalid)
        assert action.code == read
    elif isinstance(read, tuple):
        assert action.entries == read  # type: ignore[union-attr]
    else:
        assert action == read
    # Whatever it was, the conversation can go on: the reply is repeated in a form that servers take.
    server.answer = lambda body: completion("fine")
    assert agent.act([{"text": "<observation>r</observation>", "turn": 1}], [0]) == ["fine"]
    said = server.bodies[-1]["messages"][1]
    for call in said.get("tool_calls", ()):
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
        assert call["id"]
    results = server.bodies[-1]["messages"][2:]
    assert [m["role"] for m in results] == ["tool"] * len(said["tool_calls"]) if "tool_calls" in said else ["user"]


def test_each_call_gets_its_own_result(server: ChatServer, envs: RecVectorEnv) -> None:
    calls = [native("score_candidates", "{}", "one"), native("no_such_tool", "{}", "two")]
    both = [native("score_candidates", "{}", "one"), native("get_user_profile", "{}", "two")]
    replies = {2: completion(calls=calls), 5: completion(calls=both)}
    server.answer = lambda body: replies.get(len(body["messages"]), completion(ANSWER))
    (episode,) = play(envs, endpoint(server), tasks=[0])
    refused = server.asked[1]["messages"][3:]
    assert [m["tool_call_id"] for m in refused] == ["one", "two"]
    assert all("no_such_tool" in m["content"] for m in refused)
    score, profile = server.asked[2]["messages"][6:]
    assert "\n".join([score["content"], profile["content"]]) == episode.turns[1].observation
    assert "Collaborative scores" in score["content"]
    assert episode.stop == StopReason.ANSWERED


@pytest.mark.parametrize(
    "reply",
    [
        completion("<answer>[1, 2", finish="length"),
        send(400, b'{"error": {"message": "This model\'s maximum context length is 4096 tokens", "code": "x"}}'),
        send(400, b'{"error": {"message": "too big", "code": "context_length_exceeded"}}'),
    ],
)
def test_what_does_not_fit_is_overflow(server: ChatServer, envs: RecVectorEnv, reply: Any) -> None:
    server.answer = except_for(prompt(envs, 1), reply)
    episodes = play(envs, endpoint(server), tasks=range(3))
    assert [e.stop for e in episodes] == [StopReason.ANSWERED, StopReason.OVERFLOW, StopReason.ANSWERED]
    assert len(server.asked) == 5


MISBEHAVIOUR: dict[str, tuple[Any, str]] = {
    "no json": (send(200, b"OK"), "no chat completion"),
    "html": (send(200, b"<html><body>Welcome to nginx!</body></html>", Content_Type="text/html"), "nginx"),
    "empty": (send(200, b""), "no chat completion"),
    "no choices": ({"object": "chat.completion"}, "choices"),
    "empty choices": ({"choices": []}, "choices is empty"),
    "null choice": ({"choices": [None]}, "choices"),
    "wrong types": ({"choices": [{"message": {"content": 7}}]}, "content"),
    "calls of wrong type": (completion(calls=[{"function": "x"}]), "function"),
    "error with status 200": ({"error": {"message": "overloaded"}}, "overloaded"),
    "broken utf-8": (send(200, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'), "no chat completion"),
    "lone surrogate": (send(200, b'{"choices": [{"message": {"content": "\\ud800"}}]}'), "no chat completion"),
    "deep": (send(200, b'{"choices":' + b"[" * 200_000), "no chat completion"),
    "event stream": (send(200, b'data: {"choices": []}\n\n', Content_Type="text/event-stream"), "data:"),
    "half": (half, "broke off"),
    "hang up": (hang_up, "broke off"),
    "endless": (endless(200), f"{MAX_BYTES:,} bytes"),
    "endless refusal": (endless(500), "HTTP 500"),
    "deep refusal": (send(500, b"[" * 100_000), "HTTP 500"),
    "500": (send(500, b"<html>Internal Server Error</html>", Content_Type="text/html"), "HTTP 500"),
    "400": (send(400, b'{"detail": [{"msg": "bad field"}]}'), "bad field"),
    "429 for an hour": (send(429, b"{}", Retry_After="3600"), "asks to wait 3600 s"),
    "redirect": (send(302, b"", Location="/nowhere"), "HTTP"),
}


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_an_endpoint_that_misbehaves_marks_the_episode(server: ChatServer, envs: RecVectorEnv, kind: str) -> None:
    misbehave, said = MISBEHAVIOUR[kind]
    server.answer = except_for(prompt(envs, 1), misbehave)
    agent = endpoint(server, retries=0)
    episodes = play(envs, agent, tasks=range(4))
    assert [e.stop for e in episodes] == [
        StopReason.ANSWERED,
        StopReason.AGENT_ERROR,
        StopReason.ANSWERED,
        StopReason.ANSWERED,
    ]
    assert said in str(episodes[1].error)
    assert agent.metrics["failures"] == 1
    assert agent.stopped is None


@pytest.mark.parametrize("way", ["hang", "drip"])
def test_a_request_has_its_time(server: ChatServer, envs: RecVectorEnv, way: str) -> None:
    server.answer = except_for(prompt(envs, 1), getattr(server, way))
    begin = time.monotonic()
    episodes = play(envs, endpoint(server, timeout=1, retries=1), tasks=range(4))
    assert time.monotonic() - begin < 8
    assert [e.stop == StopReason.ANSWERED for e in episodes] == [True, False, True, True]
    assert "no whole reply within 1 s, 2 times" in str(episodes[1].error)


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured_by_all(server: ChatServer, envs: RecVectorEnv, date: bool) -> None:
    refusals: list[float] = []

    def answer(body: Body) -> Any:
        if len(server.asked) >= 3 and not refusals:
            refusals.append(time.monotonic())
            at = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if date else "1"
            return send(429, b'{"error": {"message": "slow down"}}', Retry_After=at)
        return good(body)

    server.answer = answer
    agent = endpoint(server, concurrency=2)
    episodes = play(envs, agent, tasks=range(6))
    assert all(e.stop == StopReason.ANSWERED for e in episodes)
    assert agent.metrics["retries"] == 1
    assert sum(e.info["retries"] for e in episodes) == 1
    later = [at for at in server.times if at > refusals[0] + 0.1]  # what was under way already may still come in
    assert min(later) - refusals[0] > 0.9
    assert len(server.asked) == 13


def test_a_server_that_asks_for_no_wait_is_not_stormed(server: ChatServer, envs: RecVectorEnv) -> None:
    server.answer = lambda body: send(429, b"{}", Retry_After="0") if len(server.bodies) < 3 else good(body)
    episodes = play(envs, endpoint(server, retries=3), tasks=[0])
    assert episodes[0].stop == StopReason.ANSWERED
    first, second, third = server.times[:3]
    assert second - first > 0.2
    assert third - second > 0.4


@pytest.mark.parametrize("broken", [send(503, b"loading"), half, send(200, b"{")])
def test_what_passes_is_tried_again(server: ChatServer, envs: RecVectorEnv, broken: Any) -> None:
    def answer(body: Body) -> Any:
        return broken if len(server.bodies) in (1, 3, 4) else good(body)

    server.answer = answer
    agent = endpoint(server, retries=3)
    episodes = play(envs, agent, tasks=range(4))
    assert all(e.stop == StopReason.ANSWERED for e in episodes)
    assert agent.metrics["retries"] == 3
    assert agent.metrics["failures"] == 0


@pytest.mark.parametrize(
    ("budget", "said"), [({"max_requests": 6}, "6 requests"), ({"max_total_tokens": 600}, "600 tokens")]
)
def test_a_budget_that_is_used_up_ends_the_asking(
    server: ChatServer, envs: RecVectorEnv, budget: dict[str, int], said: str
) -> None:
    agent = endpoint(server, concurrency=1, **budget)
    episodes = play(envs, agent, tasks=range(20))
    assert len(server.bodies) == 6
    stops = [e.stop for e in episodes]
    assert stops.count(StopReason.AGENT_ERROR) == 20 - stops.count(StopReason.ANSWERED) >= 17
    assert f"the budget of {said} is used up" in str(episodes[-1].error)
    assert agent.stopped
    play(envs, agent, tasks=range(2))
    assert len(server.bodies) == 6, "the budget is the agent's, not the call's"


def test_tokens_are_estimated_where_the_server_does_not_count(server: ChatServer, envs: RecVectorEnv) -> None:
    def answer(body: Body) -> Body:
        reply = good(body)
        del reply["usage"]
        return reply

    server.answer = answer
    agent = endpoint(server, max_total_tokens=3_000)
    play(envs, agent, tasks=range(20))
    assert agent.stopped
    assert agent.metrics["prompt_tokens"] > 2_000


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_is_one_error_at_once(server: ChatServer, envs: RecVectorEnv, status: int) -> None:
    server.answer = lambda body: send(status, b'{"error": {"message": "no such thing"}}')
    with pytest.raises(EndpointError, match=f"HTTP {status}: no such thing") as caught:
        play(envs, endpoint(server, retries=5), tasks=range(100))
    assert ("OPENAI_API_KEY holds no key" in str(caught.value)) == (status != 404)
    assert len(server.bodies) == 1


def test_a_field_the_server_refuses_is_one_error_with_the_way_out(server: ChatServer, envs: RecVectorEnv) -> None:
    def answer(body: Body) -> Any:
        if "max_tokens" in body:
            return send(400, b'{"error": {"message": "Unsupported parameter: max_tokens"}}')
        return good(body)

    server.answer = answer
    with pytest.raises(EndpointError, match=r"Unsupported parameter: max_tokens.*extra changes it"):
        play(envs, endpoint(server), tasks=range(100))
    extra = {"max_tokens": None, "max_completion_tokens": 99, "seed": None}
    (episode,) = play(envs, endpoint(server, extra=extra), tasks=[0])
    assert episode.stop == StopReason.ANSWERED
    assert server.asked[-1]["max_completion_tokens"] == 99
    assert "seed" not in server.asked[-1]


def test_a_server_that_is_not_there_is_one_error_at_once(envs: RecVectorEnv) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        begin = time.monotonic()
        with pytest.raises(EndpointError, match="cannot be reached"):
            play(envs, Endpoint(f"http://127.0.0.1:{port}/v1", "toy"), tasks=range(100))
        assert time.monotonic() - begin < 5


def test_a_server_that_dies_is_given_up(server: ChatServer, shop: World) -> None:
    server.answer = lambda body: good(body) if len(server.bodies) < 6 else send(500, b"{}")
    agent = endpoint(server, concurrency=2, retries=0)
    episodes = play(RecVectorEnv(2, world=shop, task_split="test"), agent, tasks=range(30))
    assert len(server.bodies) < 20
    assert sum(e.stop == StopReason.ANSWERED for e in episodes) >= 1
    assert "requests in a row failed" in str(agent.stopped)
    assert "HTTP 500" in str(episodes[-1].error)


def test_scattered_failures_are_no_reason_to_give_up(server: ChatServer, shop: World) -> None:
    server.answer = lambda body: send(400, b"{}") if body["seed"] % 2 and len(server.bodies) > 1 else good(body)
    agent = endpoint(server, concurrency=1)
    episodes = play(RecVectorEnv(1, world=shop, task_split="test"), agent, range(30))
    failed = [e.stop == StopReason.AGENT_ERROR for e in episodes]
    assert sum(failed) >= 10
    assert sum(failed) < 28
    assert agent.stopped is None


@pytest.mark.parametrize(
    "refusal", [send(401, b'{"error": "expired"}'), send(429, b'{"error": {"code": "insufficient_quota"}}')]
)
def test_a_key_that_is_refused_later_ends_the_asking(server: ChatServer, shop: World, refusal: Any) -> None:
    server.answer = lambda body: good(body) if len(server.bodies) < 6 else refusal
    agent = endpoint(server, retries=5)
    episodes = play(RecVectorEnv(1, world=shop, task_split="test"), agent, tasks=range(30))
    assert len(server.bodies) == 6
    assert agent.stopped
    assert sum(e.stop == StopReason.ANSWERED for e in episodes) == 2


@pytest.mark.parametrize("echo", ["error", "content", "call", "nonsense", "status 200 error"])
def test_the_key_is_nowhere(
    server: ChatServer,
    envs: RecVectorEnv,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    echo: str,
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    echoes = {
        "error": send(401, json.dumps({"error": {"message": f"bad key {SECRET}"}}).encode()),
        "content": completion(f"your key is {SECRET} {ANSWER}"),
        "call": completion(calls=[native("a", json.dumps({"key": SECRET}))]),
        "nonsense": send(200, b"key " + SECRET.replace("/", "\\/").encode()),
        "status 200 error": {"error": {"message": f"Bearer {SECRET}"}},
    }
    server.answer = except_for(prompt(envs, 1), echoes[echo])
    agent = endpoint(server, key_env="MY_KEY")
    episodes = play(envs, agent, tasks=range(3))
    assert all(headers["authorization"] == f"Bearer {SECRET}" for headers in server.headers)
    seen = [repr(agent), str(vars(agent)), str(agent.metrics), str(agent.stopped), repr(episodes), caplog.text]
    seen += [record.getMessage() + str(vars(record)) for record in caplog.records]
    seen += list(capfd.readouterr())
    assert [i for i, text in enumerate(seen) if CORE in text] == []
    assert CORE.encode() not in pickle.dumps(agent)
    server.answer = lambda body: echoes["error"]
    with pytest.raises(EndpointError) as caught:
        play(envs, endpoint(server, key_env="MY_KEY"), tasks=range(3))
    assert CORE not in "".join(traceback.format_exception(caught.value))


def test_a_copy_asks_like_the_original(server: ChatServer, envs: RecVectorEnv) -> None:
    agent = endpoint(server, temperature=0.3, extra={"top_k": 5})
    play(envs, agent, tasks=[0])
    copy = pickle.loads(pickle.dumps(agent))
    play(envs, copy, tasks=[0])
    assert server.asked[:2] == server.asked[2:]


def test_the_key_goes_unencrypted_only_with_a_word(
    monkeypatch: pytest.MonkeyPatch, envs: RecVectorEnv, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(EndpointError, match="cannot be reached"):
        play(envs, Endpoint("http://no-such-host.invalid/v1", "toy"), tasks=[0])
    assert "goes there unencrypted" in caplog.text
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(ValueError, match="characters that no request can carry"):
        play(envs, Endpoint("http://127.0.0.1:1/v1", "toy"), tasks=[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"url": "localhost:8000"}, "a URL such as"),
        ({"url": "ftp://host/v1"}, "http or https"),
        ({"url": "http://host:99999/v1"}, "a URL such as"),
        ({"url": f"http://me:{CORE}@host/v1"}, "no user, password"),
        ({"url": f"http://host/v1?key={SECRET}"}, "query"),
        ({"key_env": SECRET}, "name, in capitals"),
        ({"model": ""}, "name of a model"),
        ({"concurrency": 0}, "at least 1"),
        ({"retries": -1}, "at least 0"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_requests": 1.5}, "whole number"),
        ({"max_turn_tokens": True}, "max_turn_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": "0.5"}, "top_p"),
        ({"extra": {"stream": True}}, "cannot hold stream"),
        ({"extra": {"stop": {1, 2}}}, "JSON"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        make("endpoint", **({"url": "http://127.0.0.1:1/v1", "model": "toy"} | arguments))
    assert CORE not in str(caught.value)


def test_the_url_may_end_as_people_write_it(server: ChatServer, envs: RecVectorEnv) -> None:
    for end in ("/", "/chat/completions"):
        (episode,) = play(envs, Endpoint(server.url + end, "toy"), tasks=[0])
        assert episode.stop == StopReason.ANSWERED


def test_a_missing_client_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, envs: RecVectorEnv) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ImportError, match=r"agentrec-env\[endpoint\]"):
        play(envs, Endpoint("http://127.0.0.1:1/v1", "toy"), tasks=[0])


def test_it_passes_the_conformance_suite(server: ChatServer) -> None:
    check_agent(endpoint(server))


def test_act_can_be_asked_again_after_it_raised(server: ChatServer, envs: RecVectorEnv) -> None:
    agent = endpoint(server, retries=0)
    agent.bind(envs)
    agent.reset(2, 0)
    observations = rows_of(envs.reset(seed=0)[0])[:2]
    guilty = str(observations[1]["text"]).removesuffix(envs.scenario.rules.text).rstrip()
    server.answer = except_for(guilty, send(500, b"{}"))
    with pytest.raises(EndpointError):
        agent.act(observations, [0, 1])
    asked = len(server.bodies)
    agent.act(observations[:1], [0])
    assert server.bodies[asked]["messages"] in [body["messages"] for body in server.bodies[:asked]]


def test_a_reset_drops_what_is_under_way_and_threads_end(server: ChatServer) -> None:
    before = threading.active_count()
    free = threading.Event()

    def answer(body: Body) -> Body:
        if body["messages"][-1]["content"] == "old":
            free.wait(10)
        return completion(body["messages"][-1]["content"])

    server.answer = answer
    agent = endpoint(server, concurrency=1)
    agent.reset(1, 0)
    agent.send([{"text": "old", "turn": 0}], [0], [0])
    while not server.bodies:
        time.sleep(0.01)
    agent.reset(1, 0)
    agent.send([{"text": "new", "turn": 0}], [0], [0])
    assert agent.recv() == (["new"], [0])
    agent.send([{"text": "old", "turn": 0}], [0], [1])
    agent.send([{"text": "newer", "turn": 0}], [0], [2])
    assert agent.recv() == (["newer"], [0])
    with pytest.raises(RuntimeError, match="nothing to receive"):
        agent.recv()
    with pytest.raises(RuntimeError, match="turn 0"):
        agent.send([{"text": "x", "turn": 1}], [5], [0])
    free.set()
    del agent
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before + 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [t for t in threading.enumerate() if "_started" in t.name]
