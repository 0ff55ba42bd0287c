"""`agentrec COMMAND`: finds the command and hands it the rest of the line.

It imports the standard library alone, so that help comes at once; a command is a function from its arguments to an exit
code, named by a lazy string.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "play": ("benchmarks.cli.play:main", "rank for one user yourself, tools in hand, and see how agents did"),
    "run": ("benchmarks.cli.doors:run", "compare agents on a dataset, with error bars and a report"),
    "train": (
        "benchmarks.cli.train:main",
        "train a language model: sft, grpo, ppr, ppo, dpo, or a way of yours",
    ),
    "view": ("benchmarks.cli.doors:view", "look at the episodes of a run, step by step, in a browser"),
    "data": ("benchmarks.cli.doors:data", "download a category, or say what a file holds"),
    "list": ("benchmarks.cli.listing:main", "name what there is: ids, agents, tools, datasets, rewards, algorithms"),
    "check": ("benchmarks.cli.check:main", "test an agent, a tool, a dataset or an environment of yours"),
}
"""Name -> where its function is, and what it does."""
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "peft", "safetensors", "huggingface_hub", "tyro", "tensorboard"), "llm"),
    **dict.fromkeys(("lightgbm", "matplotlib"), "bench"),
    "openai": "endpoint",
}
"""Package -> extra that brings it."""

HELP = """usage: agentrec COMMAND ...

Recommendation as an environment for language-model agents.

commands:
{commands}

Start here:
  agentrec play                          be the agent for one user
  agentrec run --quick                   compare the built-in agents in two minutes
  agentrec run --quick --agent mine:rank        and yours: a function in mine.py
  agentrec train sft --out runs/warm --model tiny --teacher scripted --steps 200
  agentrec view results/quick-temporal-seed0

agentrec COMMAND --help explains a command. "module:attribute" is accepted wherever a name is; modules are looked for
in this folder too.

exit codes:
  0    done, and all is well
  1    done, but something failed: a row of a run, a point of a check, an episode left before its end
  2    the command line or the settings cannot be used; the message says what can
  130  stopped by Ctrl-C or SIGTERM; runs go on from there when they are started again"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Of the command line; None: those of the process.

    Returns:
        The exit code; `HELP` says which.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:7} {about}" for name, (_, about) in COMMANDS.items())))
        return 0 if given else 2
    if given[0] == "--version":
        from importlib.metadata import version

        print(f"agentrec {version('agentrec-env')}")
        return 0
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        from agentrec_env.registry import did_you_mean

        print(f"agentrec: {did_you_mean('command', name, COMMANDS, 'See agentrec --help.')}", file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where a user keeps the module of module:attribute
    try:
        return _command(name)(rest)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name).partition(".")[0])
        if extra is None:
            raise
        print(f"agentrec {name}: {error}. Run: pip install 'agentrec-env[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more as it ends
        return 1


def _command(name: str) -> Callable[[Sequence[str]], int]:
    module, _, function = COMMANDS[name][0].partition(":")
    found: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return found
