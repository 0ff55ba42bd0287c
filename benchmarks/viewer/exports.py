"""Episodes in the formats of others: the Hub's session traces, and ATIF v1.7.

The Hub shows a JSON-lines file a session: a header, then messages (Session Trace Simple Format,
huggingface.co/docs/hub/session-traces-format). ATIF, the Agent Trajectory Interchange Format of Harbor, is one JSON
document a trajectory. Both hold the whole conversation; rewards and rankings go where each has room for extras.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agentrec_env import __version__
from agentrec_env.types import Episode, Turn
from benchmarks.records import write_text
from benchmarks.suite import slug
from benchmarks.viewer.collection import Collection, Played, Player

ATIF = "ATIF-v1.7"
_THOUGHT = re.compile(r"^(?:\s*<think>)?(.*?)</think>\s*(.*)\Z", re.DOTALL)
_OBSERVATION = re.compile(r"<observation>(.*?)</observation>", re.DOTALL)


def hub(one: Played, player: Player, name: str) -> str:
    """A session of the Hub's trace viewer, as JSON lines."""
    episode = one.episode
    lines: list[dict[str, Any]] = [
        {
            "type": "session",
            "harness": "agentrec",
            "id": name,
            "name": f"{player.name}: task {episode.task_index}, reward {episode.reward:g}",
            "metadata": _extra(one, player),
        },
        _message("user", episode.prompt),
    ]
    for number, turn in enumerate(episode.turns):
        thought, said = _thought(turn.action)
        message: dict[str, Any] = {"model": player.name}
        if thought:
            message["reasoningContent"] = thought
        if turn.calls:
            message["toolCalls"] = [
                {
                    "id": _call_id(number, place),
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(_finite(call.arguments))},
                }
                for place, call in enumerate(turn.calls)
            ]
        lines.append(_message("assistant", _prose(said) if turn.calls else said, **message))
        results, rest = _results(turn)
        lines += [_message("tool", text, toolCallId=_call_id(number, place)) for place, text in enumerate(results)]
        if rest:
            lines.append(_message("user", rest))
    return "".join(json.dumps(line) + "\n" for line in lines)


def atif(one: Played, player: Player, name: str) -> str:
    """A trajectory in ATIF v1.7, as a JSON document."""
    episode = one.episode
    steps: list[dict[str, Any]] = [{"step_id": 1, "source": "user", "message": episode.prompt}]
    for number, turn in enumerate(episode.turns):
        thought, said = _thought(turn.action)
        step: dict[str, Any] = {
            "step_id": len(steps) + 1,
            "source": "agent",
            "extra": {"seconds": _finite(turn.seconds)},
        }
        step["message"] = _prose(said) if turn.calls else said
        if thought:
            step["reasoning_content"] = thought
        if turn.calls:
            step["tool_calls"] = [
                {
                    "tool_call_id": _call_id(number, place),
                    "function_name": call.name,
                    "arguments": _finite(call.arguments),
                }
                for place, call in enumerate(turn.calls)
            ]
        results, rest = _results(turn)
        told = [{"source_call_id": _call_id(number, place), "content": text} for place, text in enumerate(results)]
        told += [{"content": rest}] if rest else []
        if told:
            step["observation"] = {"results": told}
        steps.append(step)
    totals: dict[str, Any] = {
        "total_steps": len(steps),
        "extra": _finite({"reward": episode.reward, **episode.metrics}),
    }
    tokens = episode.info.get("tokens")
    if isinstance(tokens, int):
        totals["total_completion_tokens"] = tokens
    record = {
        "schema_version": ATIF,
        "session_id": name,
        "trajectory_id": name,
        "agent": {"name": player.name, "version": __version__, "extra": _finite(player.about)},
        "steps": steps,
        "final_metrics": totals,
        "extra": _extra(one, player),
    }
    return json.dumps(record, indent=1) + "\n"


FORMATS: Mapping[str, tuple[Callable[[Played, Player, str], str], str]] = {
    "hub": (hub, ".jsonl"),
    "atif": (atif, ".json"),
}
"""Name -> how an episode is written, and the ending of its file."""


def export(collection: Collection, format: str, folder: Path) -> int:
    """Write each episode to a file of its own in `folder`; how many there were.

    Raises:
        KeyError: An unknown format.
    """
    write, ending = FORMATS[format]
    for number, one in enumerate(collection.played):
        player = collection.players[one.player]
        name = f"{number:06}-{slug(player.name)}-task{one.episode.task_index}"
        write_text(folder / f"{name}{ending}", write(one, player, name))
    return len(collection.played)


def _message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "message": {"role": role, "content": content, **more}}


def _call_id(turn: int, place: int) -> str:
    return f"call_{turn + 1}_{place + 1}"


def _thought(action: str) -> tuple[str, str]:
    """What was thought, and the rest of the action."""
    match = _THOUGHT.match(action)
    return (match[1].strip(), match[2]) if match else ("", action)


def _prose(said: str) -> str:
    """What was said beside calls, which have a place of their own."""
    return re.sub(r"<tool_call>.*?(?:</tool_call>|\Z)", "", said, flags=re.DOTALL).strip()


def _results(turn: Turn) -> tuple[list[str], str]:
    """What each call gave, and what the environment said beside it."""
    if not turn.calls:
        return [], turn.observation
    found = _OBSERVATION.findall(turn.observation)
    if len(found) != len(turn.calls):
        return [turn.observation, *[""] * (len(turn.calls) - 1)], ""
    return found, _OBSERVATION.sub("", turn.observation).strip()


def _extra(one: Played, player: Player) -> dict[str, Any]:
    episode: Episode = one.episode
    named = [one.names.get(item, str(item)) for item in episode.ranking]
    record = {
        "about": player.about,
        "task_split": episode.task_split,
        "task_index": episode.task_index,
        "user": episode.user_id,
        "reward": episode.reward,
        "terms": episode.terms,
        "metrics": episode.metrics,
        "stop": str(episode.stop),
        "ranking": named,
        "positive": one.names.get(episode.target, str(episode.target)),
        "error": episode.error,
    }
    return {name: _finite(value) for name, value in record.items() if value is not None}


def _finite(value: Any) -> Any:
    """Strict JSON: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
