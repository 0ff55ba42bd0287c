"""Conformance of agents: one text for each observation, and the same episodes whatever the rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from agentrec_env.actions import parse
from agentrec_env.check.points import ConformanceError, Points
from agentrec_env.registry import Registry
from agentrec_env.types import Invalid
from agentrec_env.vector import RecVectorEnv, rows_of

_AGENTS: Registry[Any] = Registry("agent")


def check_agent(
    agent: str | type | Callable[..., Any] | Any, envs: RecVectorEnv | None = None, tasks: int = 6
) -> list[str]:
    """Check an agent: that it answers with one text for each observation, and plays the same whatever the rows.

    Args:
        agent: A function of one observation, a class, an instance, or "module:attribute".
        envs: Where to play; by default the embedded world.
        tasks: How many episodes.

    Returns:
        The points that hold.

    Raises:
        ConformanceError: Listing those that do not.
    """
    thing = _AGENTS.get(agent) if isinstance(agent, str) else agent
    if inspect.isclass(thing):
        thing = thing()
    points = Points(f"agent {agent if isinstance(agent, str) else getattr(agent, '__name__', type(agent).__name__)}")
    if not (callable(thing) or (hasattr(thing, "act") and hasattr(thing, "reset"))):
        raise ConformanceError(
            points.subject, ["it needs reset(num_envs, seed) and act(observations, rows), or must be a function"]
        )
    envs = envs or RecVectorEnv(3, task_split="valid")
    if hasattr(thing, "bind"):
        with points.point("bind"):
            thing.bind(envs)
    chosen = list(range(min(tasks, envs.num_tasks)))
    plays: dict[str, list[list[str]]] = {}
    for name, rows in (("together", envs.num_envs), ("again", envs.num_envs), ("one at a time", 1)):
        with points.point(f"plays {len(chosen)} episodes, {name}"):
            plays[name] = _play(thing, envs, chosen, rows)
    if "together" in plays:
        for name in ("again", "one at a time"):
            with points.point(f"equal seeds give equal episodes, {name}"):
                assert plays.get(name) == plays["together"], "the actions differ"
        with points.point("its actions are in the grammar"):
            mode, size = envs.scenario.rules.mode, envs.scenario.rules.num_candidates
            wrong = [a for actions in plays["together"] for a in actions if isinstance(parse(a, size, mode), Invalid)]
            first = parse(wrong[0], size, mode) if wrong else None
            assert not wrong, f"{len(wrong)} are not; {wrong[0][:80]!r}: {getattr(first, 'message', '')}"
    return points.result()


def _play(agent: Any, envs: RecVectorEnv, tasks: Sequence[int], rows: int) -> list[list[str]]:
    """The actions of each task's episode, `rows` of them at a time."""
    if hasattr(agent, "reset"):
        agent.reset(rows, 0)
    played: list[list[str]] = []
    for begin in range(0, len(tasks), rows):
        batch = list(tasks[begin : begin + rows])
        everyone = [*batch, *([0] * (envs.num_envs - len(batch)))]
        current = dict(enumerate(rows_of(envs.reset(options={"task": everyone})[0])[: len(batch)]))
        actions: list[list[str]] = [[] for _ in batch]
        while current:
            asked = sorted(current)
            observations = [current[row] for row in asked]
            if hasattr(agent, "act"):
                texts = agent.act(observations, asked)
                assert isinstance(texts, list), f"act returned a {type(texts).__name__}, not a list"
                assert len(texts) == len(asked), f"act gave {len(texts)} actions for {len(asked)} observations"
            else:
                texts = [agent(observation) for observation in observations]
            for text, row in zip(texts, asked, strict=True):
                assert isinstance(text, str), f"an action is a {type(text).__name__}, not a text"
                actions[row].append(text)
            envs.send(texts, asked)
            batch_observations, _, ended, cut, _, received = envs.recv()
            singles = zip(received.tolist(), rows_of(batch_observations), ended | cut, strict=True)
            current = {row: observation for row, observation, over in singles if not over}
        played += actions
    return played
