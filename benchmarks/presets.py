"""The experiment as data: which stages are trained one after another, and which rows of the table play what came out.

A preset fits a size of model. Stages that several rows go through are trained once; parts that are left out of a
method, or changed in it, are stages of their own that inherit everything else, so that nothing but that part differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrec_env.tools import PAPER
from benchmarks.suite import Row, content_of

Algorithm = Literal["sft", "ppo", "grpo", "ppr", "dpo"]

SMALL = "small"
"""The preset for the embedded policy."""
TRACK = "pool-20"
"""The track that policies are trained for and play: the paper's 1 + 19 uniform negatives."""
NO_TOOLS: Mapping[str, Any] = {"tools": [], "max_calls": 0}
"""Arguments of an environment in which an agent must answer at once."""
BASELINES = "What a reward is compared with in list-wise GRPO"
PAIRS = "Parts of progressive preference refinement"
NEGATIVES = "Items that a preference loss holds against the positive"
TOOLLESS = "List-wise GRPO without tools"


@dataclass(frozen=True)
class Stage:
    """One training run for each seed."""

    name: str
    algorithm: Algorithm
    after: str = ""
    """Stage whose best policy it starts from; empty: the model that the experiment is about."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the run (`algos.training.Training` or `algos.sft.SFTConfig`), nested as they are; the rest are defaults."""
    base: str = ""
    """Stage whose settings it inherits, before its own; it starts where that one starts unless it says otherwise."""
    passes: float = 0.0
    """Times that each training task is played, in place of a number of steps; 0: the settings say how many."""
    equal: str = ""
    """Stage that it plays as many steps and episodes a step as."""


@dataclass(frozen=True)
class Preset:
    """An experiment for models of some size."""

    name: str
    about: str
    model: str
    """Where it starts unless another model is named."""
    play: Mapping[str, Any]
    """Arguments of `agents.llm.agent.LLMAgent` with which its rows play."""
    stages: tuple[Stage, ...]
    env: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment in which its policies are trained and play; --env stands before them."""

    def rows(self, model: str, arguments: Mapping[str, Any], num_envs: int, seeds: int) -> list[Row]:
        """The rows that the experiment adds, main ones first; those with a stage have no model yet.

        Args:
            model: That the experiment starts from.
            arguments: Of the agent, beside those of the preset.
            num_envs: Episodes played at once.
            seeds: Of trained rows.
        """
        common: dict[str, Any] = {"lane": "llm", "num_envs": num_envs, "tracks": (TRACK,)}
        play, content = {**self.play, **arguments}, content_of(model)
        start: dict[str, Any] = {"kwargs": {"model": model, **play}, "content": content, "neutral": ("rows",), **common}
        rows = [
            Row("no-tools", "llm", env={**self.env, **NO_TOOLS}, **start),
            Row("frozen", "llm", env=self.env, **start),
        ]
        for name, (stage, ablation, reference) in TRAINED.items():
            if stage in {each.name for each in self.stages}:
                rows.append(
                    Row(
                        name,
                        "llm",
                        kwargs=play,
                        content=content,
                        neutral=("rows", "model"),
                        env={**self.env, **(NO_TOOLS if ablation == TOOLLESS else {})},
                        ablation=ablation,
                        reference=reference,
                        stage=stage,
                        seeds=seeds,
                        **common,
                    )
                )
        return rows


TRAINED: Mapping[str, tuple[str, str, str]] = {
    "sft": ("sft", "", ""),
    "ppo": ("ppo", "", ""),
    "grpo": ("grpo", "", ""),
    "grpo+grpo": ("again", "", ""),
    "grpo+dpo": ("dpo", "", ""),
    "grpo+ppr": ("ppr", "", ""),
    "sft, no tools": ("sft-no-tools", TOOLLESS, "grpo"),
    "grpo, no tools": ("grpo-no-tools", TOOLLESS, "grpo"),
    "grpo, leave-one-out": ("grpo-leave-one-out", BASELINES, "grpo"),
    "grpo, std": ("grpo-std", BASELINES, "grpo"),
    "ppr, top negative": ("ppr-top", PAIRS, "grpo+ppr"),
    "ppr, margin curriculum": ("ppr-margin", PAIRS, "grpo+ppr"),
    "ppr, more likely only": ("ppr-more", PAIRS, "grpo+ppr"),
    "ppr, less likely only": ("ppr-less", PAIRS, "grpo+ppr"),
    "ppr, three rounds": ("ppr-rounds", PAIRS, "grpo+ppr"),
    "ppr, likelihood": ("ppr-likelihood", PAIRS, "grpo+ppr"),
    "dpo, five negatives (S-DPO)": ("dpo-five", NEGATIVES, "grpo+dpo"),
}
"""Stage, heading of the ablation, and the row it is compared with, by the name of the row."""

ABLATIONS = (
    Stage("grpo-leave-one-out", "grpo", base="grpo", settings={"algorithm": {"baseline": "leave_one_out"}}),
    Stage("grpo-std", "grpo", base="grpo", settings={"algorithm": {"std": True}}),
    Stage("ppr-top", "ppr", base="ppr", settings={"algorithm": {"mining": {"hardness": "top"}}}),
    Stage("ppr-margin", "ppr", base="ppr", settings={"algorithm": {"mining": {"hardness": "margin"}}}),
    Stage("ppr-more", "ppr", base="ppr", settings={"algorithm": {"directions": "more"}}),
    Stage("ppr-less", "ppr", base="ppr", settings={"algorithm": {"directions": "less"}}),
    Stage("ppr-rounds", "ppr", base="ppr", settings={"algorithm": {"mining": {"rounds": 3}}}),
    Stage("ppr-likelihood", "ppr", base="ppr", settings={"algorithm": {"objective": "likelihood"}}),
    Stage("dpo-five", "dpo", base="dpo", settings={"algorithm": {"negatives": 5}}),
)

_SMALL: Mapping[str, Any] = {"steps": 100, "evaluate_every": 10, "threads": 1, "optimization": {"lr": 5e-5}}
"""A policy that was taught by fusion is near what its evidence holds, and a large rate takes it away from there: *Rungs
that did not* in benchmarks/results/trained/README.md. One that knows the form alone learns most at 3e-4
(benchmarks/results/learning/README.md)."""
_REFINED: Mapping[str, Any] = {**_SMALL, "steps": 50}
_MINING: Mapping[str, Any] = {"mining": {"mine_tasks": 2_000}}
"""Of which a policy ranks more than a thousand wrongly, more than its steps ask about."""
_MUON: Mapping[str, Any] = {"method": "muon", "lr": 1e-3, "matrix_lr": 0.01, "warmup": 10}
_LARGE: Mapping[str, Any] = {
    "temperature": 0.6,
    "max_turn_tokens": 6144,
    "max_episode_tokens": 16384,
    "dtype": "mixed",  # a weight in bfloat16 does not move by 1e-6
    "gradient_checkpointing": True,
    "evaluate_every": 20,
    "rows": 512,
    "optimization": {"lr": 1e-6, "warmup": 0, "final_lr": 1.0},
}

PRESETS: Mapping[str, Preset] = {
    SMALL: Preset(
        SMALL,
        "a policy of a few million weights, on a laptop or one GPU",
        "tiny",
        {"temperature": 0.0},
        (
            Stage(
                "sft",
                "sft",
                settings={
                    "teacher_args": '{"ranker": "fusion", "variety": 0.1, "most": 3}',
                    "steps": 150,
                    "questions": 4,  # a policy that knows lists alone answers those of ppr with lists
                    "repeats": 10.0,
                    "threads": 1,
                    "lessons": {"early": 4},
                    "evaluate_every": 1_000,  # at its end: before the rate has run down, the best is luck
                    "optimization": {**_MUON, "lr": 2e-3, "matrix_lr": 0.015},
                },
            ),
            Stage("grpo", "grpo", "sft", {**_SMALL, "algorithm": {"groups": 16}}),
            Stage(
                "ppo",
                "ppo",
                "sft",
                {**_SMALL, "value_lr": 3e-3, "algorithm": {"group_size": 8, "epochs": 2, "lam": 1.0}},
                equal="grpo",
            ),
            Stage("ppr", "ppr", "grpo", {**_REFINED, "algorithm": {"groups": 16, "lists": 0.25, **_MINING}}),
            Stage("dpo", "dpo", "grpo", {**_REFINED, "algorithm": {"groups": 16, "nll": 0.1, **_MINING}}),
            Stage("again", "grpo", "grpo", base="grpo", equal="ppr"),
            # One that knows tools alone calls them whether they are offered or not, and is paid for nothing.
            Stage("sft-no-tools", "sft", base="sft", settings={"env": NO_TOOLS}),
            Stage("grpo-no-tools", "grpo", "sft-no-tools", {"env": NO_TOOLS}, base="grpo"),
            *ABLATIONS,
        ),
    ),
    "paper": Preset(
        "paper",
        "the paper's: G 8, batch 64, lr 1e-6, temperature 0.6, 6,144 tokens a turn, 3 epochs; 4 B weights want 141 GB",
        "Qwen/Qwen3-4B-Instruct-2507",
        {"temperature": 0.0, "max_turn_tokens": 6144, "max_episode_tokens": 16384},
        (
            Stage(
                "sft",
                "sft",
                settings={
                    "dtype": "mixed",
                    "steps": 500,
                    "episodes": 64,
                    "evaluate_every": 100,
                    "optimization": {"lr": 1e-5},
                },
            ),
            Stage("grpo", "grpo", "", _LARGE, passes=3),
            Stage("ppo", "ppo", "", _LARGE, equal="grpo"),
            # One epoch over violations, asked about in both directions; H@1 .28 leaves .72 of the tasks violated.
            Stage("ppr", "ppr", "grpo", _LARGE, passes=1.44),
            Stage("dpo", "dpo", "grpo", _LARGE, passes=0.72),
            Stage("again", "grpo", "grpo", base="grpo", equal="ppr"),
            Stage("grpo-no-tools", "grpo", base="grpo", settings={"env": NO_TOOLS}),
            *ABLATIONS,
        ),
        {"tools": list(PAPER), "retries": 0},
    ),
}
