"""Agents that play AgentRec environments, and the loop that plays them.

`AGENTS` holds the registered names; `make` gives an agent from a name, `"module:attr"`, a class, an instance or a
function of one observation; `play` runs it. Nothing heavy is imported until an agent that needs it is made.
"""

from __future__ import annotations

from agents.play import play
from agents.protocol import AGENTS, Agent, FunctionAgent, ScoringAgent, make

__all__ = ["AGENTS", "Agent", "FunctionAgent", "ScoringAgent", "make", "play"]

for _name, _path in {
    "random": "agents.classical:Random",
    "identity": "agents.classical:Identity",
    "reversed": "agents.classical:Reversed",
    "popularity": "agents.classical:Popularity",
    "item_knn": "agents.classical:ItemKNN",
    "ease": "agents.classical:EASE",
    "bm25": "agents.classical:BM25",
    "signal": "agents.classical:SignalAgent",
    "sasrec": "agents.sasrec:SASRec",
    "fusion": "agents.fusion:Fusion",
    "scripted": "agents.scripted:ScriptedAgent",
    "asking": "agents.asking:AskingAgent",
    "teacher": "agents.teacher:Teacher",
    "oracle": "agents.oracle:Oracle",
    "llm": "agents.llm.agent:LLMAgent",
    "endpoint": "agents.endpoint:Endpoint",
}.items():
    AGENTS.register(_name, _path)
