"""Doors for other trainers: each module is a thin layer between one library and `Conversation`, imported on its own.

The libraries exclude one another (they pin different versions of the same packages), so nothing is imported here and
each module has an extra of its own: `pip install 'agentrec-env[trl]'`, `[openenv]`, `[verifiers]` or `[verl]`.

Any OpenAI-compatible server needs no adapter: `agents.endpoint` plays it.
"""
