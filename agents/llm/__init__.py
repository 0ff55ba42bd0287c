"""A language model as an agent that can be trained: chat, transcripts, generation, policy.

Nothing is imported here, so that `import agents` stays light; import from the modules.
"""
