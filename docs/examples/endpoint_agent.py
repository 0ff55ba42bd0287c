"""Play with a model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`, hosted ones.

To try it without a GPU, serve the embedded policy, in another terminal (it wants fastapi and uvicorn):

    transformers serve agents/llm/tiny --port 8000
    python docs/examples/endpoint_agent.py http://localhost:8000/v1 agents/llm/tiny

A hosted server's key is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import sys

from agentrec_env.vector import RecVectorEnv
from agents import play
from agents.endpoint import Endpoint


def main(url: str, model: str, tasks: int = 4) -> None:
    """Play some test tasks, and say what they cost."""
    agent = Endpoint(url, model, concurrency=4, max_turn_tokens=256, temperature=0.0)
    for episode in play(RecVectorEnv(4, task_split="test"), agent, tasks=range(tasks)):
        print(f"task {episode.task_index}: {episode.stop}, reward {episode.reward:+.3f}", episode.error or "")
    print({name: round(figure, 1) for name, figure in agent.metrics.items()})


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: python endpoint_agent.py URL MODEL [TASKS]")
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
