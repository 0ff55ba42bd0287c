"""The card of a trained policy: the figures that were logged, and a command that makes the same run."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tyro
from huggingface_hub import ModelCard

from agentrec_env.scenario import Config
from algos.card import command
from algos.config import Optimization
from algos.demonstrations import Lessons
from algos.dpo import DPO
from algos.listwise_grpo import ListwiseGRPO
from algos.pairs import Mining
from algos.ppo import PPO
from algos.ppr import PPR
from algos.sft import SFTConfig
from algos.training import Training
from tests.algos.small import learner, settings


@dataclass(frozen=True)
class Mine(ListwiseGRPO):
    """An algorithm from outside."""

    strength: float = 1.0


OPTIMIZATION = Optimization(method="muon", lr=3e-5, warmup=0)
RUNS: list[Any] = [
    Training(ListwiseGRPO()),
    Training(
        ListwiseGRPO(groups=8, std=True, clip_low=None, kl="reward", kl_coef=0.05),
        out=Path("runs/a folder"),
        model="org/name",
        lora_rank=8,
        dtype="mixed",
        gradient_checkpointing=True,
        device="cpu",
        env=Config(dataset="my shop.csv", tools=["x:y", "score_candidates"], num_candidates="catalog", max_turns=3),
    ),
    Training(PPO(whiten=False, lam=0.5), optimization=OPTIMIZATION, value_lr=1e-3),
    Training(PPR(directions="less", mining=Mining(rounds=3))),
    Training(DPO(negatives=3, mining=Mining(mine_temperature=1.0)), env=Config(tools=[])),
    Training(Mine(strength=2.5, groups=2)),
    SFTConfig(),
    SFTConfig(model="new", teacher_args='{"ranker": "it\'s"}', lessons=Lessons(early=2), optimization=OPTIMIZATION),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: type(getattr(run, "algorithm", run)).__name__)
def test_the_command_makes_the_same_settings(run: Any) -> None:
    agentrec, train, name, *options = shlex.split(command(run))
    assert (agentrec, train) == ("agentrec", "train")
    kind = {"ListwiseGRPO": "grpo", "Mine": f"{__name__}:Mine", "SFTConfig": "sft"}
    called = type(getattr(run, "algorithm", run)).__name__
    assert name == kind.get(called, called.lower())
    form: Any = SFTConfig if isinstance(run, SFTConfig) else Training[type(run.algorithm)]
    assert tyro.cli(form, args=options) == run


def test_defaults_need_no_options() -> None:
    assert command(Training(ListwiseGRPO())) == "agentrec train grpo"
    assert command(Training(PPR(), resume=True, steps=7)) == "agentrec train ppr --steps 7"


def test_the_best_and_the_last_policy_have_their_own_figures(tmp_path: Path) -> None:
    run = learner(settings(ListwiseGRPO(groups=4, group_size=4), tmp_path, steps=3, evaluate_every=2))
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["valid/ndcg@10"] for line in lines if "valid/ndcg@10" in line}
    cards = {name: ModelCard.load(tmp_path / name / "README.md") for name in ("best", "model")}
    best = max(judged, key=lambda step: (judged[step], -step))
    for name, step in (("best", best), ("model", 3)):
        figures = {result.metric_type: result.metric_value for result in cards[name].data.eval_results}
        assert figures["ndcg@10"] == pytest.approx(judged[step], abs=1e-4)
        assert f"for {step} of 3 steps" in cards[name].text
        assert f"| N@10 | {judged[step]:.3f} [" in cards[name].text
    text = cards["best"].text
    assert "agentrec train grpo --groups 4 --group-size 4" in text
    assert f"8 valid tasks of {run.envs.world.protocol}" in text
    settled = json.loads(text.partition("```json\n")[2].partition("```")[0])
    assert settled == json.loads((tmp_path / "config.json").read_text())


def test_a_policy_that_was_not_judged_has_no_figures(tmp_path: Path) -> None:
    learner(settings(ListwiseGRPO(groups=2, group_size=2), tmp_path, steps=1, evaluate_every=0)).train()
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.eval_results is None
    assert "not judged" in card.text
