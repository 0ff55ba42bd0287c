"""`python -m benchmarks.viewer RUN`: serve a run's episodes to this machine, write them as a page, or export them."""

from __future__ import annotations

import sys

from benchmarks.viewer.command import main

if __name__ == "__main__":
    sys.exit(main())
