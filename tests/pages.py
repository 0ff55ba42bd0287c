"""The code on documentation pages, run as a reader would run it, in one process and a folder of its own.

`python -m tests.pages run FOLDER` runs the Python blocks of all pages and the examples that need nothing else, and
prints what failed as JSON. `python -m tests.pages try PAGE` runs the shell lines of a page too, block by block, and
prints how long each took; lines in blocks after `<!-- not tried: … -->` are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
ALONE = ("play_an_episode", "compare_agents", "own_tool", "random_vector_agent")
"""Examples that need no server and little time."""
_BLOCK = re.compile(r"(?:<!-- not tried: (?P<why>.*?) -->\n)?```(?P<language>python|bash)\n(?P<text>.*?)```", re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    language: str
    text: str
    why: str = ""
    """Why it is not tried, where it is not."""

    @property
    def file(self) -> str:
        """The file that it is, where it begins with a name."""
        found = _FILE.match(self.text)
        return found[1] if found else ""

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block without comments, continued ones joined."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in (re.sub(r"\s+# .*", "", line).strip() for line in joined.splitlines()) if line]


def blocks(page: Path) -> list[Block]:
    """The Python and shell blocks of a page."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(each["language"], each["text"], each["why"] or "") for each in found]


def run_python(page: Path, scope: dict[str, object]) -> None:
    """Run the Python blocks of a page in order; those that are files are written to the current folder."""
    for block in blocks(page):
        if block.language != "python" or block.why:
            continue
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        else:
            exec(compile(block.text, str(page), "exec"), scope)


def run_all(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Page or example, the traceback where it failed, and seconds of processor time."""
    jobs: list[tuple[str, Callable[[], object]]] = [
        (page.stem, lambda page=page: run_python(page, {"__name__": "__main__"}))  # type: ignore[misc]
        for page in PAGES
    ]
    jobs += [
        (f"examples/{path.stem}", lambda path=path: runpy.run_path(str(path), run_name="__main__"))  # type: ignore[misc]
        for path in EXAMPLES
        if path.stem in ALONE
    ]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for name, job in jobs:
        begin, error = time.process_time(), ""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                job()
        except Exception:  # noqa: BLE001 - whatever a page raises is what is reported
            error = traceback.format_exc()
        yield name, error, time.process_time() - begin


def try_page(page: Path) -> int:
    """Run all blocks of a page in the current folder, in order, and print seconds; the number that failed."""
    failed, script = 0, ""
    for block in blocks(page):
        if block.why:
            print(f"   -   not tried: {block.why}", flush=True)
            continue
        if block.language == "python":
            if block.file:
                Path(block.file).write_text(block.text, encoding="utf-8")
                continue
            script += block.text
            lines = [[sys.executable, "-c", script]]
        else:
            lines = [["bash", "-c", command] for command in block.commands]
        for line in lines:
            begin = time.perf_counter()
            ended = subprocess.run(line, capture_output=True, text=True)
            shown = "(the Python blocks so far)" if block.language == "python" else line[-1]
            print(f"{time.perf_counter() - begin:6.1f} s  exit {ended.returncode}  {shown}", flush=True)
            if ended.returncode:
                failed += 1
                print(ended.stdout[-2000:] + ended.stderr[-2000:], flush=True)
    return failed


def arguments(command: str) -> list[str]:
    """The words of an `agentrec` command; none of another."""
    words = shlex.split(command)
    return words[1:] if words[:1] == ["agentrec"] else []


if __name__ == "__main__":
    if sys.argv[1] == "run":
        print(json.dumps([*run_all(Path(sys.argv[2]))]))
    else:
        raise SystemExit(sum(try_page(Path(page).resolve()) for page in sys.argv[2:]))
