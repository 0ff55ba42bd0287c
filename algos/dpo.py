r"""Direct preference optimisation on mined violations: the baseline that PPR is compared with.

    figures = Learner(Training(DPO(negatives=3), model="runs/stage1/best", steps=100)).train()
    python -m algos.dpo --out runs/dpo --model runs/stage1/best --steps 100

With g(y) = beta * log(policy(y) / reference(y)), one text y+ preferred over y1 ... yk after the same words costs
-log sigmoid(-log sum_j exp(g(yj) - g(y+))): with one rejected text DPO (Rafailov et al., arXiv:2305.18290, eq. 7), with
several S-DPO (Chen et al., arXiv:2406.09215, eq. 10), made for recommenders. The reference is the policy as it was at
the start.

**What is preferred over what.** The list-wise prompt, the policy's own calls and their observations stand first, and
two answers follow: its list as it was, and the same list with the positive put where the violating item stood, which
moves down with all below it. That is the baseline that a recommender researcher would want. It is the very task that
is judged, as S-DPO prefers the positive to negatives in the answer to its ordinary prompt; it has the evidence that the
policy asked for; and the pairs are those of PPR: for one seed and model the same lists are mined, and the same items
chosen. To prefer the right letter of PPR's questions would lend it PPR's own idea, and compare two losses rather than
two methods. Of k rejected lists each puts another violating item in that same place. Both answers are written by
`agentrec_env.actions.render`, the policy's last thought before them, so that they differ in their numbers alone; what
comes before them has no gradient, as it would cancel.

**What to look at.** The loss asks for a difference alone, and it may grow while both lists become less likely, until
the policy answers nothing valid (`preference/chosen` falls and `valid/answered` follows: on the world of
tests/algos/taste.py within 20 steps at any lr that learns). `nll` holds against it. And where greedy lists are all
alike, to reject them is a habit and not a preference: mine with `mine_temperature` 1 then.

A loss of pairs is not a sum over trajectories, but its gradient is: with u = log sum_j exp(g(yj) - g(y+)), that of
beta * sigmoid(u) * (sum_j softmax(g)_j log policy(yj) - log policy(y+)). So chosen and rejected texts are trajectories
of a group, their coefficients are credit, and micro-batches and ranks may part them. It is exact because each batch
makes one optimizer step, at the policy that the coefficients were computed with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn.functional import softplus

from agentrec_env.actions import render
from agentrec_env.types import Episode, Ranking
from agents.llm.chat import Chat
from agents.llm.transcript import Transcript
from agents.play import play
from agents.protocol import Observation
from algos import losses
from algos.advantages import group_sum
from algos.algorithm import Total, alone
from algos.batch import Batch, Credit, Loss, Part, mean_metric
from algos.demonstrations import Scribe
from algos.pairs import Mining, Violation, mine, serve
from algos.rollout import Rollout
from algos.stage import Stage

_ANSWER = re.compile(r"<answer>|\\boxed")


@dataclass(frozen=True)
class DPO:
    """DPO and S-DPO on mined violations: the baseline that PPR is compared with. An `algos.algorithm.Algorithm`.

    Raises:
        ValueError: A setting outside its range.
    """

    groups: int = 64
    """Violations a step."""
    negatives: int = 1
    """Rejected lists a violation, at most as many as there are items above the positive; more than one: S-DPO."""
    beta: float = 0.1
    """How far the policy may go from the reference: a nat of difference counts so much."""
    nll: float = 0.0
    """Weight of the chosen list's mean negative log-likelihood beside the preference (Pang et al., arXiv:2404.19733);
    above 0 it keeps the chosen list from becoming less likely along with the rejected ones."""
    mining: tyro.conf.OmitArgPrefixes[Mining] = field(default_factory=Mining)

    def __post_init__(self) -> None:
        for name in ("groups", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        if not self.beta > 0:
            raise ValueError(f"beta is positive; got {self.beta}")
        if not self.nll >= 0:
            raise ValueError(f"nll is not negative; got {self.nll}")

    @property
    def group_size(self) -> int:
        """Texts of a violation, at most."""
        return 1 + self.negatives

    @property
    def epochs(self) -> int:
        """One: coefficients are those of the policy that is updated."""
        return 1

    @property
    def minibatches(self) -> int:
        """One, likewise."""
        return 1

    @property
    def uses_reference(self) -> bool:
        """Whether a batch must hold the reference's log-probabilities."""
        return True

    @property
    def uses_values(self) -> bool:
        """There is no value head."""
        return False

    @property
    def uses_entropy(self) -> bool:
        """Entropy is reported and has no gradient."""
        return False

    def rollout(self, step: int, stage: Stage) -> Rollout:
        """Chosen and rejected lists after the policy's calls, which are made again; before the first of a round, the
        policy is mined.

        Raises:
            ValueError: Calls that end in another list than when they were mined.
        """
        now = self.mining.round(step, stage.steps)
        found = mine(stage, self.mining, now.number)
        places = (step - now.begin) * self.groups + np.arange(self.groups)
        served, chosen = serve(found, self.mining, now, places, (now.end - now.begin) * self.groups, stage.seed)
        own = range(stage.ranks.rank, self.groups, stage.ranks.size)
        episodes = replay(stage, [found[served[group]] for group in own])
        write = _writer(stage)
        texts, rewards, groups = [], [], []
        for group, episode in zip(own, episodes, strict=True):
            each = found[served[group]]
            rejected = negatives(each, int(chosen[group]), self.negatives, [stage.seed, 13, now.number, each.task])
            here = [write(episode, items) for items in lists(each, rejected)]
            texts += here
            rewards += [1.0] + [0.0] * (len(here) - 1)
            groups += [group] * len(here)
        training = stage.training
        scores = stage.together(lambda: stage.policy.score(texts, training.micro_tokens, training.temperature))
        scored = [replace(text, logprobs=logprobs) for text, logprobs in zip(texts, scores, strict=True)]
        rollout = Rollout(Batch.of(scored, rewards, groups, stage.policy.device), self.groups)
        rollout.figures.add("pair/passes", (step + 1 - now.begin) * self.groups / len(found))
        return rollout

    def start(self) -> Mapping[str, float]:
        """Nothing lives from one batch to the next."""
        return {}

    def credit(self, batch: Batch, memory: Mapping[str, float], total: Total = alone) -> Credit:
        """The gradient of the loss by each text's log-probability; rewards tell the chosen text, 1, from the others."""
        reference = losses.given(batch.reference, "reference")
        gain = self.beta * batch.trajectory_sum(batch.old_logprobs.double() - reference.double())
        cost, slope, chosen = preference(gain, batch)
        likelihood = batch.trajectory_sum(batch.old_logprobs)[chosen] / batch.lengths[chosen]
        right = cost < np.log(2)
        return Credit(
            advantages=(self.nll * chosen / batch.lengths.clamp(min=1) - self.beta * slope)[batch.row],
            weights=torch.ones_like(batch.row, dtype=torch.float64),
            divisor=chosen.double(),
            train=torch.ones_like(chosen),
            metrics={
                "preference/loss": mean_metric(cost),
                "preference/right": mean_metric(right),
                "preference/nll": mean_metric(-likelihood),
                "preference/chosen": mean_metric(gain[chosen] / self.beta),
                "preference/rejected": mean_metric(gain[~chosen] / self.beta),
            },
        )

    def loss(self, part: Part, logprobs: Tensor, values: Tensor | None, entropy: Tensor) -> Loss:
        """What has the loss's gradient; its value says nothing (see `preference/loss`)."""
        loss = -(part.advantages.to(logprobs.dtype) * logprobs).sum()
        return Loss(loss, {"entropy": mean_metric(entropy)})


def preference(gain: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each group, softplus(log sum_j exp(gain_j - gain of the chosen)), and its gradient.

    Args:
        gain: float64 [B]: beta * log(policy / reference) of each text.
        batch: Whose groups they are; the chosen text of a group, and no other, has a positive reward.

    Returns:
        float64 [P], losses of the P groups that there are; float64 [B], gradient of their sum by `gain`; and
        bool [B], chosen texts.

    Raises:
        ValueError: A group without exactly one chosen text.
    """
    chosen = batch.rewards > 0
    count = group_sum(chosen.double(), batch)
    there = group_sum(torch.ones_like(gain), batch) > 0
    if bool((count[there] != 1).any()):
        raise ValueError("each group has one chosen text, whose reward is positive, and rejected ones beside it")
    best = group_sum(torch.where(chosen, gain, 0.0), batch)
    excess = torch.where(chosen, -torch.inf, gain - best[batch.group])
    most = torch.full_like(best, -torch.inf).scatter_reduce(0, batch.group, excess, "amax")
    share = (excess - most[batch.group]).exp()
    sums = group_sum(share, batch)
    over = most + sums.log()
    pull = torch.sigmoid(over)[batch.group]
    slope = torch.where(chosen, -pull, pull * share / sums[batch.group])
    return softplus(over[there]), slope, chosen


def negatives(found: Violation, first: int, count: int, key: Sequence[int]) -> list[int]:
    """Items above the positive: that at place `first`, and others, drawn at random, up to `count` in all."""
    others = np.random.default_rng(key).permutation(np.delete(found.above, first))
    return [found.above[first], *others[: count - 1].tolist()]


def lists(found: Violation, items: Sequence[int]) -> list[tuple[int, ...]]:
    """Lists that differ in who stands in the place of the first of `items`: the positive, and then each of `items`.

    All else keeps its order, so the second is the list as it was.

    Args:
        found: Whose list.
        items: Some of those above the positive.
    """
    place = min(found.ranking.index(item) for item in items)

    def put(item: int) -> tuple[int, ...]:
        rest = [other for other in found.ranking if other != item]
        return (*rest[:place], item, *rest[place:])[: len(found.ranking)]

    return [put(item) for item in (found.positive, *sorted(items, key=found.ranking.index))]


def replay(stage: Stage, found: Sequence[Violation]) -> list[Episode]:
    """The episodes that violations were found in.

    Raises:
        ValueError: One that ends in another list now.
    """
    actions = _Actions([each.actions for each in found])
    tasks = [each.task for each in found]
    episodes = stage.together(lambda: play(stage.envs, actions, tasks, 0, stage.check, [each.seed for each in found]))
    for each, episode in zip(found, episodes, strict=True):
        if episode.ranking != each.ranking or episode.target != each.positive:
            raise ValueError(
                f"the calls mined in task {each.task} end otherwise now ({episode.error or episode.stop}): tools or "
                "budgets of the environment have changed; mine anew in another --out"
            )
    return episodes


class _Actions:
    """A streaming agent that says again what was said before."""

    def __init__(self, actions: Sequence[Sequence[str]]) -> None:
        self._actions = actions
        self._ready: dict[int, str] = {}

    def reset(self, num_envs: int, seed: int) -> None:
        self._ready = {}

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        raise NotImplementedError("episodes have no numbers here; use send and recv")

    def send(self, observations: Sequence[Observation], rows: Sequence[int], episodes: Sequence[int]) -> None:
        for observation, row, episode in zip(observations, rows, episodes, strict=True):
            self._ready[row] = self._actions[episode][int(observation["turn"])]

    def recv(self) -> tuple[list[str | Exception], list[int]]:
        ready, self._ready = self._ready, {}
        return list(ready.values()), list(ready)


def answer(scribe: Scribe, episode: Episode, ranking: Ranking) -> Transcript:
    """The episode with another list at its end, which alone is taken for sampled."""
    last = episode.turns[-1]
    found = _ANSWER.search(last.action, last.action.rfind("</think>") + 1)
    before = last.action[: found.start() if found else None]
    turns = (*episode.turns[:-1], replace(last, action=before + render(ranking)))
    whole = scribe.transcript(replace(episode, turns=turns))
    turn = whole.turns[-1]
    return replace(whole, mask=np.arange(len(whole)) >= turn.start, prompt=turn.start, turns=(turn,))


def _writer(stage: Stage) -> Callable[[Episode, Sequence[int]], Transcript]:
    """Writes an episode with a list of items as its answer."""
    rules, tokenizer = stage.envs.scenario.rules, stage.policy.tokenizer
    scribe = Scribe(tokenizer, Chat(tokenizer, stage.envs.tool_schemas if rules.max_calls else []), rules.text)
    ids = stage.envs.world.dataset.items.ids

    def write(episode: Episode, items: Sequence[int]) -> Transcript:
        if not episode.candidates:
            return answer(scribe, episode, Ranking(tuple(ids[item] for item in items)))
        return answer(scribe, episode, Ranking(tuple(episode.candidates.index(item) + 1 for item in items)))

    return write


if __name__ == "__main__":
    from algos.command import main

    raise SystemExit(main("dpo", prog="python -m algos.dpo"))
