"""The conformance suite: what an environment, an agent, a tool or a dataset of your own must do to be one.

Each check tries every point it knows and raises one `ConformanceError` that lists all that failed; it returns the
points that held. Meant for the tests of plug-in authors: `check_tool("my_shop.tools:get_stock")`.
"""

from agentrec_env.check.agent import check_agent
from agentrec_env.check.dataset import check_dataset
from agentrec_env.check.env import check_rec_env
from agentrec_env.check.points import ConformanceError
from agentrec_env.check.tool import check_tool

__all__ = ["ConformanceError", "check_agent", "check_dataset", "check_rec_env", "check_tool"]
