"""TRL: `environment` makes what `GRPOTrainer(environment_factory=…)` takes, and `rows` its dataset.

Five lines train a model of the Hub on lists (TRL >= 1.16, transformers >= 5.2)::

    from trl import GRPOConfig, GRPOTrainer
    from agentrec_env.adapters import trl

    arguments = GRPOConfig(max_completion_length=4096, num_generations=8)
    world = trl.environment(dataset="Video_Games")
    GRPOTrainer("Qwen/Qwen3-0.6B", args=arguments, train_dataset=trl.rows(1000), environment_factory=world).train()

TRL knows no end of an episode: calls after the answer raise, which TRL tells the model as the tool's error, and
`max_completion_length` bounds the whole conversation. TRL itself answers calls of tools that do not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrec_env.adapters.conversation import Conversation, method, scenario

if TYPE_CHECKING:
    from datasets import Dataset


def environment(**kwargs: Any) -> type[Any]:
    """A class of environments whose public methods are the tools; TRL makes, pools and resets its instances.

    Args:
        kwargs: Of `gym.make("AgentRec-Amazon-v0")`.

    Raises:
        TypeError, ValueError: An argument that cannot be used; or a tool called `reset` or `get_reward`, or with an
            underscore in front, which TRL takes for its own.
    """
    shared = scenario(**kwargs)
    functions = Conversation(shared).functions
    for name in functions:
        if name in ("reset", "get_reward") or name.startswith("_"):
            raise ValueError(f"TRL takes {name!r} for a method of its own, not for a tool; give the tool another name")

    def begin(self: Any) -> None:
        self._conversation = Conversation(shared)

    def reset(self: Any, *, seed: int | None = None, task: int | None = None, **columns: Any) -> str:
        """Begin the episode of a row of the dataset; other columns are the trainer's."""
        system, user = self._conversation.reset(seed, task)
        return f"{system['content']}\n\n{user['content']}"

    def get_reward(self: Any) -> float:
        """What the rollout was worth; one without an answer is paid as invalid."""
        return float(self._conversation.finish())

    members = {
        "__init__": begin,
        "reset": reset,
        "get_reward": get_reward,
        "__doc__": "Recommendation, as TRL plays it.",
    }
    return type("AgentRec", (), members | {name: method(function, _call) for name, function in functions.items()})


def rows(number: int, seed: int = 0) -> Dataset:
    """A dataset of `number` rows, each a task of its own: the environment writes the prompt when TRL resets it.

    Args:
        number: How many.
        seed: Of the first row; the others count up from it.
    """
    from datasets import Dataset

    message = [{"role": "user", "content": ""}]
    return Dataset.from_list([{"prompt": message, "seed": seed + place} for place in range(number)])


def _call(self: Any, name: str, arguments: dict[str, Any]) -> str:
    return str(self._conversation.call(name, arguments))
