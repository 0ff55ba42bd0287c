"""Plays two episodes at once over an OpenEnv server and prints, as JSON, what came back; run by `test_openenv.py`.

python openenv_client.py URL SEED SEED
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from openenv.core.env_server.mcp_types import CallToolAction
from openenv.core.mcp_client import MCPToolClient

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("score_candidates", {}),
    ("search_items", {"querry": "guitar"}),
    ("nothing", {}),
    ("submit_ranking", {"ranking": [3, 1, 2]}),
]


async def step(client: MCPToolClient, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    result = await client.step(CallToolAction(tool_name=name, arguments=arguments))
    observation = result.observation
    return {
        "text": observation.result["content"][0]["text"] if observation.result else None,
        "error": observation.error.message if observation.error else None,
        "reward": result.reward,
        "done": result.done,
    }


async def main(url: str, *seeds: int) -> None:
    clients = [MCPToolClient(url) for _ in seeds]
    for client in clients:
        await client.connect()
    try:
        begun = [
            await client.reset(seed=seed, episode_id=f"number {seed}")
            for client, seed in zip(clients, seeds, strict=True)
        ]
        tools = [[tool.name for tool in await client.list_tools()] for client in clients]
        played = [[await step(client, name, arguments) for client in clients] for name, arguments in CALLS]
        late = await step(clients[0], "score_candidates", {})
        states = [await client.state() for client in clients]
    finally:
        for client in clients:
            await client.close()
    print(
        json.dumps(
            {
                "messages": [result.observation.messages for result in begun],
                "tools": tools,
                "steps": list(zip(*played, strict=True)),
                "late": late,
                "states": [state.model_dump() for state in states],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
