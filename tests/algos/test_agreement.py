"""On a real language model: the same loss and gradient as TRL's where the algorithms are the same, and no gradient at
any token that was not sampled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.llm.packing import packs
from agents.llm.policy import Policy
from agents.llm.transcript import Transcript
from algos.algorithm import Algorithm
from algos.batch import Batch
from algos.listwise_grpo import ListwiseGRPO
from algos.ppo import PPO
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.algos.batches import on, random_batch, random_transcript, scores

LONGEST = 64
"""`max_completion_length` of the trainer, by which it divides for `dr_grpo`."""


def score(model: PreTrainedModel, transcripts: Sequence[Transcript]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probability and entropy of each sampled token, float [N], and logits [T, V] of each transcript."""
    logprobs, entropies, logits = [], [], []
    for transcript in transcripts:
        ids = torch.from_numpy(transcript.ids.copy())
        here = model(ids[None]).logits[0]
        if here.requires_grad:
            here.retain_grad()
        places = torch.from_numpy(np.flatnonzero(transcript.mask))
        table = torch.log_softmax(here, dim=-1)[places - 1]
        logprobs.append(table[torch.arange(len(places)), ids[places]])
        entropies.append(-(table.exp() * table).sum(-1))
        logits.append(here)
    return torch.cat(logprobs), torch.cat(entropies), logits


def rollouts(model: PreTrainedModel, drift: float) -> Batch:
    """Two groups of 3; `drift` is how far, in nats, the policy that sampled and the reference are from the model."""
    rng = np.random.default_rng(5)
    transcripts = [random_transcript(rng, turns=1 + row % 3) for row in range(6)]
    with torch.no_grad():
        logprobs = score(model, transcripts)[0]
    noise = torch.from_numpy(rng.normal(size=(3, len(logprobs)))).float()
    batch = Batch.of(transcripts, [1.1, 0.5, -0.5, 0.431, -1.0, 0.0], [0, 0, 0, 1, 1, 1])
    return Batch(
        rewards=batch.rewards,
        group=batch.group,
        row=batch.row,
        position=batch.position,
        turn=batch.turn,
        old_logprobs=logprobs + drift * noise[0],
        reference=logprobs + drift * noise[1],
        values=noise[2],
        transcripts=batch.transcripts,
    )


def ours(
    algorithm: Algorithm, model: PreTrainedModel, batch: Batch
) -> tuple[float, dict[str, Tensor], list[Tensor], Mapping[str, Tensor]]:
    """Loss, gradient of each parameter, gradient of the logits of each transcript, and metrics."""
    credit = algorithm.credit(batch, algorithm.start())
    logprobs, entropy, logits = score(model, batch.transcripts)
    values = None if batch.values is None else batch.values.clone().requires_grad_()
    loss = algorithm.loss(batch.part(torch.arange(batch.num_tokens), credit), logprobs, values, entropy)
    model.zero_grad()
    scaled = loss.total / credit.divisor.sum()
    scaled.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return scaled.item(), gradients, [x.grad for x in logits], loss.metrics


@pytest.mark.parametrize(
    "algorithm",
    [
        ListwiseGRPO(),
        ListwiseGRPO(ratio="sequence", clip_low=0.03, clip_high=0.04, loss_mean="sequence", kl="loss"),
        ListwiseGRPO(kl="reward", std=True, loss_mean="constant", clip_low=None, clip_high=None),
        PPO(entropy_coef=0.01),
        PPO(gae="turn", kl_coef=0.1),
    ],
)
def test_prompt_and_observation_tokens_have_no_gradient(algorithm: Algorithm) -> None:
    """The logits after token t predict token t + 1: those that predict a token that was shown have gradient 0."""
    model = tiny_model()
    batch = rollouts(model, 0.1)
    _, _, gradients, _ = ours(algorithm, model, batch)
    for transcript, gradient in zip(batch.transcripts, gradients, strict=True):
        predicts_sampled = np.append(transcript.mask[1:], False)
        assert not predicts_sampled.all()
        assert (gradient[~predicts_sampled] == 0).all()
        assert (gradient[predicts_sampled].abs().sum(-1) > 0).any()


WAYS = [
    ListwiseGRPO(),
    ListwiseGRPO(ratio="sequence", clip_low=0.03, clip_high=0.04, loss_mean="sequence", kl="loss", kl_coef=0.1),
    PPO(entropy_coef=0.01, kl_coef=0.1),
]


@pytest.mark.parametrize("algorithm", WAYS)
def test_packs_of_a_policy_give_the_gradient_of_whole_transcripts(algorithm: Algorithm) -> None:
    """The seam to the policy: packs hold some transcripts each, in an order of their own."""
    model = tiny_model()
    batch = rollouts(model, 0.1)
    _, expected, _, _ = ours(algorithm, model, batch)
    policy = Policy(deepcopy(model), tiny_tokenizer(), value_head=algorithm.uses_values)
    credit = algorithm.credit(batch, algorithm.start())
    pieces = packs(batch.transcripts, max_tokens=20)
    assert len(pieces) > 2
    for pack in pieces:
        scores = policy(pack, entropy_gradient=algorithm.uses_entropy)
        part = batch.part(batch.locate(pack.index), credit)
        loss = algorithm.loss(part, scores.logprobs, scores.values, scores.entropy)
        (loss.total / credit.divisor.sum()).backward()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in policy.core.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-3, atol=1e-4 * largest), name


def test_the_error_of_values_reaches_head_and_backbone() -> None:
    """Against whole transcripts, a linear layer on the last hidden states and half the squared error."""
    model, algorithm = tiny_model(), PPO(value_coef=0.5, value_clip=None)
    batch = rollouts(model, 0.1)
    credit = algorithm.credit(batch, {})
    credit = replace(credit, advantages=torch.zeros_like(credit.advantages))  # the value's error alone
    policy = Policy(deepcopy(model), tiny_tokenizer(), value_head=True)
    head = policy.value_head
    assert head is not None
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, head.in_features))
        head.bias.fill_(0.3)
    weight, bias = (part.detach().clone().requires_grad_() for part in (head.weight, head.bias))
    for pack in packs(batch.transcripts, max_tokens=20):
        scores = policy(pack)
        part = batch.part(batch.locate(pack.index), credit)
        loss = algorithm.loss(part, scores.logprobs, scores.values, scores.entropy)
        (loss.total / credit.divisor.sum()).backward()

    assert credit.returns is not None
    error = torch.zeros(())
    for row, transcript in enumerate(batch.transcripts):
        ids, places = torch.from_numpy(transcript.ids.copy()), np.flatnonzero(transcript.mask)
        hidden = model(ids[None], output_hidden_states=True).hidden_states[-1][0]
        values = hidden[places - 1] @ weight[0] + bias
        error = error + ((values - credit.returns[batch.row == row].float()) ** 2 / 2).sum()
    (0.5 * error / batch.num_tokens).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {name: parameter.grad for name, parameter in policy.core.named_parameters()}
    for name, mine, plain in [
        ("weight", head.weight.grad, weight.grad),
        ("bias", head.bias.grad, bias.grad),
        *((name, found[name], expected[name]) for name in expected if expected[name] is not None),
    ]:
        assert mine is not None, name
        assert plain is not None, name
        assert float(plain.abs().max()) > 0, name
        assert torch.allclose(mine, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max())), name


@pytest.mark.gpu
@pytest.mark.parametrize("algorithm", WAYS)
def test_a_gpu_gives_the_same_credit_and_loss(algorithm: Algorithm) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    batch = random_batch(0, (4, 3, 1))
    found = []
    for device in ("cpu", "cuda"):
        here = on(batch, device)
        logprobs, values, entropy = (leaf.detach().to(device) for leaf in scores(batch, 0))
        credit = algorithm.credit(here, algorithm.start())
        loss = algorithm.loss(
            here.part(torch.arange(batch.num_tokens, device=device), credit), logprobs, values, entropy
        )
        metrics = {**credit.metrics, **loss.metrics}
        found.append([x.cpu() for x in (credit.advantages, credit.divisor, loss.total, *metrics.values())])
    for mine, other in zip(*found, strict=True):
        assert torch.allclose(mine, other, atol=1e-9)


class TRL:
    """TRL's trainer on a copy of the model, asked for its loss of rollouts that it has not made."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        settings = GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            report_to=[],
            per_device_train_batch_size=6,
            num_generations=3,
            max_completion_length=LONGEST,
            epsilon=0.2,
            epsilon_high=0.28,
        )
        self.trainer = GRPOTrainer(
            model=deepcopy(model),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": "nothing"}] * 6),
            processing_class=tiny_tokenizer(),
        )
        self.trainer.current_gradient_accumulation_steps = 1

    def loss(self, batch: Batch, advantages: Tensor, **settings: Any) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradient of each parameter; prompts padded on the left, all after them on the right."""
        for name, value in settings.items():
            setattr(self.trainer, name, value)
        tails = [transcript.prompt for transcript in batch.transcripts]
        width = max(tails)
        longest = max(len(t) - t.prompt for t in batch.transcripts)
        rows = len(batch.transcripts)
        inputs = {
            "prompt_ids": torch.zeros(rows, width, dtype=torch.int64),
            "prompt_mask": torch.zeros(rows, width, dtype=torch.int64),
            "completion_ids": torch.zeros(rows, longest, dtype=torch.int64),
            "completion_mask": torch.zeros(rows, longest, dtype=torch.int64),
            "tool_mask": torch.ones(rows, longest, dtype=torch.int64),
            "old_per_token_logps": torch.zeros(rows, longest),
            "ref_per_token_logps": torch.zeros(rows, longest),
            "advantages": advantages,
            "num_items_in_batch": torch.tensor(float(batch.num_tokens)),
        }
        for row, transcript in enumerate(batch.transcripts):
            ids, cut = torch.from_numpy(transcript.ids.copy()), transcript.prompt
            inputs["prompt_ids"][row, width - cut :] = ids[:cut]
            inputs["prompt_mask"][row, width - cut :] = 1
            inputs["completion_ids"][row, : len(ids) - cut] = ids[cut:]
            inputs["completion_mask"][row, : len(ids) - cut] = 1
            inputs["tool_mask"][row, : len(ids) - cut] = torch.from_numpy(transcript.mask[cut:].astype(np.int64))
            mine = batch.row == row
            inputs["old_per_token_logps"][row, batch.position[mine] - cut] = batch.old_logprobs[mine]
            assert batch.reference is not None
            inputs["ref_per_token_logps"][row, batch.position[mine] - cut] = batch.reference[mine]
        model = self.trainer.model.train()
        model.zero_grad()
        loss = self.trainer._compute_loss(model, inputs)
        loss.backward()
        return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def trained() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def trl(trained: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> TRL:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and its imports' own, about releases to come
        pytest.importorskip("trl", reason="TRL is no dependency; pip install 'trl==1.16.*' compares with it")
        return TRL(trained, tmp_path_factory.mktemp("trl"))


TOKEN = {"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.28}
SEQUENCE = {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04}
OUR_SEQUENCE = {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04}
CONSTANT = {"loss_mean": "constant", "constant": float(LONGEST)}


@pytest.mark.slow
@pytest.mark.parametrize("drift", [0.0, 0.3])
@pytest.mark.parametrize(
    ("settings", "peer", "beta"),
    [
        ({"loss_mean": "token"}, {"loss_type": "dapo", **TOKEN}, 0.0),
        ({"loss_mean": "token"}, {"loss_type": "dapo", **TOKEN}, 0.2),
        (CONSTANT, {"loss_type": "dr_grpo", **TOKEN}, 0.0),
        (CONSTANT, {"loss_type": "dr_grpo", **TOKEN}, 0.2),
        ({"loss_mean": "sequence"}, {"loss_type": "grpo", **TOKEN}, 0.0),
        ({"loss_mean": "sequence"}, {"loss_type": "grpo", **TOKEN}, 0.2),
        # No divergence here: TRL corrects a token's by the ratio of the whole trajectory, we by the token's own.
        ({"loss_mean": "sequence", **OUR_SEQUENCE}, {"loss_type": "grpo", **SEQUENCE}, 0.0),
        ({"loss_mean": "token", **OUR_SEQUENCE}, {"loss_type": "dapo", **SEQUENCE}, 0.0),
        ({**CONSTANT, **OUR_SEQUENCE}, {"loss_type": "dr_grpo", **SEQUENCE}, 0.0),
    ],
)
def test_the_same_loss_and_gradient_as_trl(
    trl: TRL,
    trained: PreTrainedModel,
    settings: dict[str, Any],
    peer: dict[str, Any],
    beta: float,
    drift: float,
) -> None:
    batch = rollouts(trained, drift)
    algorithm = ListwiseGRPO(drop="none", kl="loss" if beta else "none", kl_coef=beta, **settings)
    credit = algorithm.credit(batch, {})
    first = torch.cat([torch.ones(1, dtype=torch.bool), torch.diff(batch.row) > 0])
    theirs, their_gradients = trl.loss(batch, credit.advantages[first].float(), beta=beta, **peer)
    mine, gradients, _, metrics = ours(algorithm, trained, batch)
    for clipped in ("clipped_low", "clipped_high"):
        assert (float(metrics[clipped][0]) > 0) == (drift > 0)
    assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    assert gradients.keys() == their_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in their_gradients.values())
    assert largest > 1e-3
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, their_gradients[name], rtol=1e-4, atol=1e-5 * largest), name
