"""Commands that live elsewhere: `agentrec run`, `data` and `view` hand their arguments on."""

from __future__ import annotations

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """`agentrec run`: the comparison of `benchmarks/run_all.py`."""
    from benchmarks import run_all

    run_all.prepare_process()
    return run_all.main(arguments, prog="agentrec run")


def data(arguments: Sequence[str]) -> int:
    """`agentrec data`: `python -m agentrec_env.data`."""
    from agentrec_env.data.__main__ import main

    return main(arguments, prog="agentrec data")


def view(arguments: Sequence[str]) -> int:
    """`agentrec view`: the page of episodes, `python -m benchmarks.viewer`."""
    from benchmarks.viewer.command import main

    return main(arguments, prog="agentrec view")
