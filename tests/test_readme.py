"""The README is the front door: what it shows must run, and what it promises must be there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentrec_env.check import check_agent

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:The environment AgentRec")
def test_python_blocks_run_in_order(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(PYTHON), encoding="utf-8")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "Collaborative scores" in run.stdout
    assert "the positive" in run.stdout


def test_the_agent_shown_is_an_agent() -> None:
    scope: dict[str, object] = {}
    exec(next(block for block in PYTHON if "def first_ten" in block), scope)
    assert check_agent(scope["first_ten"])


@pytest.mark.parametrize("marker", ["run command", "test command"])
def test_commands_do_all_their_set_up(marker: str) -> None:
    found = re.search(rf"<!-- {marker} -->\n```bash\n(.*)\n```", README)
    assert found
    assert re.match(r"python3 -m venv .venv && .venv/bin/pip install -e '.\[\w+\]' && .venv/bin/python ", found[1])


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
