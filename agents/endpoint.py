"""Any model behind an OpenAI-compatible server as an agent: vLLM, SGLang, llama.cpp, `transformers serve`, hosted ones.

Each row is a chat: the environment's rules are the system message, its observations are user or tool messages. Rows are
asked side by side and answered as replies come in; what a row is sent depends on its own episode alone. How requests
are made, retried and paid for is in `agents/completions.py`.
"""

from __future__ import annotations

import itertools
import json
import re
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from agentrec_env.actions import render
from agentrec_env.types import ToolCall
from agentrec_env.vector import RecVectorEnv
from agents.completions import Completions, EndpointError, EndpointStoppedError, Limits
from agents.protocol import Observation, Overflow
from agents.replies import Call, Reply

__all__ = ["Endpoint", "EndpointError", "EndpointStoppedError"]

_FIGURES = ("requests", "retries", "prompt_tokens", "completion_tokens", "seconds")
_OURS = frozenset({"model", "messages", "stream", "n"})
_BLOCK = re.compile(r"<observation>.*?</observation>", re.DOTALL)
_WRITTEN_CALL = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)


@dataclass
class _Chat:
    """One row's episode."""

    messages: list[dict[str, Any]]
    seed: int
    awaited: tuple[str, ...] = ()
    """Ids of the native tool calls whose results come next."""
    ticket: int | None = None
    """Of the request under way."""
    figures: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_FIGURES, 0))


class Endpoint:
    """A chat model on an OpenAI-compatible server, asked by ``POST {url}/chat/completions``.

    The first ``bind`` asks for one short reply, so that a server that cannot be reached, a key or a model that is
    refused, or a field that the server does not take ends the run at once. Later on a request that fails for good marks
    its episode. Where nothing but failures come back, or a budget is used up, ``stopped`` says so and every episode
    that needs another reply is marked without asking.

    Args:
        url: of the API, up to and with ``/v1``.
        model: name of the model there.
        key_env: environment variable that holds the key; local servers need none.
        native_tools: offer the tools through the API's own ``tools``; otherwise the rules' text alone tells of them.
            Calls that the model writes as text count either way.
        temperature: of sampling; None: the server's default.
        top_p: likewise.
        max_turn_tokens: of one reply; a longer one ends the episode as overflow.
        concurrency: requests under way at once.
        timeout: seconds for one try of a request.
        retries: tries after the first, on 408, 409, 425, 429, 5xx, time-outs, broken connections and nonsense.
        max_requests: budget of tries over the agent's life, the first look and all retries included.
        max_total_tokens: likewise of prompt and completion tokens.
        extra: further fields of each request, put over the agent's own; None leaves a field out, as
            ``{"max_tokens": None, "max_completion_tokens": 4096}`` for servers that know only the newer name.

    Raises:
        ValueError: an argument that cannot be used; nothing is asked yet.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        native_tools: bool = True,
        temperature: float | None = None,
        top_p: float | None = None,
        max_turn_tokens: int = 1024,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 5,
        max_requests: int | None = None,
        max_total_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        limits = Limits(concurrency, timeout, retries, max_requests, max_total_tokens)
        self._completions = Completions(url, key_env, limits)
        self._arguments: dict[str, Any] = asdict(limits) | {
            "url": self._completions.url,
            "model": model,
            "key_env": key_env,
            "native_tools": native_tools,
            "temperature": temperature,
            "top_p": top_p,
            "max_turn_tokens": max_turn_tokens,
            "extra": dict(extra or {}),
        }
        self._fields = _fields(model, temperature, top_p, max_turn_tokens, self._arguments["extra"])
        self._native = native_tools
        self._rules = ""
        self._tools: list[dict[str, Any]] = []
        self._known = False
        self._seed = 0
        self._chats: dict[int, _Chat] = {}
        self._asked: dict[int, int] = {}
        """Ticket -> row."""
        self._tickets = itertools.count()
        weakref.finalize(self, self._completions.close)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={self._arguments[name]!r}" for name in ("url", "model", "key_env"))
        return f"Endpoint({given})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Endpoint, **self._arguments), ()

    @property
    def stopped(self) -> str | None:
        """Why the server is asked no more; None while it is."""
        return self._completions.stopped

    @property
    def metrics(self) -> dict[str, float]:
        """Requests, retries, failures, tokens and seconds over the agent's life."""
        return asdict(self._completions.usage)

    def bind(self, envs: RecVectorEnv) -> None:
        """Take over rules and tools; the first time, look whether the server answers.

        Raises:
            EndpointError: it does not, or refuses the key, the model or the request.
        """
        rules = envs.scenario.rules
        self._rules = rules.text
        self._tools = [_offered(schema) for schema in envs.tool_schemas] if self._native and rules.max_calls else []
        if not self._known:
            try:
                self._completions.ask(self._body([*self._system(), {"role": "user", "content": "Reply with OK."}], 0))
            except EndpointStoppedError:
                raise
            except (EndpointError, Overflow) as error:
                raise EndpointError(
                    f"the endpoint gave no reply, so nothing is played. {error}. Check URL, model and key; where the "
                    "server does not take a field of the request, extra changes it (null leaves it out), and "
                    "native_tools=False sends no tools."
                ) from None
            self._known = True

    def reset(self, num_envs: int, seed: int) -> None:
        """Forget all episodes and drop requests under way; usage and budgets go on."""
        for ticket in self._asked:
            self._completions.drop(ticket)
        self._seed = seed
        self._chats, self._asked = {}, {}

    def send(self, observations: Sequence[Observation], rows: Sequence[int], episodes: Sequence[int]) -> None:
        """Ask for a reply for each row."""
        for observation, row, episode in zip(observations, rows, episodes, strict=True):
            text = str(observation["text"])
            if int(observation["turn"]) == 0:
                self._begin(row, text, episode)
            elif row in self._chats:
                self._observe(self._chats[row], text)
            else:
                raise RuntimeError(f"row {row} has no episode: one begins with an observation of turn 0")
            chat = self._chats[row]
            chat.ticket = next(self._tickets)
            self._asked[chat.ticket] = row
            self._completions.send(chat.ticket, self._body(chat.messages, chat.seed))

    def recv(self) -> tuple[list[str | Exception], list[int]]:
        """Rows whose reply is there, at least one, in order."""
        answers: dict[int, str | Exception] = {}
        for ticket, answer in self._completions.recv():
            row = self._asked.pop(ticket)
            answers[row] = answer if isinstance(answer, Exception) else self._action(self._chats[row], answer)
        rows = sorted(answers)
        return [answers[row] for row in rows], rows

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        """Wait for all replies. Episodes are told apart by their prompts, which draw the seeds of sampling."""
        before = {
            row: replace(chat, messages=list(chat.messages), figures=dict(chat.figures))
            for row, chat in self._chats.items()
        }
        self.send(observations, rows, [zlib.crc32(str(observation["text"]).encode()) for observation in observations])
        answers: dict[int, str | Exception] = {}
        while len(answers) < len(rows):
            actions, answered = self.recv()
            answers.update(zip(answered, actions, strict=True))
        for row in rows:
            answer = answers[row]
            if isinstance(answer, Exception):
                self._chats = before
                raise answer
        return [str(answers[row]) for row in rows]

    def record(self, row: int) -> dict[str, Any]:
        """Requests answered, retries, tokens and seconds of the row's episode; empty where there is none."""
        return dict(self._chats[row].figures) if row in self._chats else {}

    def _begin(self, row: int, text: str, episode: int) -> None:
        old = self._chats.get(row)
        if old is not None and old.ticket in self._asked:
            self._completions.drop(old.ticket)
            del self._asked[old.ticket]
        if self._rules and text.endswith(self._rules):
            text = text.removesuffix(self._rules).rstrip()
            messages = self._system()
        else:
            messages = []
        drawn = np.random.SeedSequence([self._seed % 2**64, episode]).generate_state(1)
        seed = int(drawn[0]) >> 1  # some servers read it into a signed number of 32 bits
        self._chats[row] = _Chat([*messages, {"role": "user", "content": text}], seed)

    def _system(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self._rules}] if self._rules else []

    def _body(self, messages: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
        body = {"messages": list(messages), "seed": seed, "tools": self._tools or None} | self._fields
        return {name: value for name, value in body.items() if value is not None}

    def _observe(self, chat: _Chat, text: str) -> None:
        if not chat.awaited:
            chat.messages.append({"role": "user", "content": text})
            return
        results = _BLOCK.findall(text)
        if len(results) == len(chat.awaited):
            # What follows the last block is a word on the budget of calls.
            results[-1] = text[text.rindex(results[-1]) :]
        else:
            results = [text] * len(chat.awaited)  # the calls were refused together
        for name, result in zip(chat.awaited, results, strict=True):
            chat.messages.append({"role": "tool", "tool_call_id": name, "content": result})
        chat.awaited = ()

    def _action(self, chat: _Chat, reply: Reply) -> str | Exception:
        """The text of a reply as an action, which also goes into the chat."""
        figures = chat.figures
        figures["requests"] += 1
        for name in _FIGURES[1:]:
            figures[name] += getattr(reply, name) or 0
        if reply.finish == "length":
            return Overflow(f"a reply did not end within {self._arguments['max_turn_tokens']:,} tokens")
        if not reply.calls:
            chat.messages.append({"role": "assistant", "content": reply.content})
            return reply.content
        prose = _WRITTEN_CALL.sub("", reply.content).strip()  # some servers leave in the text what they also parsed
        rendered = [_rendered(call) for call in reply.calls]
        action = "\n".join([prose, *rendered] if prose else rendered)
        action = action.encode(errors="replace").decode()
        names = _names(reply.calls, len(chat.messages))
        calls = [_repeated(call, name) for call, name in zip(reply.calls, names, strict=True)]
        if all(calls):
            chat.messages.append({"role": "assistant", "content": prose or None, "tool_calls": calls})
            chat.awaited = names
        else:  # servers refuse a conversation with a call whose arguments are no JSON object
            chat.messages.append({"role": "assistant", "content": action})
        return action


def _fields(
    model: str, temperature: float | None, top_p: float | None, max_turn_tokens: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """What every request holds beside messages, seed and tools."""
    if not isinstance(model, str) or not model:
        raise ValueError(f"model is the name of a model on the server; got {model!r}")
    if isinstance(max_turn_tokens, bool) or not isinstance(max_turn_tokens, int) or max_turn_tokens < 1:
        raise ValueError(f"max_turn_tokens must be a whole number, at least 1; got {max_turn_tokens!r}")
    for name, value, top in (("temperature", temperature, 100.0), ("top_p", top_p, 1.0)):
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= top):
            raise ValueError(f"{name} must be a number from 0 to {top:g}, or None; got {value!r}")
    if _OURS & extra.keys():
        raise ValueError(f"extra cannot hold {', '.join(sorted(_OURS & extra.keys()))}: the agent sets or needs those")
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra must hold JSON values: {error}") from None
    own = {"model": model, "temperature": temperature, "top_p": top_p, "max_tokens": max_turn_tokens}
    return own | dict(extra)


def _offered(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with the fields that the API knows and no more; strict servers refuse others."""
    function = schema["function"]
    return {
        "type": "function",
        "function": {name: function[name] for name in ("name", "description", "parameters") if name in function},
    }


def _arguments(call: Call) -> dict[str, Any] | None:
    """Arguments as an object; None where the model wrote something else."""
    given = call.function.arguments
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}", parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None
    return {} if given is None else given if isinstance(given, dict) else None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _rendered(call: Call) -> str:
    """A native call in the environment's grammar; arguments that are no object stand as written, to be told so."""
    arguments = _arguments(call)
    if arguments is not None:
        return render([ToolCall(call.function.name, arguments)])
    return (
        f'<tool_call>{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}</tool_call>'
    )


def _names(calls: Sequence[Call], start: int) -> tuple[str, ...]:
    """The calls' ids, or made ones where the server gave none or one twice."""
    given = [call.id for call in calls]
    if all(given) and len(set(given)) == len(given):
        return tuple(str(name) for name in given)
    return tuple(f"call{start + place:05}" for place in range(len(calls)))  # the form that Mistral's servers insist on


def _repeated(call: Call, name: str) -> dict[str, Any] | None:
    """A call as it is sent back in the conversation; None where it cannot be."""
    arguments = _arguments(call)
    if arguments is None or not call.function.name:
        return None
    return {
        "id": name,
        "type": "function",
        "function": {"name": call.function.name, "arguments": json.dumps(arguments)},
    }
