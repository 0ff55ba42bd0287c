"""`agentrec play`: a person is the agent for one episode, and then sees how agents did on the same task.

The quickest way to feel what the environment asks, what the tools are worth, and how hard the task is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from rich.console import Console

from agentrec_env.arguments import Parser, json_object
from agentrec_env.env import RecEnv
from agentrec_env.vector import RecVectorEnv
from agents import AGENTS, make, play
from benchmarks.cli.screen import Screen
from benchmarks.cli.typed import COMMANDS, MistypedError, action

ID = "AgentRec-Amazon-v0"
AGAINST = ("scripted", "popularity", "item_knn")
EXAMPLES = """examples:
  agentrec play                                    a random test task of the embedded world
  agentrec play --task 7 --against scripted llm    that task, and these agents beside you
  agentrec play --dataset Video_Games --candidates catalog
  agentrec play AgentRec-AmazonPair-v0             which of two items?
  agentrec play --tools my_shop:stock score_candidates
  agentrec play --env '{"max_calls": 3, "negatives": "hard"}'

Type a tool's name and what it needs (search_items red kettle), or the candidates' numbers, best first (8 3 15), which
ends the episode. Slips of the keyboard cost nothing.

exit codes: 0 the episode was played to its end; 1 it was left before; 2 the command line cannot be used
"""


def main(arguments: Sequence[str]) -> int:
    """Play one episode with a person; 0 where it was played to its end, 1 where it was left, 2 where it cannot be."""
    parser = Parser(prog="agentrec play", description="Rank for one user yourself.", epilog=EXAMPLES)
    parser.add_argument("id", nargs="?", default=ID, metavar="ID", help=f"environment, or module:ID (default: {ID})")
    parser.add_argument("--task", type=int, metavar="N", help="which task (default: one at random)")
    parser.add_argument("--dataset", help="what to load (default: synthetic)")
    parser.add_argument("--split", help="temporal (default) or leave_one_out")
    parser.add_argument("--candidates", metavar="C", help="size of the pool (default: 20), or catalog")
    parser.add_argument("--tools", nargs="*", metavar="NAME", help="tools on offer (default: all)")
    parser.add_argument(
        "--against", nargs="*", default=AGAINST, metavar="AGENT", help=f"agents to compare with ({' '.join(AGAINST)})"
    )
    parser.add_argument("--env", type=json_object, default={}, metavar="JSON", help="more arguments of the environment")
    options = parser.parse_args(arguments)
    try:
        for name in options.against:
            AGENTS.get(name)
        env, envs = _environments(options.id, _arguments(options))
        index = int(np.random.default_rng().integers(env.num_tasks)) if options.task is None else options.task
        env.reset(options={"task": index})
    except (ValueError, LookupError, TypeError, OSError, ImportError, gym.error.Error) as error:
        print(f"agentrec play: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    screen = Screen(console, env.session)
    console.print(f"Task {index} of {env.world.protocol} (--task {index} asks it again)", style="dim")
    if not _play(env, screen, console):
        console.print("Left before the end.", style="yellow")
        return 1
    screen.result()
    if options.against:
        console.print("The agents play …", style="dim")
        others = {name: play(envs, make(name), [index])[0] for name in options.against}
        screen.comparison({"you": env.session.episode(), **others})
    return 0


def _environments(name: str, arguments: Mapping[str, Any]) -> tuple[RecEnv, RecVectorEnv]:
    """The person's, and one of a row with the same tasks, pools and tools for agents."""
    module, colon, inner = name.partition(":")
    if colon:
        importlib.import_module(module)  # registers its ids
    entry = gym.spec(inner or name).entry_point
    kind = load_env_creator(entry) if isinstance(entry, str) else entry
    if not (isinstance(kind, type) and issubclass(kind, RecEnv)):
        raise ValueError(f"only a RecEnv can be played, and {name} is none; see agentrec list ids")
    env = gym.make(name, disable_env_checker=True, **arguments).unwrapped
    assert isinstance(env, RecEnv)
    envs = gym.make_vec(name, 1, vectorization_mode="vector_entry_point", **arguments).unwrapped
    assert isinstance(envs, RecVectorEnv)
    return env, envs


def _arguments(options: Any) -> dict[str, Any]:
    """Keyword arguments of the environment."""
    given = {"task_split": "test", "dataset": options.dataset, "split": options.split, "tools": options.tools}
    if options.candidates is not None:
        given["num_candidates"] = int(options.candidates) if options.candidates.isdecimal() else options.candidates
    return {name: value for name, value in given.items() if value is not None} | dict(options.env)


def _play(env: RecEnv, screen: Screen, console: Console) -> bool:
    """Whether the person played to the end."""
    session = env.session
    tools = session.rules.tools if session.rules.max_calls else {}
    _complete([*tools, *COMMANDS])
    screen.task()
    screen.budget()
    while not session.done:
        try:
            line = input("> ").strip()
            if not sys.stdin.isatty():
                console.print(line, markup=False)  # as a terminal shows what is typed
        except EOFError:
            console.print()
            return False
        if line in ("quit", "exit"):
            return False
        if line == "show":
            screen.task()
        elif line in ("help", "?"):
            screen.help()
        elif line:
            try:
                text = action(line, tools, session.rules.mode, session.rules.num_candidates)
            except MistypedError as error:
                screen.problem(str(error))
                continue
            screen.observation(env.step(text)[0]["text"])
    return True


def _complete(words: Sequence[str]) -> None:
    """Have Tab finish names, and the arrows bring back lines, where the terminal can."""
    if not sys.stdin.isatty():
        return
    try:
        import readline
    except ImportError:  # Windows
        return
    readline.set_completer(lambda text, state: [w for w in (*words, "") if w.startswith(text)][state] or None)
    readline.parse_and_bind("tab: complete")
