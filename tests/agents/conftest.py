"""One small embedded world for all agent tests: made once, its evidence and fitted models shared."""

from __future__ import annotations

import pytest

from agentrec_env.data.synthetic import make_world
from agentrec_env.data.world import World


@pytest.fixture(scope="session")
def shop() -> World:
    return World(make_world(num_users=400, num_items=560, seed=1).dataset)
