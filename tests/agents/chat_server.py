"""A chat-completions server on loopback that does what a test tells it, misbehaviour included."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Handler = BaseHTTPRequestHandler

ANSWER = "<answer>[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]</answer>"
CALL = {"id": "abc123", "type": "function", "function": {"name": "score_candidates", "arguments": "{}"}}
PROBE = "Reply with OK."


def completion(content: Any = None, calls: Any = None, finish: Any = "stop", usage: Any = (100, 10)) -> Body:
    """A sound reply."""
    message: Body = {"role": "assistant", "content": content}
    if calls is not None:
        message["tool_calls"] = calls
    body: Body = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body


def good(body: Body) -> Body:
    """Calls one tool natively, then answers."""
    if body["messages"][-1]["content"] == PROBE:
        return completion("OK")
    if body["messages"][-1]["role"] == "user" and "tools" in body:
        return completion(calls=[CALL], finish="tool_calls")
    return completion(ANSWER)


class ChatServer:
    """What came in, and what goes out: `answer` takes a request's body and gives one, or acts on the handler itself."""

    def __init__(self) -> None:
        self.answer: Callable[[Body], Body | Callable[[Handler], None]] = good
        self.bodies: list[Body] = []
        self.headers: list[Mapping[str, str]] = []
        self.times: list[float] = []
        self.most = 0
        """Most requests under way at once."""
        self.over = threading.Event()
        self.url = ""
        self._now = 0
        self._lock = threading.Lock()

    @property
    def asked(self) -> list[Body]:
        """Bodies of requests that are no first look."""
        return [body for body in self.bodies if body["messages"][-1]["content"] != PROBE]

    def handle(self, handler: Handler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            reply = self.answer(body)
            if callable(reply):
                reply(handler)
            elif body.get("stream"):
                streamed(reply, body["model"])(handler)
            else:
                send(200, json.dumps(reply).encode())(handler)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self._lock:
                self._now -= 1

    def hang(self, handler: Handler) -> None:
        """Say nothing until the test is over."""
        self.over.wait(30)
        handler.close_connection = True

    def drip(self, handler: Handler) -> None:
        """Send a byte every now and then, for ever."""
        handler.send_response(200)
        handler.end_headers()
        while not self.over.wait(0.05):
            handler.wfile.write(b" ")
        handler.close_connection = True


def send(status: int, content: bytes, **headers: str) -> Callable[[Handler], None]:
    """A whole reply."""

    def act(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return act


def streamed(reply: Body, model: str) -> Callable[[Handler], None]:
    """A sound reply piece by piece, as server-sent events: its role, its text or calls, its end, its usage."""
    choice = reply["choices"][0]
    message = choice["message"]
    pieces: list[tuple[Body, str | None]] = [({"role": "assistant"}, None)]
    text = message["content"] or ""
    pieces += [({"content": text[at : at + 20]}, None) for at in range(0, len(text), 20)]
    pieces += [({"tool_calls": [{"index": i, **call}]}, None) for i, call in enumerate(message.get("tool_calls", []))]
    pieces.append(({}, choice["finish_reason"]))
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    events = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} for delta, finish in pieces]
    events.append(head | {"choices": [], "usage": reply.get("usage")})
    sent = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return send(200, sent.encode(), Content_Type="text/event-stream")


def half(handler: Handler) -> None:
    """Promise more than is sent, then hang up."""
    content = json.dumps(completion(ANSWER)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    """Close without a word."""
    handler.close_connection = True


def endless(status: int) -> Callable[[Handler], None]:
    """Send without an end, until the other side hangs up."""

    def act(handler: Handler) -> None:
        handler.send_response(status)
        handler.end_headers()
        handler.close_connection = True
        while True:
            handler.wfile.write(b" " * 100_000)
            time.sleep(0.001)

    return act


@contextmanager
def serving() -> Iterator[ChatServer]:
    """A server on a free port, gone at the end."""
    server = ChatServer()

    class _Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            server.handle(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()
            thread.join()
