"""RecEnv: one recommendation episode at a time behind Gymnasium's `Env`. The class docstring is the specification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle

from agentrec_env.data.world import World
from agentrec_env.scenario import Config, Played, Scenario
from agentrec_env.transcript import transcript


class RecEnv(Played, gym.Env[dict[str, Any], str], EzPickle):
    r"""
    ## Description
    An agent that reads and writes text recommends to one user at one moment. It sees the user's latest items and a pool
    of candidates, one of which the user really chose next; it may call tools that look at the data as it was known
    at that moment; and it ends the episode with a ranked list. The task, the loop and the default reward are those of
    AgenticRec, arXiv:2603.21613.

    `AgentRec-Amazon-v0` asks for a list. `AgentRec-AmazonPair-v0` shows two items and asks which one the user is
    more, or less, likely to choose (the paper's stage 2); it is the same class with `mode="pair"`.

    ## Action Space
    `Unicode`: any text. The grammar stands in `agentrec_env.actions`: prose and `<think>…</think>`, then

    - one or more `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, or
    - `<answer>\boxed{[8, 3, 15]}</answer>`: candidate numbers 1..C, best first; the first ten are judged. In catalogue
      mode a list of item ids as strings; in pair mode `\boxed{A}` or `\boxed{B}`.

    Anything else, and a call of an unknown tool, is invalid: the agent reads what was wrong as its next observation,
    and beyond `retries` such actions the episode ends. No action text raises.

    ## Observation Space
    `Dict`:

    | key | space | meaning |
    |---|---|---|
    | `text` | `Unicode` | what is new since the last action: the task, then tool outputs or an error |
    | `history` | `Box` int64 [history_length] | latest items as dataset indices, oldest first, then -1 |
    | `candidates` | `Box` int64 [C] | the pool in the order shown; C = 0 in catalogue mode |
    | `turn` | `Discrete` | actions taken |

    Text of the dataset is shown with chat-control tokens disarmed. A model needs `text` alone; the arrays are for
    agents that compute. Schemas for a chat template are in `tool_schemas`.

    ## Starting State
    `reset(seed=s)` draws the task, its negatives and the order of the pool from s alone: a GRPO group is one seed
    repeated. `reset(options={"task": i})` picks task i with its fixed evaluation pool, the same in every process;
    with a seed beside it, task i with a pool drawn by the seed. In pair mode `options` may also hold `"negative"`
    (item index or id), `"direction"` ("more" or "less") and `"letter"` ("A" or "B": where the positive stands), which
    are otherwise drawn, each with equal chance.

    ## Reward
    0 until the end. By default (`reward="agenticrec"`) NDCG@10 of the list; -0.5 where it is valid and misses the
    positive; -1 where the episode ends without a valid answer; +0.1 on top where the positive is first and at least
    one tool was called. Others: "ndcg@10", "hit@1", "mrr" (no penalties), "pair" (1 or 0, -1 without a valid letter),
    or your own.

    ## Episode End
    Terminated by a valid answer, by an invalid action beyond `retries`, or by asking for more than `max_calls` tool
    calls. Truncated at `max_turns` actions. Stepping on raises.

    ## Information
    Always `calls`, the tool calls made. `invalid`, the kind of mistake, where the action was one. After a reset
    `task`, its index. At the end: `stop` (a `StopReason`), `rank` of the positive in the list (0: not in it),
    `target`, its dataset index, each reward term as `reward/NAME`, `hit@1`, `hit@5`, `hit@10`, `ndcg@5`, `ndcg@10`,
    `mrr`, and `error` where there was one. Nothing in an observation or in info tells the target before the end.

    ## Arguments
    The fields of `agentrec_env.scenario.Config`, all JSON: `dataset` ("synthetic"), `k_core` (0), `split`
    ("temporal"), `task_split` ("train"), `num_candidates` (20, or "catalog"), `negatives` ("uniform"),
    `history_length` (10), `tools` (all), `max_calls` (10), `max_turns` (no limit of its own), `retries` (1; the paper
    has 0), `reward` ("agenticrec"), `seed` (0, of the fixed pools), `mode` ("rank"); and `render_mode` (None or
    "ansi": a readable transcript, the positive marked only after the end). `world`, a `World` in memory, takes the
    place of the arguments on data and pool.

    ## Version History
    * v0: initial version.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - as Gymnasium types it

    def __init__(self, render_mode: str | None = None, world: World | None = None, **kwargs: Any) -> None:
        EzPickle.__init__(self, render_mode=render_mode, world=world, **kwargs)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is None or 'ansi'; got {render_mode!r}")
        self.render_mode = render_mode
        self.scenario = self._make_scenario(kwargs, world)
        self.session = self.scenario.session()
        self.observation_space = self.scenario.observation_space
        self.action_space = self.scenario.action_space
        self._history = np.zeros(0, np.int64)
        self._begun = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; see Starting State."""
        super().reset(seed=seed)
        task, direction = self.scenario.draw(self.np_random, seed is not None, options)
        text = self.session.reset(task, direction)
        self._history = padded(task.history, self.world.history_length)
        self._begun = True
        return self._observation(text), {"task": task.index, "calls": 0}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one action; see Action Space, Reward and Episode End."""
        if not self._begun:
            raise gym.error.ResetNeeded("call reset before the first step")
        text, reward, terminated, truncated, info = self.session.step(action)
        return self._observation(text), reward, terminated, truncated, info

    def render(self) -> str | None:
        """The transcript so far, with render_mode "ansi"."""
        if self.render_mode is None:
            gym.logger.warn('render() needs render_mode="ansi", given to gym.make')
            return None
        return transcript(self.session) if self._begun else ""

    def _make_scenario(self, kwargs: Mapping[str, Any], world: World | None) -> Scenario:
        """What the keyword arguments mean; other environments on these rows take others."""
        return Scenario(Config.from_kwargs(kwargs), world)

    def _observation(self, text: str) -> dict[str, Any]:
        session = self.session
        return {
            "text": text,
            "history": self._history.copy(),
            "candidates": session.task.candidates.copy(),
            "turn": len(session.turns),
        }


def padded(history: np.ndarray[Any, np.dtype[np.int64]], length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64 [length]: `history` with -1 after its end."""
    full = np.full(length, -1, np.int64)
    full[: len(history)] = history
    return full
