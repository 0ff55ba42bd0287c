"""Tools: how an agent looks at the data. Importing this package registers the built-in ones in ``TOOLS``."""

from agentrec_env.tools import profile  # isort: skip - the paper's order: profile, item, behaviour, collaborative
from agentrec_env.tools import items  # isort: skip
from agentrec_env.tools import behaviour  # isort: skip
from agentrec_env.tools import collaborative  # isort: skip
from agentrec_env.tools import comparison  # isort: skip
from agentrec_env.tools import search  # isort: skip
from agentrec_env.tools.base import TOOLS, Tool, call_tool, resolve_tools, tool
from agentrec_env.tools.schema import ToolError

PAPER = (
    "get_user_profile",
    "item_info_search",
    "candidates_analyze",
    "get_session_behavior",
    "get_rating_behavior",
    "get_similar_items",
    "get_similar_users",
)
"""The seven tools of AgenticRec, arXiv:2603.21613, sec. 3."""

__all__ = [
    "PAPER",
    "TOOLS",
    "Tool",
    "ToolError",
    "behaviour",
    "call_tool",
    "collaborative",
    "comparison",
    "items",
    "profile",
    "resolve_tools",
    "search",
    "tool",
]
