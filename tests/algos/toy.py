"""A world so small that every trajectory can be listed: what an estimator expects is computed, not sampled.

Two tasks, three turns at most, two tools whose observations steer what follows, trajectories of two to four sampled
tokens, the paper's rewards, and a softmax policy whose states share their parameters. `expected_gradient` is the exact
expectation of what one optimizer step follows, over all groups, through an algorithm's own `credit` and `loss`.

`python -m tests.algos.toy` prints how far each option of list-wise GRPO is from the gradient of the expected reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from math import factorial

import numpy as np
import torch
from torch import Tensor

from algos.algorithm import Algorithm
from algos.batch import Batch, Credit
from algos.listwise_grpo import ListwiseGRPO

CHOICES = 3
SEEN = {"a": 3, "b": 4, "again": 5, "easy": 6, "hard": 7}
"""What a policy may have seen besides its own tokens, 0 to 2: observations, and the prompt of the task."""


@dataclass(frozen=True)
class Path:
    """A trajectory: its task, its turns, the observation after each turn but the last, and what it is paid."""

    task: str
    turns: tuple[tuple[int, ...], ...]
    observations: tuple[str, ...]
    reward: float

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for turn in self.turns for token in turn)

    @property
    def contexts(self) -> list[tuple[int, ...]]:
        """What came before each token: the prompt, tokens and observations."""
        contexts = []
        seen: tuple[int, ...] = (SEEN[self.task],)
        for turn, observation in zip(self.turns, (*self.observations, None), strict=True):
            for token in turn:
                contexts.append(seen)
                seen = (*seen, token)
            if observation is not None:
                seen = (*seen, SEEN[observation])
        return contexts


ROUTES: tuple[tuple[tuple[tuple[int, ...], ...], tuple[str, ...], float, float], ...] = (
    # No tool: an answer of two tokens.
    (((2, 0),), (), 0.631, -0.5),
    (((2, 1),), (), -0.5, -0.5),
    (((2, 2),), (), -1.0, -1.0),
    # Tool a, then an answer, with or without a thought before it.
    (((0,), (1, 0)), ("a",), 1.1, 0.289),
    (((0,), (1, 1)), ("a",), -0.5, -0.5),
    (((0,), (0, 0)), ("a",), -1.0, -1.0),
    (((0,), (0, 1, 0)), ("a",), 1.1, -0.5),
    (((0,), (0, 1, 1)), ("a",), 0.5, 0.631),
    # Tool b, then an answer, or a second call.
    (((1,), (0,)), ("b",), 0.431, -0.5),
    (((1,), (1,)), ("b",), -0.5, -0.5),
    (((1,), (2,), (0,)), ("b", "again"), 1.1, 1.1),
    (((1,), (2,), (1,)), ("b", "again"), -1.0, -0.5),
)
"""Turns, observations, and the reward in either task."""
PATHS = tuple(
    Path(task, turns, seen, reward[number])
    for number, task in enumerate(("easy", "hard"))
    for turns, seen, *reward in ROUTES
)
TASKS = len(PATHS) // len(ROUTES)
TOKENS = [(number, place) for number, path in enumerate(PATHS) for place in range(len(path.tokens))]
"""Each sampled token of each path: path and place."""
REWARDS = torch.tensor([path.reward for path in PATHS], dtype=torch.float64)
LENGTHS = np.array([len(path.tokens) for path in PATHS])


CONTEXTS = sorted({context for path in PATHS for context in path.contexts})
AT = [CONTEXTS.index(PATHS[path].contexts[place]) for path, place in TOKENS]
"""Which context each token was sampled in."""
IDS = [PATHS[path].tokens[place] for path, place in TOKENS]
COUNTS = torch.tensor([[float(context.count(seen)) for seen in range(8)] for context in CONTEXTS]).double()
CONTEXT_LENGTHS = [len(context) for context in CONTEXTS]
IMPOSSIBLE = torch.full((len(CONTEXTS), CHOICES), -torch.inf, dtype=torch.float64)
IMPOSSIBLE[AT, IDS] = 0.0
"""[contexts, CHOICES]: -inf where no path goes on with that token."""


class ToyPolicy(torch.nn.Module):
    """A softmax over the tokens that are possible next, from embeddings of what was seen and its length."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = {"seen": (8, 4), "place": (7, 4), "out": (4, CHOICES)}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            self.register_parameter(name, torch.nn.Parameter(weight))

    def table(self) -> Tensor:
        """[contexts, CHOICES]: log-probabilities."""
        states = (COUNTS @ self.seen + self.place[CONTEXT_LENGTHS]).tanh()
        return torch.log_softmax(states @ self.out + IMPOSSIBLE, dim=-1)

    def logprobs(self) -> Tensor:
        """[len(TOKENS)]: of each sampled token of each path."""
        return self.table()[AT, IDS]

    def path_logprobs(self) -> Tensor:
        """[len(PATHS)]"""
        rows = torch.tensor([path for path, _ in TOKENS])
        return torch.zeros(len(PATHS), dtype=torch.float64).index_add(0, rows, self.logprobs())

    def gradient(self, scalar: Tensor) -> Tensor:
        """[parameters]: gradient of a scalar."""
        gradients = torch.autograd.grad(scalar, list(self.parameters()), allow_unused=True)
        pairs = zip(gradients, self.parameters(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def expected_reward(self) -> Tensor:
        """J, by listing; both tasks are equally likely."""
        return self.expected(REWARDS)

    def expected(self, x: Tensor) -> Tensor:
        """Expectation over tasks and paths of `x` [len(PATHS)]."""
        return (self.path_logprobs().exp() * x).sum() / TASKS

    def moved(self, direction: Tensor, size: float) -> ToyPolicy:
        """A policy whose parameters are `size` further along `direction`."""
        other = ToyPolicy()
        other.load_state_dict(self.state_dict())
        with torch.no_grad():
            start = 0
            for parameter in other.parameters():
                step = direction[start : start + parameter.numel()].view_as(parameter)
                parameter += size * step / direction.norm()
                start += parameter.numel()
        return other


def path_batch(paths: np.ndarray, group: np.ndarray, behaviour: ToyPolicy, reference: ToyPolicy | None = None) -> Batch:
    """The batch of the listed paths, sampled by `behaviour`; int [B] each."""
    logprobs = behaviour.logprobs().detach()
    tokens, row = tokens_of(paths)
    numbers = np.array(TOKENS)[tokens]
    turn = np.array([[n for n, turn in enumerate(PATHS[p].turns) for _ in turn][k] for p, k in TOKENS])[tokens]
    return Batch(
        rewards=REWARDS[paths],
        group=torch.from_numpy(group),
        row=torch.from_numpy(row),
        position=torch.from_numpy(numbers[:, 1] + 10),
        turn=torch.from_numpy(turn),
        old_logprobs=logprobs[tokens],
        reference=None if reference is None else reference.logprobs().detach()[tokens],
    )


def tokens_of(paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in TOKENS of all tokens of the listed paths, and the place of each token's path in the list."""
    first = np.cumsum(LENGTHS) - LENGTHS
    row = np.repeat(np.arange(len(paths)), LENGTHS[paths])
    within = np.arange(len(row)) - np.repeat(np.cumsum(LENGTHS[paths]) - LENGTHS[paths], LENGTHS[paths])
    return first[paths][row] + within, row


@cache
def all_groups(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every multiset of `size` paths of a task, int [K, size], and in how many orders each may be sampled, [K]."""
    groups = np.array(list(combinations_with_replacement(range(len(ROUTES)), size)))
    counts = np.stack([(groups == path).sum(1) for path in range(len(ROUTES))], 1)
    orders = factorial(size) / np.array([float(factorial(n)) for n in range(size + 1)])[counts].prod(1)
    return np.concatenate([groups + task * len(ROUTES) for task in range(TASKS)]), np.tile(orders, TASKS)


def expected_gradient(
    algorithm: Algorithm,
    policy: ToyPolicy,
    size: int,
    groups_a_step: int = 1,
    behaviour: ToyPolicy | None = None,
    reference: ToyPolicy | None = None,
) -> Tensor:
    """[parameters]: minus the exact expectation of the gradient of the loss that one optimizer step follows.

    Args:
        algorithm: Whose credit and loss.
        policy: Where the gradient is taken.
        size: G.
        groups_a_step: Independent groups that share a divisor.
        behaviour: Which sampled; `policy` itself by default.
        reference: For the divergence.
    """
    behaviour = behaviour or policy
    groups, orders = all_groups(size)
    probability = torch.from_numpy(orders) * behaviour.path_logprobs().detach()[groups].sum(1).exp() / TASKS
    assert abs(float(probability.sum()) - 1) < 1e-12
    number = np.repeat(np.arange(len(groups)), size)
    batch = path_batch(groups.ravel(), number, behaviour, reference)
    credit = algorithm.credit(batch, algorithm.start())
    tokens = torch.from_numpy(tokens_of(groups.ravel())[0])
    slope = _slope(algorithm, batch, credit, policy, tokens)

    # The loss is a sum over groups, so its slope at a token is that of the token's own group, before any division.
    divisor = torch.zeros(len(groups), dtype=torch.float64).index_add(0, batch.group, credit.divisor)
    kinds, kind = divisor.unique(return_inverse=True)
    expected = torch.zeros(len(kinds), len(TOKENS), dtype=torch.float64)
    of_token = batch.group[batch.row]
    expected.index_put_((kind[of_token], tokens), probability[of_token] * slope, accumulate=True)
    mass = torch.zeros(len(kinds), dtype=torch.float64).index_add(0, kind, probability)
    share = _mean_inverse(kinds.numpy(), mass.numpy(), groups_a_step)
    return -policy.gradient((policy.logprobs() * (expected * torch.from_numpy(share)[:, None]).sum(0)).sum())


def _slope(algorithm: Algorithm, batch: Batch, credit: Credit, policy: ToyPolicy, tokens: Tensor) -> Tensor:
    """[N]: derivative of the summed loss by the log-probability of each token."""
    logprobs = policy.logprobs().detach()[tokens].requires_grad_()
    part = batch.part(torch.arange(batch.num_tokens), credit)
    loss = algorithm.loss(part, logprobs, None, torch.zeros_like(logprobs))
    (slope,) = torch.autograd.grad(loss.total, logprobs)
    return slope


def _mean_inverse(kinds: np.ndarray, mass: np.ndarray, groups: int) -> np.ndarray:
    """For each divisor of one group: `groups` times the mean of 1 / (it + those of the other groups); 0 for 1 / 0."""
    if len(kinds) == 1:
        return np.array([1 / kinds[0]])
    assert (kinds == kinds.round()).all(), "divisors that vary are counts"
    one = np.zeros(int(kinds.max()) + 1)
    one[kinds.astype(int)] = mass
    others = np.ones(1)
    for _ in range(groups - 1):
        others = np.convolve(others, one)
    totals = kinds[:, None] + np.arange(len(others))
    return groups * (others * np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)).sum(1)


def mean_length(policy: ToyPolicy) -> float:
    """Expected number of sampled tokens of a trajectory."""
    return float(policy.expected(torch.from_numpy(LENGTHS)).detach())


def all_negative_share(policy: ToyPolicy, size: int) -> float:
    """Probability that a whole group is punished."""
    punished = (policy.path_logprobs().detach().exp() * (REWARDS < 0)).view(TASKS, -1).sum(1)
    return float((punished**size).mean())


def compare(estimate: Tensor, truth: Tensor) -> tuple[float, float]:
    """Cosine and ratio of norms."""
    return float(estimate @ truth / estimate.norm() / truth.norm()), float(estimate.norm() / truth.norm())


def policies() -> dict[str, ToyPolicy]:
    """Along exact gradient ascent: mostly punished, half way, nearly solved."""
    policy = ToyPolicy(seed=3)
    while float(policy.expected_reward().detach()) > -0.6:
        policy = policy.moved(-policy.gradient(policy.expected_reward()), 0.2)
    stages = {}
    for name, bar in (("weak", -0.6), ("middling", 0.1), ("strong", 0.8)):
        while float(policy.expected_reward().detach()) < bar:
            policy = policy.moved(policy.gradient(policy.expected_reward()), 0.05)
        stages[name] = policy
    return stages


VARIANTS: dict[str, dict[str, object]] = {
    "constant divisor, no group dropped": {"loss_mean": "constant", "drop": "none"},
    "the same, leave-one-out baseline": {"loss_mean": "constant", "drop": "none", "baseline": "leave_one_out"},
    "the same, std": {"loss_mean": "constant", "drop": "none", "std": True},
    "the same, all-negative groups dropped": {"loss_mean": "constant"},
    "token mean": {"drop": "none"},
    "sequence mean": {"loss_mean": "sequence", "drop": "none"},
    "defaults: token mean, all-negative dropped": {},
    "GRPO as first published: sequence mean, std": {"loss_mean": "sequence", "drop": "none", "std": True},
}
CLIPS: dict[str, dict[str, object]] = {
    "token ratio": {"clip_low": None, "clip_high": None},
    "token ratio, clip .2 / .28": {},
    "sequence ratio": {"ratio": "sequence", "clip_low": None, "clip_high": None},
    "sequence ratio, clip 3e-4 / 4e-4": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
}


def bias(settings: dict[str, object], policy: ToyPolicy, size: int, groups: int = 1) -> tuple[float, float]:
    """Cosine and ratio of norms of what a step follows and the gradient of J, at equal step sizes a trajectory."""
    algorithm = ListwiseGRPO(**{"constant": 1.0, **settings})
    estimate = expected_gradient(algorithm, policy, size, groups)
    unit = 1.0 if algorithm.loss_mean == "constant" else mean_length(policy)
    return compare(estimate * unit, policy.gradient(policy.expected_reward()))


def clip_bias(settings: dict[str, object], behaviour: ToyPolicy, step: float, size: int) -> tuple[float, float]:
    """The same after the policy has moved by `step` along the gradient, away from the one that sampled."""
    policy = behaviour.moved(behaviour.gradient(behaviour.expected_reward()), step)
    algorithm = ListwiseGRPO(loss_mean="constant", constant=1.0, drop="none", **settings)
    estimate = expected_gradient(algorithm, policy, size, behaviour=behaviour)
    return compare(estimate, policy.gradient(policy.expected_reward()))


def main(size: int = 8, clip_size: int = 4) -> None:
    """Print cosine and norm ratio to the gradient of J, for each variant and policy."""
    stages = policies()
    print(f"On-policy, groups of {size}: cosine, norm ratio\n{'':52s}", end="")
    for name, policy in stages.items():
        reward = float(policy.expected_reward().detach())
        print(f"{name}: J {reward:.2f}, dropped {all_negative_share(policy, size):.2f}".rjust(34), end="")
    for variant, settings in VARIANTS.items():
        for groups in (1, 64) if settings.get("loss_mean", "token") == "token" else (1,):
            label = f"{variant}, {groups} groups a step" if groups > 1 else variant
            print(f"\n{label:60s}", end="")
            for policy in stages.values():
                print("{:26.6f} {:7.4f}".format(*bias(settings, policy, size, groups)), end="", flush=True)
    print(f"\n\nThe policy has moved along the gradient since it sampled, groups of {clip_size}: cosine, norm ratio")
    behaviour = stages["middling"]
    for step in (0.02, 0.1, 0.3):
        moved = behaviour.moved(behaviour.gradient(behaviour.expected_reward()), step)
        ratios = (moved.logprobs() - behaviour.logprobs()).detach().exp()
        for variant, settings in CLIPS.items():
            label = f"token ratios {float(ratios.min()):.2f} to {float(ratios.max()):.2f}, {variant}"
            print("{:65s} {:10.6f} {:7.4f}".format(label, *clip_bias(settings, behaviour, step, clip_size)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
