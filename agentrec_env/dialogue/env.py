"""The dialogue with its user folded in: a single-agent environment again, for trainers and for `agents.play`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from gymnasium.utils import EzPickle

from agentrec_env.actions import Action
from agentrec_env.data.world import World
from agentrec_env.dialogue.core import Dialogue, DialogueRules
from agentrec_env.dialogue.scenario import DialogueConfig, DialogueScenario
from agentrec_env.dialogue.user import UserSeat, make_user
from agentrec_env.env import RecEnv
from agentrec_env.scenario import Scenario
from agentrec_env.session import Step
from agentrec_env.vector import RecVectorEnv


class AnsweredDialogue(Dialogue):
    """A dialogue whose user is an agent that answers at once.

    Args:
        rules: Of the environment.
        user: With `act(observations, rows)`.
        row: Its row in the user's eyes.
    """

    def __init__(self, rules: DialogueRules, user: Any, row: int) -> None:
        super().__init__(rules)
        self._user, self._row = user, row

    def act(self, action: Action, text: str | None = None) -> Step:
        """The recommender's action, and what the user made of it."""
        step = super().act(action, text)
        while self.seat == "user":
            [reply] = self._user.act([self.observe("user")], [self._row])
            step = self.reply(reply)
        return step


class _Answered(DialogueScenario):
    """Rows with one agent in the user's seat of all."""

    def __init__(self, kwargs: Mapping[str, Any], world: World | None, user: Any, rows: int) -> None:
        super().__init__(DialogueConfig.from_kwargs(kwargs), world)
        self._user, self._rows = make_user(user), count()
        if hasattr(self._user, "bind"):
            self._user.bind(UserSeat(self.world))
        self._user.reset(rows, self.config.seed)

    def session(self) -> AnsweredDialogue:
        return AnsweredDialogue(self.rules, self._user, next(self._rows))


class DialogueEnv(RecEnv):
    """
    ## Description
    `RecEnv` with one more tool, `ask_user(question)`: the user, who wants the positive of the pool, answers in words.
    Everything else is as there. Alone in a message, the call brings `The user says: …`; numbers, ids and titles are
    taken out of question and reply (`agentrec_env.dialogue.redaction`). The list goes to the user, who takes it or
    leaves; that moves nothing in the recommender's reward.

    ## Reward
    That of `RecEnv` less `question_cost` for each question, as the term `questions`. A user that leaves before a list
    was given ends the episode with `stop` "left", paid as invalid.

    ## Information
    Beside that of `RecEnv`: `questions`; at the end `accepted`, and the user's utility as `utility/taken` and
    `utility/effort`.

    ## Arguments
    Those of `RecEnv` with a pool (`num_candidates` is a number), `max_questions` (5), `question_cost` (0.02),
    `patience` (4), and `user`: "scripted", "module:attribute", or any agent with `reset` and `act`.
    """

    def __init__(
        self, render_mode: str | None = None, world: World | None = None, user: Any = "scripted", **kwargs: Any
    ) -> None:
        self._user = user
        super().__init__(render_mode, world, **kwargs)
        EzPickle.__init__(self, render_mode=render_mode, world=world, user=user, **kwargs)

    def _make_scenario(self, kwargs: Mapping[str, Any], world: World | None) -> Scenario:
        return _Answered(kwargs, world, self._user, 1)


class DialogueVectorEnv(RecVectorEnv):
    """`num_envs` rows of `DialogueEnv`; one agent sits in the user's seat of all, asked a row at a time.

    With it `agents.play` plays any two agents: one is played, the other is `user`. A user that raises ends its row with
    `stop` "environment_error", which is not the recommender's fault.
    """

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        world: World | None = None,
        user: Any = "scripted",
        **kwargs: Any,
    ) -> None:
        self._user = user
        super().__init__(num_envs, render_mode, world, **kwargs)
        EzPickle.__init__(self, num_envs=num_envs, render_mode=render_mode, world=world, user=user, **kwargs)

    def _make_scenario(self, kwargs: Mapping[str, Any], world: World | None) -> Scenario:
        return _Answered(kwargs, world, self._user, self.num_envs)
