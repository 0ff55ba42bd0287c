"""From keyword arguments to what the rows of a dialogue share: those of `agentrec_env.scenario`, and the user's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from gymnasium import spaces

from agentrec_env.data.world import World
from agentrec_env.dialogue.core import ASK, UNDECIDED, Dialogue, DialogueRules, Seat
from agentrec_env.scenario import MAX_TEXT, Config, Scenario
from agentrec_env.session import Rules
from agentrec_env.spaces import Unicode


@dataclass(frozen=True)
class DialogueConfig(Config):
    """The keyword arguments of a dialogue: those of `Config` and three more, all of them JSON."""

    max_questions: int = 5
    """Questions that reach the user; each counts as one of `max_calls` too."""
    question_cost: float = 0.02
    """What a question costs each of the two seats."""
    patience: int = 4
    """Questions that the user answers gladly; each further one costs it 0.1 more. The recommender is not told."""


class DialogueScenario(Scenario):
    """What all rows of a dialogue share.

    Args:
        config: The keyword arguments.
        world: A world in memory, instead of the config's dataset, split, pool, history and seed.
    """

    def __init__(self, config: DialogueConfig, world: World | None = None) -> None:
        super().__init__(config, world)
        shared = {field.name: getattr(self.rules, field.name) for field in fields(Rules)}
        self.rules: DialogueRules = DialogueRules(
            **{**shared, "tools": {**self.rules.tools, ASK.name: ASK}},
            max_questions=config.max_questions,
            question_cost=config.question_cost,
            patience=config.patience,
        )

    def session(self) -> Dialogue:
        """A dialogue for one row."""
        return Dialogue(self.rules)

    @cached_property
    def seat_spaces(self) -> dict[Seat, spaces.Dict]:
        """Observation space of each seat; see `agentrec_env.multi_agent`."""
        top = self.world.dataset.num_items - 1
        recommender = spaces.Dict({**self.observation_space.spaces, "active": spaces.Discrete(2)})
        user = spaces.Dict(
            {
                "text": Unicode(MAX_TEXT),
                "history": spaces.Box(-1, top, (self.world.history_length,), np.int64),
                "candidates": spaces.Box(-1, top, (self.rules.num_candidates,), np.int64),
                "turn": spaces.Discrete(self.rules.max_questions + UNDECIDED + 2),
                "active": spaces.Discrete(2),
                "target": spaces.Box(0, top, (1,), np.int64),
            }
        )
        return {"recommender": recommender, "user": user}
