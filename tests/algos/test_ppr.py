"""Questions about mined pairs: balanced, of the right items, paid for the right letter; the bound; runs that resume."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations
from math import comb, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from agentrec_env.types import Episode
from agents.play import play
from algos.batch import Batch
from algos.command import main as train
from algos.config import Optimization
from algos.learner import Learner
from algos.pairs import Mining, Round, Violation
from algos.ppr import PPR
from algos.questions import Question
from algos.training import Training
from tests.agents.llm.test_agent import puppet
from tests.algos import taste
from tests.algos.small import LETTERS, MINING, learner, settings
from tests.algos.test_learner import lines, same_runs, small_run, steps_of, stop_in_the_first_update
from tests.algos.test_pairs import violations

SMALL = PPR(groups=4, group_size=4, mining=MINING)
NOW = Round(0, 0, 12)


def questions(algorithm: PPR, found: list[Violation], steps: int = 12, seed: int = 0) -> list[Question]:
    """All that a round asks."""
    asked = []
    for step in range(steps):
        requests = algorithm.requests(step, Round(0, 0, steps), found, 50, seed)
        assert len(requests.questions) == len(requests.tasks) == len(requests.seeds) == algorithm.groups
        asked += [question for question in requests.questions if question is not None]
    return asked


def test_the_defaults_are_the_papers() -> None:
    algorithm = PPR()
    assert (algorithm.group_size, algorithm.baseline, algorithm.std, algorithm.drop) == (8, "mean", False, "negative")
    assert (algorithm.directions, algorithm.objective, algorithm.lists) == ("both", "reward", 0.0)
    assert algorithm.mining == Mining(rounds=1, hardness="random", mine_tasks=0, mined=None)


@given(st.integers(1, 9), st.sampled_from(("both", "more", "less")), st.integers(1, 9), st.integers(0, 99))
@hypothesis_settings(deadline=None)
def test_letters_are_balanced_in_each_direction(groups: int, directions: Any, count: int, seed: int) -> None:
    asked = questions(PPR(groups=groups, directions=directions), violations(count), seed=seed)
    for direction in ("more", "less"):
        letters = [question.letter for question in asked if question.direction == direction]
        assert bool(letters) == (directions in ("both", direction))
        assert all(one != other for one, other in pairwise(letters))
    if directions == "both":
        for more, less in zip(asked[::2], asked[1::2], strict=False):
            assert (more.direction, less.direction) == ("more", "less")
            assert (more.negative, more.letter) == (less.negative, less.letter)
            assert more.right != less.right


def test_requests_name_the_mined_pairs_and_lists_beside_them() -> None:
    found = violations(7)
    algorithm = PPR(groups=8, lists=0.25)
    for step in range(12):
        requests = algorithm.requests(step, NOW, found, 50, 3)
        assert [question is None for question in requests.questions] == [True] * 2 + [False] * 6
        for task, question in zip(requests.tasks.tolist()[2:], requests.questions[2:], strict=True):
            assert question is not None
            assert question.negative in found[task].above
        again = algorithm.requests(step, NOW, found, 50, 3)
        assert requests.seeds.tolist() == again.seeds.tolist()
        assert requests.questions == again.questions
    pairs = Counter(
        task for step in range(7) for task in algorithm.requests(step, NOW, found, 50, 3).tasks[2:].tolist()
    )
    assert set(pairs.values()) == {6}
    asked = [algorithm.requests(0, NOW, found, 50, seed).questions for seed in range(4)]
    assert len(set(asked)) == 4


def test_questions_are_asked_as_they_say_and_paid_for_the_right_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes: list[Episode] = []

    def play_and_tell(*arguments: Any) -> list[Episode]:
        episodes[:] = play(*arguments)
        return list(episodes)

    monkeypatch.setattr("algos.rollout.play", play_and_tell)
    this = learner(settings(SMALL, tmp_path, steps=12, evaluate_every=0))
    items = this.envs.world.dataset.items
    seen: Counter[tuple[str, bool]] = Counter()
    for step in range(4):
        rollout = SMALL.rollout(step, this.stage)
        assert rollout.batch.pair is not None
        assert rollout.batch.pair.all()
        requests = SMALL.requests(step, NOW, _mined(this), this.envs.num_tasks, 0)
        for number, episode in enumerate(episodes):
            question = requests.questions[number // 4]
            assert question is not None
            target = this.envs.world.task("train", int(requests.tasks[number // 4])).target
            pool = [target, question.negative] if question.letter == "A" else [question.negative, target]
            assert episode.candidates == tuple(pool)
            assert f"is this user {question.direction.upper()} likely" in episode.prompt
            for letter, item in zip("AB", pool, strict=True):
                assert f"\n{letter}. {_name(items.titles[item])}" in episode.prompt
            said = episode.turns[-1].action.removeprefix("<answer>").removesuffix("</answer>")
            if said in ("A", "B"):
                wanted = target if question.direction == "more" else question.negative
                assert episode.reward == float(pool["AB".index(said)] == wanted)
            else:
                assert episode.reward == -1.0
            seen[question.direction, episode.reward == 1] += 1
        figures = rollout.figures.means()
        share = np.mean([episode.reward == 1 for episode in episodes])
        assert figures["pair/right"] == pytest.approx(share)
        assert (figures["pair/more"] + figures["pair/less"]) / 2 == pytest.approx(share)
        assert "ndcg@10" not in figures
    assert len(seen) == 4


def _mined(this: Learner) -> tuple[Violation, ...]:
    from algos.pairs import mine

    return mine(this.stage, MINING, 0)


def _name(title: str | None) -> str:
    return "unknown title" if title is None else title[:20]


# --- the objective -----------------------------------------------------------------------------------------------


def right_probability(scores: Tensor, positive: int, question: Question) -> Tensor:
    """Of a policy that says A with the logistic of A's score less B's; the reverse where the less likely is asked."""
    first, second = (positive, question.negative) if question.letter == "A" else (question.negative, positive)
    difference = scores[first] - scores[second]
    says_a = torch.sigmoid(difference if question.direction == "more" else -difference)
    return says_a if question.right == "A" else 1 - says_a


def every_pair(items: int) -> list[tuple[int, list[Question]]]:
    """The positive and the two questions of each ordered pair of items, as PPR asks them."""
    pairs = list(permutations(range(items), 2))
    found = [Violation(number, 0, positive, (negative,)) for number, (positive, negative) in enumerate(pairs)]
    algorithm = PPR(groups=2 * len(pairs))
    requests = algorithm.requests(0, Round(0, 0, 1), found, len(pairs), 0)
    asked: dict[int, list[Question]] = {}
    for task, question in zip(requests.tasks.tolist(), requests.questions, strict=True):
        assert question is not None
        asked.setdefault(task, []).append(question)
    return [(pairs[task][0], both) for task, both in asked.items()]


@pytest.mark.parametrize("seed", range(3))
def test_the_likelihood_of_all_pairs_is_a_convex_bound_on_the_wrong_ones(seed: int) -> None:
    items = 6
    scores = 2 * torch.randn(items, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    pairs = every_pair(items)
    assert len(pairs) == items * (items - 1)
    for positive, asked in pairs:
        delta = float(scores[positive] - scores[asked[0].negative])
        cost = -sum(float(right_probability(scores, positive, question).log()) for question in asked)
        wrong = float(delta < 0)
        assert cost == pytest.approx(2 * np.log1p(np.exp(-delta)))
        assert cost >= 2 * log(2) * wrong
        missed = sum(1 - float(right_probability(scores, positive, question)) for question in asked)
        assert missed == pytest.approx(2 / (1 + np.exp(delta)))
        assert missed >= wrong

    def total(s: Tensor, form: str) -> Tensor:
        chances = torch.stack([right_probability(s, positive, q) for positive, asked in pairs[::3] for q in asked])
        return -chances.log().sum() if form == "likelihood" else (1 - chances).sum()

    for where in (scores, 3 * scores, torch.zeros(items, dtype=torch.float64)):
        curvature = torch.autograd.functional.hessian(lambda s: total(s, "likelihood"), where)
        assert torch.linalg.eigvalsh(curvature).min() > -1e-9
    bent = torch.autograd.functional.hessian(lambda s: total(s, "reward"), scores)
    assert torch.linalg.eigvalsh(bent).min() < -1e-3


def expected_slope(algorithm: PPR, chance: float) -> float:
    """d/dP of what a step follows where a question is answered right with chance P, over all groups of size G."""
    size = algorithm.group_size
    slope = 0.0
    for right in range(size + 1):
        rewards = torch.tensor([1.0] * right + [0.0] * (size - right), dtype=torch.float64)
        tokens = torch.arange(size)
        p = torch.tensor(chance, dtype=torch.float64, requires_grad=True)
        logprobs = torch.where(rewards > 0, p.log(), (1 - p).log())
        batch = Batch(
            rewards=rewards,
            group=torch.zeros(size, dtype=torch.int64),
            row=tokens,
            position=torch.ones(size, dtype=torch.int64),
            turn=torch.zeros(size, dtype=torch.int64),
            old_logprobs=logprobs.detach(),
            pair=torch.ones(size, dtype=torch.bool),
        )
        credit = algorithm.credit(batch, {})
        loss = algorithm.loss(batch.part(tokens, credit), logprobs, None, torch.zeros(size)).total
        (gradient,) = torch.autograd.grad(loss / credit.divisor.sum(), p)
        slope -= comb(size, right) * chance**right * (1 - chance) ** (size - right) * float(gradient)
    return slope


@pytest.mark.parametrize("chance", [0.03, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_what_each_objective_follows_in_expectation(size: int, chance: float) -> None:
    exact = {"loss_mean": "constant", "constant": 1.0, "drop": "none"}
    reward = PPR(group_size=size, **exact)
    assert expected_slope(reward, chance) == pytest.approx((size - 1) / size)
    likelihood = replace(reward, objective="likelihood")
    assert expected_slope(likelihood, chance) == pytest.approx((1 - (1 - chance) ** (size - 1)) / chance)
    # log P = -sum (1 - P)^k / k, cut after G - 1 terms.
    p = torch.tensor(chance, dtype=torch.float64, requires_grad=True)
    series = -torch.stack([(1 - p) ** k / k for k in range(1, size)]).sum()
    assert expected_slope(likelihood, chance) == pytest.approx(float(torch.autograd.grad(series, p)[0]))


def test_the_likelihood_comes_to_that_of_the_paper_in_large_groups() -> None:
    algorithm = PPR(group_size=64, objective="likelihood", loss_mean="constant", constant=1.0, drop="none")
    assert expected_slope(algorithm, 0.2) == pytest.approx(1 / 0.2, rel=1e-5)


def test_lists_keep_their_rewards_beside_the_likelihood_of_pairs() -> None:
    rewards = torch.tensor([1.0, 0.0, -1.0, 1.0, 0.5, -0.5, 0.0, 0.0], dtype=torch.float64)
    tokens = torch.arange(8)
    batch = Batch(
        rewards=rewards,
        group=torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]),
        row=tokens,
        position=tokens,
        turn=torch.zeros(8, dtype=torch.int64),
        old_logprobs=torch.zeros(8),
        pair=torch.tensor([True] * 4 + [False] * 2 + [True] * 2),
    )
    credit = PPR(objective="likelihood").credit(batch, {})
    assert credit.advantages.tolist() == [1.0, -1.0, -1.0, 1.0, 0.5, -0.5, 0.0, 0.0]
    assert float(credit.metrics["reward"][0]) == pytest.approx(1.0)
    assert PPR().credit(batch, {}).advantages.tolist() == [0.75, -0.25, -1.25, 0.75, 0.5, -0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lists": 1.0}, "lists is a share"),
        ({"lists": -0.1}, "lists is a share"),
        ({"groups": 2, "lists": 0.9}, "leaves none of 2 groups for pairs"),
        ({"objective": "likelihood", "std": True}, "std divides away"),
        ({"objective": "log"}, "objective is one of 'reward', 'likelihood'"),
        ({"directions": "up"}, "directions is one of 'both', 'more', 'less'"),
        ({"group_size": 1}, "group_size is at least 2"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPR(**change)


# --- runs --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    algorithm = replace(SMALL, lists=0.25, mining=replace(MINING, rounds=2))
    whole = settings(algorithm, tmp_path / "whole", steps=3, evaluate_tasks=4)
    learner(whole).train()
    cut = replace(whole, out=tmp_path / "cut", checkpoint_every=100)
    stop_in_the_first_update(cut)
    learner(replace(cut, resume=True, checkpoint_every=1)).train()
    same_runs(tmp_path / "whole", tmp_path / "cut")
    first, second = ((tmp_path / "whole" / "mined" / f"round-{n}.jsonl").read_bytes() for n in (1, 2))
    for number, content in ((1, first), (2, second)):
        assert (tmp_path / "cut" / "mined" / f"round-{number}.jsonl").read_bytes() == content
    assert first.split(b"\n")[1:] != second.split(b"\n")[1:]
    for line in steps_of(tmp_path / "whole"):
        assert {"ndcg@10", "pair/right", "pair/more", "pair/less", "pair/says_a", "pair/passes"} <= line.keys()
        assert line["mismatch_kl"] < 1e-6
    found = first.count(b'"list"')
    assert steps_of(tmp_path / "whole")[0]["pair/passes"] == pytest.approx(3 / (2 * found))
    assert "valid/ndcg@10" in lines(tmp_path / "whole")[0]


def test_the_command_plans_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    puppet(LETTERS).save_pretrained(tmp_path / "model")
    chosen = [
        *("--device", "cpu", "--rows", "4", "--env.tools", "get_user_profile", "--max-turn-tokens", "8"),
        *("--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), "--groups", "2", "--group-size", "2"),
        *("--steps", "1", "--evaluate-every", "0", "--mine-tasks", "12", "--mine-temperature", "1", "--rounds", "1"),
        *("--hardness", "margin", "--directions", "more", "--objective", "likelihood", "--lr", "0.001"),
    ]
    train("ppr", [*chosen, "--dry-run"])
    told = capsys.readouterr().out
    assert "2 tasks x 2: 4 episodes, 1 updates" in told
    assert "mined       12 of the training tasks, 1 time" in told
    assert not (tmp_path / "run").exists()
    train("ppr", chosen)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["algorithm"]
    assert (config["objective"], config["mining"]["hardness"]) == ("likelihood", "margin")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train("ppr", [*chosen, "--resume"])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_two_processes_mine_what_one_mines(tmp_path: Path) -> None:
    from tests.algos.test_distributed import ranks

    chosen: dict[str, Any] = {"steps": 2, "evaluate_every": 0, "algorithm": "ppr"}
    ranks("tests.algos.small", json.dumps(chosen | {"out": str(tmp_path / "two")}))
    small_run(**chosen, out=str(tmp_path / "one"))
    one, two = (tmp_path / name / "mined" / "round-1.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    for here, there in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert here.keys() == there.keys()
        np.testing.assert_allclose(list(here.values()), list(there.values()), rtol=1e-3, atol=1e-4)


def test_a_puppet_learns_to_answer_with_letters(tmp_path: Path) -> None:
    """It cannot see the items: half of its answers are right when all of them are letters."""
    algorithm = PPR(groups=8, group_size=8, drop="none", mining=MINING)
    optimization = Optimization(lr=4e-3, warmup=0, final_lr=1.0, weight_decay=0.0)
    training = settings(algorithm, tmp_path, steps=8, rows=64, evaluate_every=0, optimization=optimization)
    learner(training).train()
    steps = steps_of(tmp_path)
    assert steps[0]["invalid"] > 0.4 > 0.2 > steps[-1]["invalid"]
    assert np.mean([line["pair/right"] for line in steps[-3:]]) > steps[0]["pair/right"] + 0.12


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["reward", "likelihood"])
def test_a_small_policy_learns_which_of_two_is_likelier(tmp_path: Path, objective: Any) -> None:
    """At first it errs as often as the clerk whom it imitates; of all pairs, 94 of 100 can be told by the titles."""
    training = Training(
        PPR(groups=16, directions="more", objective=objective),
        tmp_path,
        steps=16,
        max_turn_tokens=24,
        max_episode_tokens=512,
        evaluate_every=0,
        threads=1,
        device="cpu",
        env=taste.ENVIRONMENT,
        optimization=Optimization(lr=3e-3, warmup=0, final_lr=0.2, weight_decay=0.0),
    )
    Learner(training, taste.start(), taste.taste()).train()
    right = [line["pair/right"] for line in steps_of(tmp_path)]
    assert np.mean(right[:2]) < 0.7
    assert np.mean(right[-4:]) > 0.8
