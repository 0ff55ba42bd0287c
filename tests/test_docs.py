"""What the documentation shows must run: Python blocks of its pages, examples, and commands as far as they are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pages
from tests.agents.chat_server import serving

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pages.ROOT), "OMP_NUM_THREADS": "1"}
NAMES = [page.stem for page in pages.PAGES] + [f"examples/{name}" for name in pages.ALONE]
README = pages.ROOT / "README.md"
COMMANDS = sorted(
    {
        command
        for page in (*pages.PAGES, README)
        for block in pages.blocks(page)
        if block.language == "bash"
        for command in block.commands
        if pages.arguments(command)
    }
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Page or example -> its traceback, "" where it ran; all in one process, as most of the time is imports."""
    command = [sys.executable, "-m", "tests.pages", "run", str(tmp_path_factory.mktemp("docs"))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=pages.ROOT, env=ENVIRONMENT, timeout=240)
    assert run.returncode == 0, run.stderr
    return {name: error for name, error, _ in json.loads(run.stdout.splitlines()[-1])}


@pytest.mark.parametrize("name", NAMES)
def test_pages_and_examples_run(ran: dict[str, str], name: str) -> None:
    assert not ran[name], ran[name]


def test_parts_of_ones_own_are_under_15_lines() -> None:
    parts = [block for block in pages.blocks(pages.DOCS / "extend.md") if block.file]
    assert len(parts) >= 5
    assert all(block.text.count("\n") < 16 for block in parts)  # the name of the file is no line of the part


def test_the_algorithm_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from algos.command import find

    (block,) = [block for block in pages.blocks(pages.DOCS / "extend.md") if block.file == "my_algorithm.py"]
    (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("my_algorithm:Sharper")(groups=2).power == 2.0


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_read(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Options exist and have values that are read; nothing is run."""
    import tyro

    from algos.command import find
    from algos.sft import SFTConfig
    from algos.training import Training
    from benchmarks.cli.main import COMMANDS as known
    from benchmarks.options import parse_arguments

    name, *rest = pages.arguments(command)
    assert name in known
    try:
        if name == "run":
            parse_arguments(rest, "agentrec run")
        elif name == "train" and ":" not in rest[0]:
            algorithm = find(rest[0])
            settings = SFTConfig if algorithm is SFTConfig else Training[algorithm]  # type: ignore[valid-type]
            tyro.cli(settings, args=rest[1:])
    except SystemExit as error:
        pytest.fail(f"exit {error.code}: {capsys.readouterr().err}")


@pytest.mark.slow
def test_the_example_that_trains(tmp_path: Path) -> None:
    command = [sys.executable, str(pages.DOCS / "examples" / "train_two_steps.py"), str(tmp_path / "run")]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=200)
    assert run.returncode == 0, run.stderr
    assert "valid/ndcg@10" in run.stdout
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_example_with_a_server(tmp_path: Path) -> None:
    with serving() as server:
        command = [sys.executable, str(pages.DOCS / "examples" / "endpoint_agent.py"), server.url, "a-model"]
        run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("answered") == 4
    assert len(server.asked) == 8


def test_every_example_is_on_its_page() -> None:
    page = (pages.DOCS / "examples.md").read_text(encoding="utf-8")
    assert [path.stem for path in pages.EXAMPLES if f"<!-- insert: example {path.stem} -->" not in page] == []
