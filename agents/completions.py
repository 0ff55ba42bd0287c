"""Asks an OpenAI-compatible server for chat completions: many at once, with retries, time-outs and budgets.

It knows nothing of episodes; `agents/endpoint.py` does. Requests run on one event loop in a thread of their own, so
that a whole exchange can be timed and dropped, however slowly the server drips. The key is read from the environment,
handed to the client, kept nowhere else, and struck out of whatever the server sends back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from agents.protocol import Overflow
from agents.replies import Failure, Reply, brief, message, read, refused

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_BYTES = 8_000_000
"""Size of a reply past which it is dropped."""
MAX_REFUSAL = 20_000
"""Bytes that are read of a refusal; the client itself would read it to its end."""
CONNECT_TIMEOUT = 10.0
"""Seconds to reach the server."""

_HOPELESS = 10
"""Completions given up in a row, or two rounds of them, after which a server counts as gone."""
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})

_log = logging.getLogger(__name__)


class EndpointError(RuntimeError):
    """A request that failed for good."""


class EndpointStoppedError(EndpointError):
    """The server is asked no more: it refused us, a budget is used up, or nothing but failures came back."""


class _RefusedError(Exception):
    """A reply with a status that is no success."""

    def __init__(self, status: int, body: bytes, retry_after: str | None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard the server is asked, and how much in all; None: no such limit.

    Raises:
        ValueError: a limit out of range.
    """

    concurrency: int = 16
    """Requests under way at once."""
    timeout: float = 120.0
    """Seconds for one try, from connecting to the last byte."""
    retries: int = 5
    """Tries after the first, with exponential back-off."""
    max_requests: int | None = None
    """Tries in all."""
    max_total_tokens: int | None = None
    """Prompt and completion tokens in all; requests under way when it is reached still end."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "retries" else 1
            if value is None and field.name.startswith("max_"):
                continue
            kinds = int | float if field.name == "timeout" else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < float("inf"):
                whole = "" if field.name == "timeout" else "whole "
                raise ValueError(f"{field.name} must be a {whole}number, at least {least}; got {value!r}")


@dataclass(slots=True)
class Usage:
    """What was asked and came back so far."""

    requests: int = 0
    retries: int = 0
    failures: int = 0
    """Completions given up."""
    prompt_tokens: int = 0
    """Where the server does not say, four bytes count as a token."""
    completion_tokens: int = 0
    seconds: float = 0.0
    """On the way, added up over completions."""


class Completions:
    """Chat completions of one server.

    Args:
        url: up to and with ``/v1``; http or https, without credentials, query or fragment.
        key_env: environment variable that holds the key; where it is not set, none is sent.
        limits: of concurrency, patience and budget.

    Raises:
        ValueError: a URL or a name that cannot be used.
    """

    def __init__(self, url: str, key_env: str, limits: Limits) -> None:
        self.url = _checked(url)
        if not isinstance(key_env, str) or not _NAME.fullmatch(key_env):
            raise ValueError("key_env is the name, in capitals, of an environment variable that holds the key")
        self.key_env = key_env
        self.limits = limits
        self.usage = Usage()
        self.stopped: str | None = None
        """Why the server is asked no more."""
        self._in_a_row = 0
        self._not_before = 0.0
        self._jitter = random.Random()
        self._results: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()
        self._pending: dict[int, Future[None]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._slots: asyncio.Semaphore
        self._client: AsyncOpenAI

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """One completion, for a first look: a server that cannot be reached is not tried again.

        Args:
            body: of the request, with at least "model" and "messages".

        Raises:
            EndpointError, Overflow: there is none; the message says why.
        """
        loop = self._started()
        return asyncio.run_coroutine_threadsafe(self._complete(body, first=True), loop).result()

    def send(self, ticket: int, body: Mapping[str, Any]) -> None:
        """Ask for a completion; ``recv`` gives it with ``ticket``, a number that was not used before."""
        loop = self._started()
        self._pending[ticket] = asyncio.run_coroutine_threadsafe(self._deliver(ticket, body), loop)

    def recv(self) -> list[tuple[int, Reply | Exception]]:
        """All answers that are there, at least one; waits for it.

        Raises:
            RuntimeError: nothing was sent.
        """
        if not self._pending:
            raise RuntimeError("nothing to receive: send first")
        answers: list[tuple[int, Reply | Exception]] = []
        while not answers or not self._results.empty():
            ticket, answer = self._results.get()
            if self._pending.pop(ticket, None) is not None:
                answers.append((ticket, answer))
        return answers

    def drop(self, ticket: int) -> None:
        """Forget a request; its answer never comes."""
        future = self._pending.pop(ticket, None)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Drop everything and end the thread; a later request starts another."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._pending.clear()
        self._loop.call_soon_threadsafe(self._stop.set)
        if thread is not threading.current_thread():  # where the garbage collector calls from there
            thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._thread is None:
            client, ready = self._make_client(), threading.Event()
            self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(client, ready)), daemon=True)
            self._thread.start()
            ready.wait()
        return self._loop

    def _make_client(self) -> AsyncOpenAI:
        try:
            import openai
        except ImportError:
            raise ImportError(
                "endpoints are asked through the openai client, which is not installed: "
                "pip install 'agentrec-env[endpoint]'"
            ) from None
        key = self._key()
        if not all("!" <= character <= "~" for character in key):
            raise ValueError(f"the key in {self.key_env} holds characters that no request can carry")
        parts = urlsplit(self.url)
        if key and parts.scheme == "http" and parts.hostname not in _HERE:
            _log.warning("%s: the key in %s goes there unencrypted", self.url, self.key_env)
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=key or "none",  # the client insists on one, servers of one's own do not
            max_retries=0,
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT),
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_stop_at_refusals]}),
        )

    async def _serve(self, client: AsyncOpenAI, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        self._client = client
        ready.set()
        await self._stop.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.close()

    async def _deliver(self, ticket: int, body: Mapping[str, Any]) -> None:
        try:
            answer: Reply | Exception = await self._complete(body)
        except Exception as error:  # noqa: BLE001 - whatever went wrong belongs to this request alone
            answer = error
        self._results.put((ticket, answer))

    async def _complete(self, body: Mapping[str, Any], first: bool = False) -> Reply:
        seconds, attempt = 0.0, 0
        while True:
            async with self._slots:
                while (rest := self._not_before - time.monotonic()) > 0:  # the server asked all of us to wait
                    await asyncio.sleep(rest)
                self._spend(attempt)
                begin = time.monotonic()
                outcome = await self._try(body)
                seconds += time.monotonic() - begin
            if isinstance(outcome, Reply):
                return self._account(body, replace(outcome, retries=attempt, seconds=seconds))
            if not outcome.again or attempt == self.limits.retries or (first and outcome.unreachable):
                raise self._given_up(outcome, attempt + 1)
            if outcome.wait is not None:
                self._not_before = max(self._not_before, time.monotonic() + outcome.wait)
            await asyncio.sleep(min(30.0, 0.5 * 2**attempt) * self._jitter.uniform(0.5, 1.0))
            attempt += 1

    def _spend(self, attempt: int) -> None:
        """Count one request, or stop."""
        limits, used = self.limits, self.usage
        if self.stopped is None:
            if limits.max_requests is not None and used.requests >= limits.max_requests:
                self.stopped = f"the budget of {limits.max_requests:,} requests is used up"
            elif limits.max_total_tokens is not None and (
                used.prompt_tokens + used.completion_tokens >= limits.max_total_tokens
            ):
                self.stopped = f"the budget of {limits.max_total_tokens:,} tokens is used up"
        if self.stopped is not None:
            raise EndpointStoppedError(self.stopped)
        used.requests += 1
        used.retries += attempt > 0

    async def _try(self, body: Mapping[str, Any]) -> Reply | Failure:
        try:
            async with asyncio.timeout(self.limits.timeout):
                data = await self._exchange(body)
        except Exception as error:  # noqa: BLE001 - the client lets the transport's own errors through
            return self._failure(error)
        if len(data) > MAX_BYTES:
            return Failure(f"the reply is longer than {MAX_BYTES:,} bytes", again=True)
        return read(self._strike(data))

    async def _exchange(self, body: Mapping[str, Any]) -> bytes:
        content = bytearray()
        ask = self._client.chat.completions.with_streaming_response.create
        async with ask(model=body["model"], messages=body["messages"], extra_body=body) as response:
            async for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    break
        return bytes(content)

    def _failure(self, error: Exception) -> Failure:
        import openai

        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
        if isinstance(cause, _RefusedError):
            failure = refused(cause.status, self._clean(message(cause.body)), cause.retry_after)
            if cause.status in (401, 403):
                key = f"the key is what {self.key_env} holds" if self._key() else f"{self.key_env} holds no key"
                failure = replace(failure, said=f"{failure.said} ({key})")
            return failure
        if isinstance(error, TimeoutError):
            return Failure(f"no whole reply within {self.limits.timeout:g} s", again=True)
        said = brief(self._clean(f"{type(cause).__name__}: {cause}"))
        if isinstance(error, openai.APITimeoutError) or type(cause).__name__ == "ConnectError":
            return Failure(f"cannot be reached ({said})", again=True, unreachable=True)
        return Failure(f"the exchange broke off ({said})", again=not isinstance(error, ValueError | TypeError))

    def _account(self, body: Mapping[str, Any], reply: Reply) -> Reply:
        sent, written = reply.prompt_tokens, reply.completion_tokens
        if sent is None:
            sent = len(msgspec.json.encode(body["messages"])) // 4
        if written is None:
            written = len(msgspec.json.encode((reply.content, reply.calls))) // 4
        self.usage.prompt_tokens += max(0, sent)
        self.usage.completion_tokens += max(0, written)
        self.usage.seconds += reply.seconds
        self._in_a_row = 0
        return replace(reply, prompt_tokens=max(0, sent), completion_tokens=max(0, written))

    def _given_up(self, failure: Failure, tries: int) -> Exception:
        if failure.overflow:
            return Overflow(failure.said)
        said = f"{self.url}: {failure.said}" + (f", {tries} times" if tries > 1 else "")
        self.usage.failures += 1
        self._in_a_row += 1
        if self.stopped is None and failure.stop:
            self.stopped = said
        elif self.stopped is None and self._in_a_row >= max(_HOPELESS, 2 * self.limits.concurrency):
            self.stopped = f"{self._in_a_row} requests in a row failed, the last so: {said}"
        return EndpointError(said)

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip()

    def _clean(self, said: str) -> str:
        return self._strike(said.encode(errors="replace")).decode(errors="replace")

    def _strike(self, data: bytes) -> bytes:
        """``data`` with the key struck out, should it be sent back; a key of under eight characters guards nothing."""
        key = self._key()
        for form in {key, key.replace("/", "\\/")} if len(key) >= 8 else ():
            data = data.replace(form.encode(errors="replace"), b"[key]")
        return data


async def _stop_at_refusals(response: Any) -> None:
    if response.status_code < 400:
        return
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_REFUSAL:
            break
    raise _RefusedError(response.status_code, bytes(body[:MAX_REFUSAL]), response.headers.get("retry-after"))


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError):
        sound = False
    if not sound:
        raise ValueError("the endpoint is a URL such as http://localhost:8000/v1: http or https, up to and with /v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            "the endpoint's URL may hold no user, password, query or fragment, for it stands in reports: put the key "
            "into an environment variable and name that with key_env"
        )
    return url.rstrip("/").removesuffix("/chat/completions")
