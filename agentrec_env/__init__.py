"""AgentRec: recommendation as a text environment for language-model agents."""

__version__ = "0.1.0"
