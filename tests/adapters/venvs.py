"""Virtual environments for libraries that cannot live in one: made by the tests, kept for the next run.

They stand in the folder that AGENTREC_TEST_ENVS names, or in pytest's cache. What was asked for is part of the name, so
that a change of an extra makes a new one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment(extra: str, config: pytest.Config) -> Path:
    """The folder of programs of an environment with this project and one of its extras.

    Skips the test where pip cannot reach a registry.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = repr((sys.version, ROOT, project["dependencies"], project["optional-dependencies"][extra]))
    name = f"{extra}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    given = os.environ.get("AGENTREC_TEST_ENVS")
    folder = (Path(given) if given else Path(config.cache.mkdir("agentrec-envs"))) / name  # type: ignore[union-attr]
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    complete = folder / "complete"
    if not complete.exists():
        venv.create(folder, clear=True, with_pip=True)
        command = [programs / "python", "-m", "pip", "install", "--quiet", "--no-compile", "-e", f"{ROOT}[{extra}]"]
        made = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if made.returncode and "No matching distribution" in made.stderr and "setuptools" in made.stderr:
            pytest.skip("pip reaches no registry from here, so the environment of this test cannot be made")
        assert made.returncode == 0, made.stderr
        complete.touch()
    return programs
