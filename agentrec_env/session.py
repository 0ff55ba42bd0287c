"""One episode as a plain state machine: a task in, action texts in, observation texts and a reward out.

It knows no Gymnasium, so `RecEnv` wraps one, `RecVectorEnv` holds many, and adapters for other trainers stand on the
same object. What the agent may learn comes from the `View`; the target is touched only to judge the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

from agentrec_env import metrics, prompts
from agentrec_env.actions import Action, Mode, parse, render
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.prompts import Direction
from agentrec_env.rewards import TOP, Outcome, Reward
from agentrec_env.tools import Tool, ToolError, call_tool
from agentrec_env.types import Choice, Episode, Invalid, Ranking, StopReason, Task, ToolCall, Turn

METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr")
"""What `info` and episodes report, all judged on the first ten of the list."""

_ANSWERS = (Ranking, Choice)

Step = tuple[str, float, bool, bool, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Rules:
    """What is the same for every episode of an environment.

    Raises:
        ValueError: A budget out of range.
    """

    world: World
    tools: Mapping[str, Tool]
    reward: Reward
    mode: Mode = "rank"
    max_calls: int = 10
    """Tool calls allowed; one more ends the episode as invalid (AgenticRec, arXiv:2603.21613, sec. 3)."""
    max_turns: int | None = None
    """Actions allowed; None: max_calls + retries + 1, which no agent reaches before another budget."""
    retries: int = 1
    """Invalid actions, unknown tools included, answered with an error and forgiven. The paper forgives none."""
    tool_timeout: float = 10.0
    """Seconds a guarded tool may take."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_calls", self.max_calls, 0),
            ("retries", self.retries, 0),
            ("max_turns", 1 if self.max_turns is None else self.max_turns, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")

    @cached_property
    def text(self) -> str:
        """Tools and form of an action, as every prompt of the environment ends."""
        return prompts.rules(self.tools.values(), self.mode, self.max_calls, self.num_candidates)

    @cached_property
    def turns_allowed(self) -> int:
        """Actions allowed in an episode."""
        return self.max_calls + self.retries + 1 if self.max_turns is None else self.max_turns

    @cached_property
    def num_candidates(self) -> int:
        """C, the size of the pool; 0 in catalogue mode."""
        return 0 if self.world.num_candidates == "catalog" else int(self.world.num_candidates)


class Session:
    """One row: an episode at a time.

    Attributes (all of the current episode, set by `reset`):
        task: The task, target included: for the judge, not for agents.
        view: What agents and tools may know.
        prompt: The first observation.
        turns: The actions so far and what they brought: (action text, calls made, observation text) of each.
        calls: Tool calls made.
        stop: Why the episode ended; None while it runs.
        ranking: Item indices as judged, best first, at most ten.
        rank: Place of the positive in it, 1 = first; 0 where it is not there.
        reward, terms, metrics: What it was worth; empty while it runs.
        error: What went wrong, where it ended by an error.
    """

    task: Task
    view: View
    direction: Direction | None
    prompt: str

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.turns: list[tuple[str, tuple[ToolCall, ...], str]] = []
        self.calls = 0
        self.mistakes = 0
        self.stop: StopReason | None = None
        self.ranking: tuple[int, ...] = ()
        self.rank = 0
        self.reward = 0.0
        self.terms: Mapping[str, float] = {}
        self.metrics: Mapping[str, float] = {}
        self.error: str | None = None

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.stop is not None

    def reset(self, task: Task, direction: Direction | None = None) -> str:
        """Begin an episode.

        Args:
            task: From the world of the rules.
            direction: Pair mode: whether the more or the less likely of the two is asked for.

        Returns:
            The prompt.
        """
        self.task = task
        self.direction = direction
        self.view = self.rules.world.view(task)
        self.turns = []
        self.calls = self.mistakes = 0
        self.stop = self.error = None
        self.ranking, self.rank = (), 0
        self.reward, self.terms, self.metrics = 0.0, {}, {}
        self.prompt = prompts.task_prompt(self.view, self.rules.text, self.rules.mode, direction)
        return self.prompt

    def step(self, action: str) -> Step:
        """Take the text that an agent wrote.

        Returns:
            What is new for the agent ("" where the episode ended); the reward, 0 until the end; terminated;
            truncated, where the turns ran out; info (see `RecEnv`).

        Raises:
            RuntimeError: The episode is over, or none was begun.
            Exception: Of a tool, other than `ToolError`: a bug in it. The action then counts as not taken.
        """
        return self.act(parse(action, len(self.task.candidates), self.rules.mode), action)

    def act(self, action: Action, text: str | None = None) -> Step:
        """Take an action that is parsed already; `text` is how the agent wrote it, by default as `render` does."""
        if self.stop is not None:
            raise RuntimeError(f"the episode is over ({self.stop}); reset before the next action")
        if text is None:
            text = action.message if isinstance(action, Invalid) else render(action)
        calls: tuple[ToolCall, ...] = ()
        observation, code = "", None
        if isinstance(action, list):
            action = self._known_tools(action)
        elif isinstance(action, _ANSWERS):
            action = self._judge(action)

        if isinstance(action, Invalid):
            code = action.code
            self.mistakes += 1
            if self.mistakes > self.rules.retries:
                self._end(StopReason.INVALID, action.message)
            else:
                observation = prompts.invalid(action, self.rules.retries - self.mistakes)
        elif isinstance(action, list) and self.calls + len(action) > self.rules.max_calls:
            self._end(StopReason.TOO_MANY_CALLS)
        if self.stop is None and len(self.turns) + 1 >= self.rules.turns_allowed:
            observation = ""
            self._end(StopReason.TOO_MANY_TURNS)
        if self.stop is None and isinstance(action, list):
            calls = tuple(action)
            observation = self._observe(calls)
            self.calls += len(calls)
        self.turns.append((text, calls, observation))
        return self._result(observation, code)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call one tool, for trainers that parse tool calls themselves; the text for the model ("" at the end)."""
        return self.act([ToolCall(name, dict(arguments))])[0]

    def abort(self, stop: StopReason, error: str) -> Step:
        """End the episode for a failure of the agent (paid as invalid) or of the environment (paid nothing)."""
        if self.stop is None:
            self._end(stop, error)
        return self._result("", None)

    def episode(
        self,
        seed: int | None = None,
        seconds: Sequence[float] = (),
        info: Mapping[str, Any] | None = None,
    ) -> Episode:
        """The record of the ended episode.

        Args:
            seed: Of the reset, where there was one.
            seconds: Time that the agent took for each action.
            info: What the agent adds.

        Raises:
            RuntimeError: The episode still runs.
        """
        if self.stop is None:
            raise RuntimeError("the episode still runs; its record can be made when it is over")
        times = [*seconds, *([0.0] * (len(self.turns) - len(seconds)))]
        task = self.task
        return Episode(
            task_split=task.split,
            task_index=task.index,
            user_id=self.rules.world.dataset.user_ids[task.user],
            seed=seed,
            prompt=self.prompt,
            turns=tuple(Turn(*turn, time) for turn, time in zip(self.turns, times, strict=False)),
            candidates=tuple(task.candidates.tolist()),
            ranking=self.ranking,
            target=task.target,
            reward=self.reward,
            terms=dict(self.terms),
            metrics=dict(self.metrics),
            stop=self.stop,
            error=self.error,
            info=dict(info or {}),
        )

    def _known_tools(self, calls: list[ToolCall]) -> list[ToolCall] | Invalid:
        tools = self.rules.tools
        for call in calls:
            if call.name not in tools:
                return prompts.unknown_tool(call.name, tools)
        return calls

    def _observe(self, calls: tuple[ToolCall, ...]) -> str:
        """Run the calls in order; what they return, one block each, and a word on the budget where it runs low."""
        rules = self.rules
        texts = []
        for call in calls:
            try:
                texts.append(prompts.observation(self._call(call)))
            except ToolError as error:
                texts.append(prompts.tool_error(str(error)))
        remark = prompts.budget(rules.max_calls - self.calls - len(calls))
        if remark:
            texts.append(remark)
        return "\n".join(texts)

    def _call(self, call: ToolCall) -> str:
        """What one call returns, safe to show; `ToolError` for what the model is told instead."""
        return call_tool(self.rules.tools[call.name], self.view, call.arguments, timeout=self.rules.tool_timeout)

    def _judge(self, answer: Ranking | Choice) -> Ranking | Choice | Invalid:
        """Read the answer as items and end the episode; Invalid where an id is not in the catalogue."""
        candidates = self.task.candidates.tolist()
        if isinstance(answer, Choice):
            likelier = (answer.letter == "A") == (self.direction == "more")
            first, second = candidates
            self.ranking = (first, second) if likelier else (second, first)
        elif self.rules.mode == "catalog":
            index = self.view.items.index
            for item_id in answer.entries:
                if item_id not in index:
                    return prompts.unknown_item(str(item_id))
            self.ranking = tuple(index[str(item_id)] for item_id in answer.entries[:TOP])
        else:
            self.ranking = tuple([candidates[int(number) - 1] for number in answer.entries[:TOP]])
        self._end(StopReason.ANSWERED)
        return answer

    def _end(self, stop: StopReason, error: str | None = None) -> None:
        self.stop, self.error = stop, error
        self.rank = rank = metrics.rank_of(self.ranking, self.task.target)
        terms = self.rules.reward(Outcome(stop, rank, len(self.ranking), self.calls))
        if stop is StopReason.ENVIRONMENT_ERROR:
            terms = dict.fromkeys(terms, 0.0)
        self.terms = terms
        self.reward = math.fsum(terms.values())
        self.metrics = _metrics(rank)

    def _result(self, observation: str, code: str | None) -> Step:
        info: dict[str, Any] = {"calls": self.calls}
        if code is not None:
            info["invalid"] = code
        if self.stop is None:
            return observation, 0.0, False, False, info
        info["stop"] = str(self.stop)
        info["rank"] = self.rank
        info["target"] = self.task.target
        info.update((f"reward/{name}", float(value)) for name, value in self.terms.items())
        info.update(self.metrics)
        if self.error is not None:
            info["error"] = self.error
        truncated = self.stop in (StopReason.TOO_MANY_TURNS, StopReason.ENVIRONMENT_ERROR)
        return observation, self.reward, not truncated, truncated, info


@cache
def _metrics(rank: int) -> Mapping[str, float]:
    return MappingProxyType({name: metrics.value(name, rank) for name in METRICS})
