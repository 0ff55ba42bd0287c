"""Episodes to look at: one page that filters, reads and compares them, and shows the curves of a training run.

`view` serves the page to this machine, or writes it to a file that works without a server.
"""

from benchmarks.viewer.command import view

__all__ = ["view"]
