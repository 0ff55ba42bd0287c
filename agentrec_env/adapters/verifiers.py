"""verifiers: the environment as a taskset of `verifiers.v1` (0.4), for `vf-eval` and prime-rl.

An evaluation of any endpoint that streams, without uploading anything and without a sandbox::

    vf-eval agentrec-v1 -n 100 -m MODEL --client.base-url http://localhost:8000/v1 --no-push \\
        --env.agent.harness.id null --env.agent.runtime.type subprocess

The tools run in one process for all rollouts. A rollout's state holds the calls that were made, and whoever needs the
episode plays them again, so that nothing has to be kept in step between processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from agentrec_env.adapters.conversation import Conversation, method, scenario


class RecState(vf.State):
    """What tells an episode."""

    task: int = 0
    seed: int | None = None
    calls: list[tuple[str, dict[str, Any]]] = Field(default_factory=list)
    """Name and arguments of each call that was made."""
    over: bool = False


class RecData(vf.TaskData):
    """A task: its index, and the seed of its pool, or None for the fixed one."""

    task: int
    seed: int | None = None


class RecTaskConfig(vf.TaskConfig):
    """What tasks and tools are made with."""

    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Of `gym.make("AgentRec-Amazon-v0")`."""


class RecConfig(vf.TasksetConfig):
    """Which tasks there are."""

    task: RecTaskConfig = RecTaskConfig()
    seed: int | None = None
    """Task i has a pool drawn by seed + i; None: its fixed evaluation pool."""


class RecToolsConfig(vf.SharedToolsetConfig):
    """The tools' own process."""

    kwargs: dict[str, Any] = Field(default_factory=dict)
    """As those of the tasks."""


def played(kwargs: dict[str, Any], state: RecState) -> Conversation:
    """The episode of a rollout, as far as it came."""
    conversation = Conversation(scenario(**kwargs))
    conversation.reset(state.seed, state.task)
    for name, arguments in state.calls:
        conversation.call(name, arguments)
    return conversation


class RecTools(vf.Toolset[RecToolsConfig, RecState]):
    """The tools, and the call that answers."""

    TOOL_PREFIX = None

    def register(self, mcp: Any) -> None:
        """Offer each by its own name."""
        for name, function in Conversation(scenario(**self.config.kwargs)).functions.items():
            bound = method(function, _call).__get__(self)
            mcp.add_tool(self._with_state(bound), name=name, description=inspect.getdoc(bound))


def _call(self: RecTools, name: str, arguments: dict[str, Any]) -> str:
    state = self.state
    conversation = played(self.config.kwargs, state)
    text = conversation.call(name, arguments)
    state.calls.append((name, arguments))
    state.over = conversation.done
    return text


class RecTask(vf.Task[RecData, RecState, RecTaskConfig]):
    """One episode."""

    async def setup(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        """Tell the tools which task it is."""
        trace.state.task, trace.state.seed = self.data.task, self.data.seed

    @vf.stop
    async def answered(self, trace: vf.Trace) -> bool:
        """Whether the episode is over."""
        return bool(trace.state.over)

    @vf.reward(weight=1.0)
    async def reward(self, trace: vf.Trace) -> float:
        """What the episode was worth; without an answer it is paid as invalid."""
        return played(self.config.kwargs, trace.state).finish()

    @vf.metric
    async def ranking(self, trace: vf.Trace) -> dict[str, float]:
        """`hit@k`, `ndcg@k`, `mrr` and the number of tool calls."""
        conversation = played(self.config.kwargs, trace.state)
        conversation.finish()
        return conversation.metrics


class RecTaskset(vf.Taskset[RecTask, RecConfig]):
    """All tasks of a split."""

    def load(self) -> Iterator[RecTask]:
        """The tasks in order; each prompt is written when it is asked for."""
        conversation = Conversation(scenario(**self.config.task.kwargs))
        for task in range(conversation.scenario.num_tasks):
            seed = None if self.config.seed is None else self.config.seed + task
            system, user = conversation.reset(seed, task)
            data = RecData(task=task, seed=seed, prompt=user["content"], system_prompt=system["content"])
            yield RecTask(data, self.config.task)

    @classmethod
    def toolsets(cls, config: RecConfig) -> list[vf.Toolset]:
        """One process with all tools."""
        return [RecTools(RecToolsConfig(kwargs=config.task.kwargs))]


__all__ = ["RecTaskset"]

if __name__ == "__main__":
    RecTools.run()
