"""OpenEnv: the environment as a server of Model Context Protocol tools, which TRL, SkyRL, verifiers and others speak.

One command serves it, and each client that connects has an episode of its own (OpenEnv 0.10)::

    python -m agentrec_env.adapters.openenv --port 8000 --env '{"dataset": "Video_Games"}'

    from openenv.core.mcp_client import MCPToolClient
    with MCPToolClient("http://localhost:8000").sync() as client:
        messages = client.reset(seed=1).observation.messages

A step tells reward and done; a bare MCP call moves the same episode and tells neither. There is no second, plain MCP
server: OpenEnv's is one already, at `/mcp`, with resets and pay on top.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from functools import partial
from typing import Any

from fastmcp import FastMCP
from fastmcp.client.client import CallToolResult
from fastmcp.tools.tool import Tool, ToolResult
from mcp.types import TextContent
from openenv.core.env_server import create_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation, ToolError, ToolErrorType
from openenv.core.env_server.types import Action, Observation, State
from pydantic import PrivateAttr

from agentrec_env.adapters.conversation import Conversation, EpisodeOverError, scenario
from agentrec_env.scenario import Scenario


class TaskObservation(Observation):
    """What a reset returns."""

    messages: list[dict[str, str]]
    """A system message with the rules and a user message with the task."""


class CallObservation(CallToolObservation):
    """What a step returns, with reward and done."""

    metrics: dict[str, float]
    """`hit@k`, `ndcg@k`, `mrr` and calls at the end; empty before."""


class RecEnvironment(MCPEnvironment):
    """One session: its tools, the call that answers among them, are those of the MCP server that it holds.

    Args:
        scenario: What all sessions share.

    Raises:
        ValueError: A tool with a name that OpenEnv keeps for itself (reset, step, state, close).
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, scenario: Scenario) -> None:
        self._conversation = Conversation(scenario)
        self._episode_id: str | None = None
        server = FastMCP("agentrec")
        for schema in self._conversation.tools:
            server.add_tool(_Offered.of(schema["function"], self._conversation))
        super().__init__(server)

    def reset(
        self, seed: int | None = None, episode_id: str | None = None, task: int | None = None, **options: Any
    ) -> TaskObservation:
        """Begin the episode that `RecEnv.reset` begins with the same seed and task."""
        self._episode_id = episode_id
        return TaskObservation(messages=self._conversation.reset(seed, task), reward=0.0)

    def step(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        """Make a call, of an unknown tool too: that is an action, and an invalid one."""
        if isinstance(action, CallToolAction):
            return self._call(action)
        return super().step(action, timeout_s=timeout_s, **kwargs)

    async def step_async(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        """Make a call on a thread, so that a slow tool does not hold up other sessions."""
        if isinstance(action, CallToolAction):
            return await asyncio.to_thread(self._call, action)
        return await super().step_async(action, timeout_s=timeout_s, **kwargs)

    @property
    def state(self) -> State:
        """The client's name for the episode, and the steps taken."""
        return State(episode_id=self._episode_id, step_count=len(self._conversation.session.turns))

    def _step_impl(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        raise ValueError(f"an action is a tool call or a request for the tools; got {type(action).__name__}")

    def _call(self, action: CallToolAction) -> CallObservation:
        conversation = self._conversation
        result = error = None
        try:
            text = conversation.call(action.tool_name, action.arguments)
            content = [TextContent(type="text", text=text)]
            result = CallToolResult(content=content, structured_content={"result": text}, meta=None, data=text)
        except EpisodeOverError as problem:
            error = ToolError(error_type=ToolErrorType.EXECUTION_ERROR, message=str(problem))
        return CallObservation(
            tool_name=action.tool_name,
            result=result,
            error=error,
            done=conversation.done,
            reward=conversation.reward,
            metrics=conversation.metrics,
        )


class _Offered(Tool):
    """A tool of the conversation; arguments are checked there, so that a model reads the same as everywhere."""

    _conversation: Conversation = PrivateAttr()

    @classmethod
    def of(cls, function: dict[str, Any], conversation: Conversation) -> _Offered:
        made = cls(name=function["name"], description=function["description"], parameters=function["parameters"])
        made._conversation = conversation
        return made

    async def run(self, arguments: dict[str, Any]) -> ToolResult:
        return ToolResult(content=self._conversation.call(self.name, arguments))


def application(sessions: int = 64, **kwargs: Any) -> Any:
    """The server as an ASGI application.

    Args:
        sessions: Episodes at a time.
        kwargs: Of `gym.make("AgentRec-Amazon-v0")`.
    """
    return create_app(
        partial(RecEnvironment, scenario(**kwargs)),
        CallToolAction,
        CallObservation,
        env_name="agentrec",
        max_concurrent_envs=sessions,
    )


def main() -> None:
    """Serve."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve AgentRec to OpenEnv and MCP clients.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="port (%(default)s)")
    parser.add_argument("--sessions", type=int, default=64, help="episodes at a time (%(default)s)")
    parser.add_argument("--env", type=json.loads, default={}, help="keyword arguments of gym.make, as JSON")
    given = parser.parse_args()
    uvicorn.run(application(given.sessions, **given.env), host=given.host, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
