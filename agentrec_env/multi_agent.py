"""The dialogue in PettingZoo: an AEC and a Parallel view of one `Dialogue`. `DialogueAEC` is the specification.

PettingZoo's own converters do not fit: `aec_to_parallel` needs every agent to act in every cycle, and here the
recommender may act several times before the user is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle, seeding
from pettingzoo import AECEnv, ParallelEnv

from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.dialogue.core import SEATS, Dialogue, Seat
from agentrec_env.dialogue.scenario import DialogueConfig, DialogueScenario
from agentrec_env.dialogue.user import UserSeat
from agentrec_env.scenario import Played
from agentrec_env.spaces import Unicode
from agentrec_env.transcript import transcript
from agentrec_env.types import StopReason

Observation = dict[str, Any]
_CUT_OFF = (StopReason.TOO_MANY_TURNS, StopReason.ENVIRONMENT_ERROR)


class _Seats(Played, EzPickle):
    """What both views share: the scenario, one dialogue, spaces, seeding, and who was paid what."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - as PettingZoo types it
        "name": "AgentRec-AmazonDialogue-v0",
        "render_modes": ["ansi"],
        "render_fps": 1,
        "is_parallelizable": False,
    }

    def __init__(self, render_mode: str | None = None, world: World | None = None, **kwargs: Any) -> None:
        EzPickle.__init__(self, render_mode=render_mode, world=world, **kwargs)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is None or 'ansi'; got {render_mode!r}")
        self.render_mode = render_mode
        self.scenario: DialogueScenario = DialogueScenario(DialogueConfig.from_kwargs(kwargs), world)
        self.dialogue: Dialogue = self.scenario.session()
        self.possible_agents: list[str] = list(SEATS)
        self.agents: list[str] = []
        self._action_spaces = {seat: Unicode(self.scenario.action_space.max_length) for seat in SEATS}
        self._generator: np.random.Generator | None = None

    def seat(self, agent: str) -> _Seats | UserSeat:
        """What an agent that has `bind` binds to in that seat."""
        return UserSeat(self.world) if agent == "user" else self

    def session(self, row: int) -> Dialogue:
        """The dialogue, for judges and for agents that `bind`; there is one row."""
        return self.dialogue

    def views(self, rows: Sequence[int]) -> list[View]:
        """What the recommender may know; for agents that `bind`."""
        return [self.dialogue.view for _ in rows]

    def directions(self, rows: Sequence[int]) -> list[None]:
        """None: a dialogue asks for a list."""
        return [None for _ in rows]

    def observation_space(self, agent: str) -> gym.spaces.Dict:
        """Of a seat; always the same object."""
        return self.scenario.seat_spaces[cast(Seat, agent)]

    def action_space(self, agent: str) -> Unicode:
        """Of a seat: any text; always the same object."""
        return self._action_spaces[cast(Seat, agent)]

    def render(self) -> str | None:
        """The transcript so far, with render_mode "ansi"."""
        if self.render_mode is None:
            gym.logger.warn('render() needs render_mode="ansi", given to pettingzoo.make')
            return None
        if self._generator is None:
            return ""
        accepted = {None: "", True: "\n\nThe user took the list.", False: "\n\nThe user left."}[self.dialogue.accepted]
        return transcript(self.dialogue) + accepted

    def close(self) -> None:
        """Nothing is held open."""

    def _begin(self, seed: int | None, options: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Draw a task and begin; the infos. Options that are not known are ignored, as PettingZoo's tests expect."""
        if seed is not None or self._generator is None:
            self._generator = seeding.np_random(seed)[0]
        named = {"task": options["task"]} if options and "task" in options else None
        task, _ = self.scenario.draw(self._generator, seed is not None, named)
        self.dialogue.reset(task)
        self.agents = list(SEATS)
        return {"recommender": {"task": task.index, "calls": 0, "questions": 0}, "user": {"task": task.index}}

    def _advance(self, action: str) -> dict[str, dict[str, Any]]:
        """The action of the seat whose turn it is; the infos."""
        dialogue = self.dialogue
        if not isinstance(action, str):
            raise TypeError(f"the action of the {dialogue.seat} is a text; got {action!r:.100}")
        step = dialogue.step(action) if dialogue.seat == "recommender" else dialogue.reply(action)
        user: dict[str, Any] = {"questions": dialogue.questions}
        if dialogue.seat is None:
            user["stop"] = str(dialogue.stop)
            user |= {key: value for key, value in step[4].items() if key == "accepted" or key.startswith("utility/")}
        return {"recommender": step[4], "user": user}

    def _pay(self) -> dict[str, float]:
        """What each seat earned: nothing until the dialogue is over."""
        if self.dialogue.seat is not None:
            return {"recommender": 0.0, "user": 0.0}
        return {"recommender": float(self.dialogue.reward), "user": float(sum(self.dialogue.utility.values()))}

    def _over(self) -> tuple[bool, bool]:
        """(terminated, truncated), the same for both seats."""
        over, cut_off = self.dialogue.seat is None, self.dialogue.stop in _CUT_OFF
        return over and not cut_off, over and cut_off


class DialogueAEC(_Seats, AECEnv[str, Observation, "str | None"]):  # type: ignore[misc] # PettingZoo is untyped
    r"""
    ## Description
    A `user` who wants one item, and a `recommender` who has the user's history, a pool of candidates with that item
    among them, and tools. The recommender may ask the user before it ranks the pool; the user answers, and takes the
    list or leaves. Data, tools, budgets and judging are those of `agentrec_env.env.RecEnv`, AgenticRec's task
    (arXiv:2603.21613); the dialogue is this project's.

    Numbers, ids and titles of candidates are taken out of all that one seat says to the other
    (`agentrec_env.dialogue.redaction`): the user would else name the item, and there were nothing to recommend.

    ## Turns
    The recommender begins and acts until it asks or answers; then the user acts once. `agent_selection` says whose turn
    it is, and so does `active` in both observations. A user that decides nothing at the list is asked once more; after
    that it has left.

    ## Action Space
    `Unicode`: any text. No text raises.

    - recommender: the grammar of `agentrec_env.actions`. A question is the tool call
      `<tool_call>{"name": "ask_user", "arguments": {"question": "…"}}</tool_call>`, alone in its message, and counts as
      one of `max_calls`. What is no action is invalid, as in `RecEnv`.
    - user: plain words, of which the first 300 characters are read, or `<accept/>` or `<leave/>`; `<think>…</think>` is
      not passed on. At a question `<accept/>` says nothing; at the list anything but a verdict is asked about again.

    ## Observation Space
    `Dict`:

    | key | recommender | user |
    |---|---|---|
    | `text` | what is new since its last action: task, tool outputs, replies | what it wants; questions; the list |
    | `history` | int64 [history_length], latest items, oldest first, then -1 | the same |
    | `candidates` | int64 [C], the pool as numbered | int64 [C], the final list best first, then -1; -1 before |
    | `turn` | actions taken by the seat | the same |
    | `active` | 1 where it is the seat's turn | the same |
    | `target` | | int64 [1], the wanted item |

    ## Starting State
    `reset(seed=s)` draws task, negatives and order from s alone; `options={"task": i}` picks task i, as in `RecEnv`.

    ## Rewards
    0 until the dialogue is over. recommender: the reward of `RecEnv` for the list, less `question_cost` for each
    question; whether the user takes the list moves nothing in it. A user that leaves without a list makes the episode
    invalid (-1 by default). user: NDCG@10 of a list that it takes and that holds what it wants, -0.5 for one it takes
    that does not, 0 where it leaves; less `question_cost` for each question, and 0.1 more for each past its patience.

    ## Episode End
    Both seats end together. Terminated by the user's verdict, an invalid action beyond `retries`, or too many calls;
    truncated at `max_turns`.

    ## Information
    recommender: as in `RecEnv`, with `questions` and at the end `accepted`. user: `questions`, and at the end `stop`,
    `accepted`, `utility/taken`, `utility/effort`.

    ## Arguments
    The fields of `agentrec_env.dialogue.scenario.DialogueConfig`: those of `RecEnv`, where `num_candidates` is a number
    and `mode` is "rank", and `max_questions` (5), `question_cost` (0.02), `patience` (4). `render_mode` (None or
    "ansi"); `world`, a `World` in memory.

    ## Version History
    * v0: initial version.
    """

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Begin an episode; see Starting State."""
        self.infos = self._begin(seed, options)
        self.rewards: dict[str, float] = dict.fromkeys(SEATS, 0.0)
        self._cumulative_rewards: dict[str, float] = dict.fromkeys(SEATS, 0.0)
        self.terminations: dict[str, bool] = dict.fromkeys(SEATS, False)
        self.truncations: dict[str, bool] = dict.fromkeys(SEATS, False)
        self.agent_selection: str = "recommender"
        self._skip_agent_selection: str | None = None

    def observe(self, agent: str) -> Observation:
        """What a seat may know now."""
        return self.dialogue.observe(cast(Seat, agent))

    def step(self, action: str | None) -> None:
        """The action of `agent_selection`; None where its episode is over."""
        if not self.agents:
            raise gym.error.ResetNeeded("the dialogue is over; call reset")
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self.infos = self._advance(cast(str, action))
        self.rewards = self._pay()
        terminated, truncated = self._over()
        self.terminations = dict.fromkeys(SEATS, terminated)
        self.truncations = dict.fromkeys(SEATS, truncated)
        self._accumulate_rewards()
        self.agent_selection = self.dialogue.seat or SEATS[0]


class DialogueParallel(_Seats, ParallelEnv[str, Observation, str]):  # type: ignore[misc] # PettingZoo is untyped
    """`DialogueAEC`, whose docstring is the specification, with one step for both seats.

    `step(actions)` takes the action of the seat whose turn it is (`active` in its observation); that of the other is
    ignored and may be left out. Both get an observation, a reward and an info each time, so the two views give the same
    episode.
    """

    def reset(
        self, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        """Begin an episode."""
        infos = self._begin(seed, options)
        return self._observations(), infos

    def step(
        self, actions: Mapping[str, str]
    ) -> tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """One action; see the class."""
        if not self.agents:
            return {}, {}, {}, {}, {}
        seat = self.dialogue.seat
        if seat is None or seat not in actions:
            raise ValueError(f"it is the turn of the {seat}; actions hold {', '.join(actions) or 'nobody'}")
        infos = self._advance(actions[seat])
        terminated, truncated = self._over()
        if terminated or truncated:
            self.agents = []
        return (
            self._observations(),
            self._pay(),
            dict.fromkeys(SEATS, terminated),
            dict.fromkeys(SEATS, truncated),
            infos,
        )

    def _observations(self) -> dict[str, Observation]:
        return {seat: self.dialogue.observe(seat) for seat in SEATS}
