"""Tools: how an agent looks at the data. Importing this package registers the built-in ones in ``TOOLS``."""

from agentrec_env.tools import profile
from agentrec_env.tools.base import TOOLS, Tool, call_tool, resolve_tools, tool
from agentrec_env.tools.schema import ToolError

__all__ = ["TOOLS", "Tool", "ToolError", "call_tool", "profile", "resolve_tools", "tool"]
