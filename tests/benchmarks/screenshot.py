"""The picture of the viewer on the front page: two agents on one task.

    python benchmarks/run_all.py --quick --only fusion scripted llm:tiny pool-20 --model tiny \\
        --model-args '{"temperature": 0}' --tasks 40 --out results/picture
    python -m tests.benchmarks.screenshot results/picture docs/viewer.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import benchmarks.viewer
from tests.benchmarks.chromium import Browser


def main(run: str, picture: str) -> None:
    """Take it."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "viewer.html"
        benchmarks.viewer.view(Path(run), None, page)
        with Browser.start(Path(folder)) as browser:
            shown = browser.open(f"{page.as_uri()}#episode=4&with=5", 1440, 900)
            shown.wait("root.querySelector('.ranking') !== null")
            shown.wait("new Promise((done) => setTimeout(() => done(true), 300))")
            shown.picture(Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
