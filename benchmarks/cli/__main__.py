"""`python -m benchmarks.cli`, for torchrun and where scripts are not on the path: the same as `agentrec`."""

from __future__ import annotations

import sys

from benchmarks.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
