"""AgentRec: recommendation as a text environment for language-model agents.

Importing it registers ``AgentRec-Amazon-v0`` and ``AgentRec-AmazonPair-v0`` with Gymnasium, which loads no plug-ins by
itself: ``import agentrec_env``, or ``gymnasium.make("agentrec_env:AgentRec-Amazon-v0")``.
"""

from agentrec_env.registration import register_env, register_envs
from agentrec_env.registry import Registry, UnknownNameError
from agentrec_env.types import Choice, Episode, Invalid, Ranking, StopReason, Task, ToolCall, Turn

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "Episode",
    "Invalid",
    "Ranking",
    "Registry",
    "StopReason",
    "Task",
    "ToolCall",
    "Turn",
    "UnknownNameError",
    "register_env",
    "register_envs",
]

register_envs()
