"""An episode as other trainers see it: messages and tool schemas out, tool calls in, and the answer a call as well.

Every adapter holds a `Conversation` and adds only what its library wants on top. It is a `Session` underneath, so the
same actions are worth the same here as in `RecEnv`, and what a model reads has been disarmed already.
"""

from __future__ import annotations

import inspect
import json
import logging
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

from gymnasium.utils import seeding

from agentrec_env import prompts
from agentrec_env.actions import Action, Mode, parse
from agentrec_env.scenario import Config, Scenario
from agentrec_env.tools import ToolError
from agentrec_env.tools.schema import checked_arguments, function_schema
from agentrec_env.types import Invalid, StopReason

Message = dict[str, str]

logger = logging.getLogger(__name__)


class EpisodeOverError(ValueError):
    """A call after the end of an episode, or before the first one."""


class Conversation:
    """One row of an environment, an episode at a time.

    Args:
        scenario: What all rows share; `scenario` makes one of keyword arguments.

    Attributes:
        session: The episode underneath, with its record.
        tools: JSON schemas, OpenAI form, of the tools and of the call that answers.

    Raises:
        ValueError: A tool that has the name of the call that answers.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.session = scenario.session()
        self._begun = False
        answer = ANSWERS[scenario.rules.mode]
        self.submit = answer.__name__
        if self.submit in scenario.rules.tools:
            raise ValueError(f"a tool is called {self.submit!r}, as the call that answers is; give it another name")
        offered = [dict(tool.schema) for tool in scenario.rules.tools.values()] if scenario.rules.max_calls else []
        self.tools: tuple[dict[str, Any], ...] = (*offered, function_schema(answer, hidden="self"))
        self._rules = prompts.native_rules(
            scenario.rules.mode, scenario.rules.max_calls, scenario.rules.num_candidates, self.submit
        )

    @property
    def functions(self) -> dict[str, Callable[..., str]]:
        """Typed and documented functions by name, one for each of `tools`; their first parameter is not the model's."""
        made = {name: tool.function for name, tool in self.scenario.rules.tools.items()}
        return (made if self.scenario.rules.max_calls else {}) | {self.submit: ANSWERS[self.scenario.rules.mode]}

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.session.done

    @property
    def reward(self) -> float:
        """What the episode was worth; 0 until its end."""
        return self.session.reward

    @property
    def metrics(self) -> dict[str, float]:
        """`hit@k`, `ndcg@k` and `mrr` of the ended episode, and the calls it took; empty while it runs."""
        return {**self.session.metrics, "calls": float(self.session.calls)} if self.done else {}

    def reset(self, seed: int | None = None, task: int | None = None, **options: Any) -> list[Message]:
        """Begin an episode, the one that `RecEnv.reset` begins with the same arguments.

        Args:
            seed: Draws the task, its negatives and their order: a group is one seed repeated. None: anew each time.
            task: Index of a task; without a seed it has its fixed evaluation pool.
            options: The other reset options of `RecEnv`.

        Returns:
            A system message with the rules and a user message with the task.
        """
        generator, _ = seeding.np_random(seed)
        drawn = self.scenario.draw(generator, seed is not None, {"task": task, **options})
        text = self.session.reset(*drawn).removesuffix(self.scenario.rules.text).rstrip("\n")
        self._begun = True
        return [{"role": "system", "content": self._rules}, {"role": "user", "content": text}]

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Make one call of a model, the answer included.

        Args:
            name: Of a tool; an unknown one is an invalid action, as in `RecEnv`.
            arguments: Decoded from JSON, unchecked.

        Returns:
            What the model reads next.

        Raises:
            EpisodeOverError: The episode is over, or none was begun.
        """
        if not self._begun or self.done:
            raise EpisodeOverError(prompts.OVER if self._begun else "No episode was begun; reset first.")
        observation = ""
        try:
            if name == self.submit:
                observation = self.session.act(self._answer(arguments))[0]
            else:
                observation = self.session.call(name, arguments)
        except Exception as error:
            # A bug of a tool: other trainers would tell the model of it, or stop the run.
            logger.exception("the tool %s failed, which ends the episode without pay", name)
            self.session.abort(StopReason.ENVIRONMENT_ERROR, f"{type(error).__name__}: {error}")
        return prompts.OVER if self.done else observation

    def finish(self) -> float:
        """End an episode in which no answer came, paid as invalid; an ended one stays as it is.

        Returns:
            The reward.
        """
        if not self._begun:
            raise EpisodeOverError("No episode was begun; reset first.")
        self.session.abort(StopReason.INVALID, f"the conversation ended without a call of {self.submit}")
        return self.reward

    def _answer(self, arguments: Mapping[str, Any]) -> Action:
        """The action that the arguments of the answering call mean, read as the text of an answer is."""
        try:
            (value,) = checked_arguments(self.submit, self.tools[-1]["function"]["parameters"], arguments).values()
        except ToolError as error:
            return Invalid("bad_answer", str(error))
        written = value if self.scenario.rules.mode == "pair" else json.dumps(value)
        return parse(f"<answer>{written}</answer>", self.scenario.rules.num_candidates, self.scenario.rules.mode)


@lru_cache(maxsize=8)
def _scenario(kwargs: str) -> Scenario:
    return Scenario(Config.from_kwargs(json.loads(kwargs)))


def scenario(**kwargs: Any) -> Scenario:
    """The scenario of keyword arguments of `gym.make`, the same object for the same arguments.

    Raises:
        TypeError, ValueError: As `Scenario` does.
    """
    return _scenario(json.dumps(kwargs, sort_keys=True))


def method(function: Callable[..., str], call: Callable[[Any, str, dict[str, Any]], str]) -> Callable[..., str]:
    """A method that looks like `function` to whoever makes a schema of it, and hands all that it is given to `call`.

    Args:
        function: Typed and documented; its first parameter becomes `self`.
        call: Takes self, the function's name and the arguments.
    """
    name = function.__name__
    hints = typing.get_type_hints(function)
    first, *others = inspect.signature(function).parameters.values()
    hints.pop(first.name, None)

    def made(self: Any, /, **arguments: Any) -> str:
        return call(self, name, arguments)

    made.__name__ = made.__qualname__ = name
    made.__doc__ = function.__doc__
    made.__annotations__ = hints
    shown = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    shown += [parameter.replace(annotation=hints[parameter.name]) for parameter in others]
    made.__signature__ = inspect.Signature(shown, return_annotation=str)  # type: ignore[attr-defined]
    return made


def submit_ranking(self: object, ranking: list[int]) -> str:
    """Answer with your ranking of the candidates, which ends the task.

    Args:
        ranking: Numbers of up to ten candidates, each once, most likely first.
    """
    raise NotImplementedError


def submit_items(self: object, items: list[str]) -> str:
    """Answer with your ranking of items of the catalogue, which ends the task.

    Args:
        items: Ids of up to ten items, each once, most likely first.
    """
    raise NotImplementedError


def submit_choice(self: object, choice: Literal["A", "B"]) -> str:
    """Answer with one of the two items, which ends the task.

    Args:
        choice: Letter of the item.
    """
    raise NotImplementedError


ANSWERS: Mapping[Mode, Callable[..., str]] = {"rank": submit_ranking, "catalog": submit_items, "pair": submit_choice}
"""What a model sees of the call that answers, by the mode of the environment."""
