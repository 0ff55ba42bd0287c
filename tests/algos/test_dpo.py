"""Preference losses on mined violations: by hand, as TRL has them, on texts that differ in the list alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from agents.llm.chat import Chat
from agents.llm.policy import Policy
from algos.batch import Batch
from algos.command import main as train
from algos.config import Optimization
from algos.distributed import Ranks
from algos.dpo import DPO, lists, negatives, preference
from algos.learner import Learner
from algos.pairs import Mining, Violation, mine, serve
from algos.ppr import PPR
from algos.training import Training
from algos.update import Updater
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.agents.llm.test_agent import puppet
from tests.algos import taste
from tests.algos.batches import random_transcript, tokens_of
from tests.algos.small import LETTERS, MINING, learner, settings
from tests.algos.test_agreement import score
from tests.algos.test_learner import lines, same_runs, stop_in_the_first_update

SMALL = DPO(groups=4, negatives=2, mining=MINING)


def preferences(sizes: Sequence[int], seed: int = 0) -> Batch:
    """Groups of one chosen text and some rejected ones, at any place among them."""
    rng = np.random.default_rng(seed)
    rewards = [0.0] * sum(sizes)
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        rewards[start + int(rng.integers(size))] = 1.0
    transcripts = [random_transcript(rng, turns=1) for _ in rewards]
    batch = Batch.of(transcripts, rewards, np.repeat(np.arange(len(sizes)), sizes).tolist())
    return replace(batch, reference=batch.old_logprobs + torch.from_numpy(rng.normal(size=batch.num_tokens)).float())


def by_definition(gain: Tensor, batch: Batch) -> Tensor:
    """S-DPO, arXiv:2406.09215, eq. 10, group by group."""
    costs = []
    for group in range(batch.num_groups):
        here = torch.nonzero(batch.group == group).flatten().tolist()
        chosen = next(text for text in here if batch.rewards[text] > 0)
        total = sum(torch.exp(gain[text] - gain[chosen]) for text in here if text != chosen)
        costs.append(-torch.log(torch.sigmoid(-torch.log(torch.as_tensor(total)))))
    return torch.stack(costs)


@given(
    st.lists(st.integers(2, 5), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.floats(0.01, 5),
    st.sampled_from((0.0, 1.0)),
)
@hypothesis_settings(deadline=None, max_examples=50)
def test_loss_and_gradient_are_those_of_the_definition(sizes: list[int], seed: int, beta: float, nll: float) -> None:
    batch = preferences(sizes, seed)
    assert batch.reference is not None
    logprobs = batch.old_logprobs.double().requires_grad_()
    gain = beta * batch.trajectory_sum(logprobs - batch.reference.double())
    expected = by_definition(gain, batch)
    likely = -(batch.trajectory_sum(logprobs) / batch.lengths)[batch.rewards > 0]
    (slopes,) = torch.autograd.grad(expected.mean() + nll * likely.mean(), logprobs)

    algorithm = DPO(beta=beta, negatives=4, nll=nll)
    credit = algorithm.credit(batch, {})
    assert float(credit.metrics["preference/loss"][0]) == pytest.approx(expected.sum().item(), rel=1e-5, abs=1e-5)
    assert float(credit.metrics["preference/nll"][0]) == pytest.approx(likely.sum().item(), rel=1e-5)
    assert float(credit.divisor.sum()) == len(sizes)
    fresh = batch.old_logprobs.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(batch.num_trajectories).chunk(3):  # any cut, even through a group
        tokens = tokens_of(batch, rows)
        part = algorithm.loss(batch.part(tokens, credit), fresh[tokens], None, torch.zeros(len(tokens))).total
        total = total + part
    (gradient,) = torch.autograd.grad(total / credit.divisor.sum(), fresh)
    assert torch.allclose(gradient, slopes, rtol=1e-5, atol=1e-6)


def test_one_rejected_text_by_hand() -> None:
    batch = preferences([2])
    chosen = batch.rewards > 0
    gain = torch.where(chosen, 0.7, 0.2).double()
    cost, slope, _ = preference(gain, batch)
    assert cost.tolist() == pytest.approx([np.log1p(np.exp(-0.5))])
    assert slope[chosen].tolist() == pytest.approx([-1 / (1 + np.exp(0.5))])
    assert slope[~chosen].tolist() == pytest.approx([1 / (1 + np.exp(0.5))])


def test_far_apart_texts_give_finite_losses() -> None:
    batch = preferences([3, 2])
    for gain in (1e4, -1e4):
        cost, slope, _ = preference(torch.where(batch.rewards > 0, gain, 0.0).double(), batch)
        assert torch.isfinite(cost).all()
        assert torch.isfinite(slope).all()


def test_each_group_has_one_chosen_text() -> None:
    batch = preferences([2, 2])
    for rewards in ([0.0] * 4, [1.0, 1.0, 1.0, 0.0]):
        other = replace(batch, rewards=torch.tensor(rewards, dtype=torch.float64))
        with pytest.raises(ValueError, match="one chosen text"):
            preference(torch.zeros(4, dtype=torch.float64), other)


@pytest.mark.slow
def test_the_same_loss_and_gradient_as_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own computation, on a trainer that is nothing but the names that it reads."""
    trl = pytest.importorskip("trl", reason="TRL is no dependency; pip install 'trl==1.16.*' compares with it")
    from trl import DPOTrainer
    from trl.trainer import dpo_trainer

    assert trl.__version__
    model, reference = tiny_model(), tiny_model(seed=7)
    batch = preferences([2, 2, 2])
    ours = replace(
        batch,
        old_logprobs=score(model, batch.transcripts)[0].detach(),
        reference=score(reference, batch.transcripts)[0].detach(),
    )
    algorithm = DPO(beta=0.3)
    credit = algorithm.credit(ours, {})
    logprobs = score(model, batch.transcripts)[0]
    loss = algorithm.loss(ours.part(torch.arange(ours.num_tokens), credit), logprobs, None, logprobs.detach())
    model.zero_grad()
    (loss.total / credit.divisor.sum()).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    order = [
        *torch.nonzero(batch.rewards > 0).flatten().tolist(),
        *torch.nonzero(batch.rewards == 0).flatten().tolist(),
    ]
    longest = max(len(transcript) for transcript in batch.transcripts)
    inputs = {name: torch.zeros(6, longest, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    inputs["completion_mask"] = torch.zeros(6, longest, dtype=torch.int64)
    for row, number in enumerate(order):
        transcript = batch.transcripts[number]
        inputs["input_ids"][row, : len(transcript)] = torch.from_numpy(transcript.ids.copy())
        inputs["attention_mask"][row, : len(transcript)] = 1
        inputs["completion_mask"][row, : len(transcript)] = torch.from_numpy(transcript.mask.astype(np.int64))

    def forward(of: Any) -> Any:
        def call(input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
            table = torch.log_softmax(of(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1], dim=-1)
            picked = table.gather(-1, input_ids[:, 1:, None])[..., 0] * (labels[:, 1:] != -100)
            zeros = torch.zeros_like(picked)
            return SimpleNamespace(log_probs=picked, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

        call.training = True  # type: ignore[attr-defined]
        return call

    class Metrics(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            self[name] = Metrics() if name == "train" else []
            return self[name]

    here = SimpleNamespace(
        model=forward(model),
        ref_model=forward(reference),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=0.3,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=Metrics(),
    )
    monkeypatch.setattr(dpo_trainer, "is_peft_model", lambda _: False)
    monkeypatch.setattr(dpo_trainer, "disable_gradient_checkpointing", lambda *_: torch.no_grad())
    theirs = DPOTrainer._compute_loss(here, here.model, inputs, False)
    model.zero_grad()
    theirs.backward()
    assert float(credit.metrics["preference/loss"][0]) / 3 == pytest.approx(theirs.item(), rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert largest > 1e-3
    for name, weight in model.named_parameters():
        assert torch.allclose(gradients[name], weight.grad, rtol=1e-4, atol=1e-5 * largest), name


# --- the texts ---------------------------------------------------------------------------------------------------


def test_lists_by_hand() -> None:
    found = Violation(0, 0, 9, (4, 5, 6, 9, 7))
    assert lists(found, [5]) == [(4, 9, 5, 6, 7), (4, 5, 6, 9, 7)]
    assert lists(found, [6, 5]) == [(4, 9, 5, 6, 7), (4, 5, 6, 9, 7), (4, 6, 5, 9, 7)]
    missed = Violation(0, 0, 9, (4, 5, 6))
    assert lists(missed, [6]) == [(4, 5, 9), (4, 5, 6)]
    assert lists(missed, [4]) == [(9, 4, 5), (4, 5, 6)]


@given(st.permutations(range(12)), st.integers(1, 10), st.integers(1, 4), st.data())
@hypothesis_settings(deadline=None)
def test_lists_differ_in_who_has_a_place(order: list[int], length: int, count: int, data: st.DataObject) -> None:
    ranking = tuple(order[:length])
    positive = data.draw(st.sampled_from([item for item in order if item != ranking[0]]))
    found = Violation(0, 0, positive, ranking)
    first = data.draw(st.integers(0, len(found.above) - 1))
    rejected = negatives(found, first, count, [0])
    assert rejected[0] == found.above[first]
    assert set(rejected) <= set(found.above)
    assert len(set(rejected)) == len(rejected) == min(count, len(found.above))
    best, own, *others = lists(found, rejected)
    place = min(ranking.index(item) for item in rejected)
    assert own == ranking
    assert best[place] == positive
    for one in (best, own, *others):
        assert len(set(one)) == len(one) == length
        assert one[:place] == ranking[:place]
        rest = [item for item in one if item != one[place]]
        assert rest == [item for item in ranking if item != one[place]][: len(rest)]
    assert sorted(one[place] for one in (own, *others)) == sorted(rejected)


def test_texts_are_the_mined_episodes_with_other_lists(tmp_path: Path) -> None:
    this = learner(settings(SMALL, tmp_path, steps=8, evaluate_every=0))
    found = mine(this.stage, MINING, 0)
    tokenizer, envs = this.policy.tokenizer, this.envs
    chat = Chat(tokenizer, envs.tool_schemas)
    calls = 0
    for step in range(3):
        batch = SMALL.rollout(step, this.stage).batch
        now = SMALL.mining.round(step, 8)
        served, chosen = serve(found, SMALL.mining, now, np.arange(step * 4, step * 4 + 4), 32, this.training.seed)
        for group in range(4):
            each = found[served[group]]
            texts = [batch.transcripts[row] for row in torch.nonzero(batch.group == group).flatten().tolist()]
            assert batch.rewards[batch.group == group].tolist() == [1.0] + [0.0] * (len(texts) - 1)
            heads = [text.ids[: text.prompt].tolist() for text in texts]
            assert all(head == heads[0] for head in heads)
            shown = tokenizer.decode(heads[0])
            for action in each.actions[:-1]:
                assert action in shown
            calls += shown.count("<observation>")
            envs.reset(seed=[each.seed] * envs.num_envs, options={"task": each.task})
            pool = envs.session(0).task.candidates.tolist()
            answers = []
            for text in texts:
                (turn,) = text.turns
                assert (turn.start, turn.end) == (text.prompt, len(text))
                said = re.fullmatch(r"<answer>\\boxed\{(\[.*\])\}</answer>", chat.text(text.ids[text.mask].tolist()))
                assert said is not None
                answers.append(tuple(pool[number - 1] for number in json.loads(said[1])))
            assert answers == lists(each, negatives(each, int(chosen[group]), 2, [0, 13, 0, each.task]))
        scores = this.policy.score(batch.transcripts)
        expected = np.concatenate([s[t.mask] for s, t in zip(scores, batch.transcripts, strict=True)])
        np.testing.assert_allclose(batch.old_logprobs.numpy(), expected, atol=1e-6)
    assert calls


def test_it_learns_from_the_pairs_of_ppr(tmp_path: Path) -> None:
    """The same seed and policy: the same violations, and the same item of each preferred less."""
    mining = replace(MINING, hardness="top")
    dpo = learner(settings(DPO(mining=mining), tmp_path / "dpo", steps=4))
    ppr = learner(settings(PPR(mining=mining), tmp_path / "ppr", steps=4))
    assert mine(dpo.stage, mining, 0) == mine(ppr.stage, mining, 0)
    assert (tmp_path / "dpo/mined/round-1.jsonl").read_bytes() == (tmp_path / "ppr/mined/round-1.jsonl").read_bytes()


def test_calls_that_end_otherwise_are_refused(tmp_path: Path) -> None:
    this = learner(settings(SMALL, tmp_path, evaluate_every=0))
    mine(this.stage, MINING, 0)
    path = tmp_path / "mined" / "round-1.jsonl"
    path.write_text(path.read_text().replace("[2, 1]", "[4, 5]").replace("[1, 3, 2]", "[4, 5]"))
    with pytest.raises(ValueError, match="end otherwise now"):
        SMALL.rollout(0, this.stage)


# --- runs --------------------------------------------------------------------------------------------------------


def updates(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if "preference/loss" in line]


def test_the_reference_is_the_policy_at_the_start_even_of_an_adapter(tmp_path: Path) -> None:
    from agents.llm.lora import LoRA

    tiny = tmp_path / "tiny"
    Policy(tiny_model(), tiny_tokenizer()).save_pretrained(tiny)
    policy = Policy.from_pretrained(tiny, lora=LoRA(2), device="cpu")
    with torch.no_grad():
        for name, weight in policy.trainable().items():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    policy.save_pretrained(tmp_path / "adapter")
    again = Policy.from_pretrained(tmp_path / "adapter", device="cpu")
    batch = preferences([2, 2])
    batch = replace(batch, old_logprobs=torch.from_numpy(np.concatenate(again.score(batch.transcripts))[_masks(batch)]))
    updater = Updater(again, DPO(groups=2), settings(DPO(groups=2), tmp_path / "run"), Ranks())
    tally = updater.update(replace(batch, reference=None), 2, 0)
    assert tally.means()["preference/loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert tally.means()["gradient_norm"] > 0


def _masks(batch: Batch) -> Any:
    return np.concatenate([transcript.mask for transcript in batch.transcripts])


def test_the_same_seed_gives_the_same_run_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    whole = settings(SMALL, tmp_path / "whole", steps=3, evaluate_tasks=4)
    learner(whole).train()
    cut = replace(whole, out=tmp_path / "cut", checkpoint_every=100)
    stop_in_the_first_update(cut)
    learner(replace(cut, resume=True, checkpoint_every=1)).train()
    same_runs(tmp_path / "whole", tmp_path / "cut")
    steps = updates(tmp_path / "whole")
    assert steps[0]["preference/loss"] == pytest.approx(np.log(1 + 2), rel=0.5)
    assert steps[0]["preference/chosen"] == pytest.approx(0, abs=1e-4)
    assert all(line["mismatch_kl"] < 1e-6 for line in steps)


def test_its_loss_falls_and_the_positive_rises(tmp_path: Path) -> None:
    algorithm = DPO(groups=16, negatives=2, beta=0.5, mining=replace(MINING, mine_tasks=24))
    optimization = Optimization(lr=1e-2, warmup=0, final_lr=1.0, weight_decay=0.0)
    run = learner(settings(algorithm, tmp_path, steps=20, evaluate_every=0, optimization=optimization))
    run.train()
    steps = updates(tmp_path)

    def at_the_end(name: str) -> float:
        return float(np.mean([line["preference/" + name] for line in steps[-5:]]))

    assert at_the_end("loss") < 0.5 * steps[0]["preference/loss"]
    assert at_the_end("right") > 0.8
    assert at_the_end("chosen") > at_the_end("rejected") + 1


def test_the_command_plans_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    puppet(LETTERS).save_pretrained(tmp_path / "model")
    chosen = [
        *("--device", "cpu", "--rows", "4", "--env.tools", "get_user_profile", "--max-turn-tokens", "8"),
        *("--model", str(tmp_path / "model"), "--out", str(tmp_path / "run"), "--groups", "2", "--negatives", "3"),
        *("--steps", "1", "--evaluate-every", "0", "--mine-tasks", "12", "--mine-temperature", "1", "--beta", "0.2"),
    ]
    train("dpo", [*chosen, "--dry-run"])
    assert "mined       12 of the training tasks, 1 time" in capsys.readouterr().out
    train("dpo", chosen)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["algorithm"]
    assert (config["beta"], config["negatives"], config["mining"]["mine_tasks"]) == (0.2, 3, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "groups is at least 1"),
        ({"negatives": 0}, "negatives is at least 1"),
        ({"beta": 0.0}, "beta"),
        ({"nll": -1.0}, "nll"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPO(**change)


@pytest.mark.slow
def test_a_small_policy_ranks_better(tmp_path: Path) -> None:
    training = Training(
        DPO(groups=32, nll=1.0, mining=Mining(mine_temperature=1.0)),
        tmp_path,
        steps=60,
        max_turn_tokens=24,
        max_episode_tokens=512,
        evaluate_every=60,
        threads=1,
        device="cpu",
        env=taste.ENVIRONMENT,
        optimization=Optimization(method="muon", lr=1e-2, matrix_lr=4e-2, warmup=0, final_lr=0.2, weight_decay=0.0),
    )
    run = Learner(training, taste.start(), taste.taste())
    run.train()
    assert run.history[60] > run.history[0] + 0.1
    assert np.mean([line["preference/right"] for line in updates(tmp_path)[-5:]]) > 0.75
