"""What a learner asks of an algorithm: which episodes, what credit, which loss. It knows no more of any of them.

An algorithm is a frozen dataclass of its settings; what must live from one batch to the next goes through
`Credit.memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, get_args, get_origin, get_type_hints

from torch import Tensor

from algos.batch import Batch, Credit, Loss, Part

if TYPE_CHECKING:
    from algos.rollout import Rollout
    from algos.stage import Stage

Total = Callable[[Tensor], Tensor]
"""Adds a tensor up over all ranks. Each algorithm calls it equally often, in the same order, on every rank."""


def alone(x: Tensor) -> Tensor:
    """The `Total` of a single process."""
    return x


class Algorithm(Protocol):
    """Credit and loss; see `algos.listwise_grpo.ListwiseGRPO` for the shortest whole example."""

    @property
    def groups(self) -> int:
        """Groups a step, K."""

    @property
    def group_size(self) -> int:
        """Trajectories a group, G."""

    @property
    def epochs(self) -> int:
        """Passes over each batch."""

    @property
    def minibatches(self) -> int:
        """Optimizer steps a pass; a group is never split between them."""

    @property
    def uses_reference(self) -> bool:
        """Whether `Batch.reference` must be there."""

    @property
    def uses_values(self) -> bool:
        """Whether the policy needs a value head, and `Batch.values` must be there."""

    @property
    def uses_entropy(self) -> bool:
        """Whether the entropy given to `loss` must carry a gradient."""

    def rollout(self, step: int, stage: Stage) -> Rollout:
        """What is learnt from in a step: most have `stage` play tasks of their choice."""

    def start(self) -> Mapping[str, float]:
        """The memory that `credit` is told with the first batch."""

    def credit(self, batch: Batch, memory: Mapping[str, float], total: Total = alone) -> Credit:
        """Credit for each sampled token of this rank's batch; groups are whole on a rank."""

    def loss(self, part: Part, logprobs: Tensor, values: Tensor | None, entropy: Tensor) -> Loss:
        """The summed loss of some trajectories.

        Args:
            part: n tokens.
            logprobs: float [n], of the policy that is trained, at the sampling temperature.
            values: float [n], of the policy that is trained.
            entropy: float [n], of the policy's distribution at each token.
        """


def check_choices(settings: object) -> None:
    """Raise ValueError where a field of a dataclass that is one of several strings is none of them.

    The command line checks this; a call from Python does not.
    """
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            allowed = ", ".join(repr(choice) for choice in get_args(hint))
            raise ValueError(f"{name} is one of {allowed}; got {getattr(settings, name)!r}")
