"""Stages become runs: shared where rows share them, equal where they are compared, and never mixed up."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrec_env.tools import PAPER
from algos.config import resolved
from algos.requests import draw
from benchmarks import training
from benchmarks.experiment import Experiment, Run
from benchmarks.presets import PRESETS, TRAINED, Preset
from benchmarks.training import MixedRunError

ENV = {"dataset": "synthetic", "split": "temporal", "num_candidates": 20, "negatives": "uniform", "seed": 0}
STAGES = [stage for stage, *_ in TRAINED.values()]


def experiment(tmp_path: Path, preset: str = "small", **changes: Any) -> Experiment:
    chosen: dict[str, Any] = {"seeds": (0, 1, 2), "overrides": {}} | changes
    return Experiment(PRESETS[preset], PRESETS[preset].model, tmp_path, **chosen)


def runs(tmp_path: Path, preset: str = "small", tasks: int = 1000, **changes: Any) -> dict[tuple[str, int], Run]:
    here = {stage.name for stage in PRESETS[preset].stages}
    made = experiment(tmp_path, preset, **changes).runs("data", ENV, tasks, [name for name in STAGES if name in here])
    assert len({run.folder for run in made}) == len(made)
    return {(run.stage.name, run.seed): run for run in made}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_row_has_its_chain_and_stages_are_trained_once(tmp_path: Path, preset: str) -> None:
    made = runs(tmp_path, preset)
    assert {name for name, _ in made} == {stage.name for stage in PRESETS[preset].stages}
    assert len(made) == 3 * len({name for name, _ in made})
    order = list(made.values())
    for place, run in enumerate(order):
        assert run.config.env.task_split == "train"
        assert run.config.env.num_candidates == 20
        if run.after is None:
            assert run.config.model == PRESETS[preset].model
        else:
            assert run.after in order[:place]
            assert run.after.seed == run.seed
            assert run.config.model == str(run.after.policy)
    assert made["again", 1].after is made["grpo", 1]
    assert made["ppr", 0].after is made["ppr-top", 0].after is made["dpo", 0].after


@pytest.mark.parametrize("preset", list(PRESETS))
def test_no_stage_plays_again_what_the_ones_before_it_played(tmp_path: Path, preset: str) -> None:
    made = runs(tmp_path, preset)

    def tasks_of(run: Run) -> set[tuple[int, int]]:
        requests = [draw(step, 16, 1, 1000, run.config.seed) for step in range(20)]
        return {pair for each in requests for pair in zip(each.tasks.tolist(), each.seeds.tolist(), strict=True)}

    assert not tasks_of(made["again", 0]) & tasks_of(made["grpo", 0])
    assert not tasks_of(made["ppr", 0]) & tasks_of(made["grpo", 0])
    assert not tasks_of(made["grpo", 0]) & tasks_of(made["grpo", 1])
    assert tasks_of(made["grpo-std", 0]) == tasks_of(made["grpo", 0]) == tasks_of(made["ppo", 0])
    assert tasks_of(made["ppr-top", 2]) == tasks_of(made["dpo", 2])


@pytest.mark.parametrize("preset", list(PRESETS))
def test_what_is_compared_differs_in_nothing_else(tmp_path: Path, preset: str) -> None:
    made = runs(tmp_path, preset)
    assert made["ppo", 0].episodes == made["grpo", 0].episodes
    assert made["ppo", 0].config.steps == made["grpo", 0].config.steps
    assert made["again", 0].episodes == made["ppr", 0].episodes

    def unlike(name: str, base: str) -> dict[str, Any]:
        one, other = (_flat(resolved(made[each, 0].config)) for each in (name, base))
        return {key: one[key] for key in one if one[key] != other.get(key) and key != "out"}

    assert unlike("grpo-std", "grpo") == {"algorithm.std": True}
    assert unlike("grpo-leave-one-out", "grpo") == {"algorithm.baseline": "leave_one_out"}
    bare = unlike("grpo-no-tools", "grpo")
    assert {name: bare[name] for name in bare if name != "model"} == {"env.tools": [], "env.max_calls": 0}
    assert made["ppr", 0].config.algorithm.mining == made["dpo", 0].config.algorithm.mining
    assert unlike("ppr-top", "ppr") == {"algorithm.mining.hardness": "top"}
    assert unlike("ppr-more", "ppr") == {"algorithm.directions": "more"}
    assert unlike("ppr-rounds", "ppr") == {"algorithm.mining.rounds": 3}
    assert unlike("ppr-likelihood", "ppr") == {"algorithm.objective": "likelihood"}
    assert unlike("dpo-five", "dpo") == {"algorithm.negatives": 5}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def test_the_papers_settings(tmp_path: Path) -> None:
    made = runs(tmp_path, "paper", tasks=11_061)
    grpo, ppr = made["grpo", 0].config, made["ppr", 0].config
    assert grpo.model == "Qwen/Qwen3-4B-Instruct-2507"
    assert (grpo.algorithm.group_size, grpo.algorithm.groups, grpo.optimization.lr) == (8, 64, 1e-6)
    assert (grpo.temperature, grpo.max_turn_tokens) == (0.6, 6144)
    assert grpo.steps == math.ceil(3 * 11_061 / 64)
    assert (grpo.algorithm.baseline, grpo.algorithm.std, grpo.algorithm.drop) == ("mean", False, "negative")
    assert (ppr.algorithm.mining.rounds, ppr.algorithm.mining.hardness, ppr.algorithm.directions) == (
        1,
        "random",
        "both",
    )
    assert ppr.algorithm.lists == 0
    assert (grpo.env.retries, grpo.env.tools) == (ppr.env.retries, ppr.env.tools) == (0, list(PAPER))
    (row,) = [each for each in PRESETS["paper"].rows("tiny", {}, 1, 1) if each.name == "grpo+ppr"]
    assert row.env == {"tools": list(PAPER), "retries": 0}
    assert grpo.dtype == "mixed", "in bfloat16 a weight does not move by 1e-6"
    assert made["ppr", 0].after is made["grpo", 0]


def test_settings_of_a_stage_reach_its_variants_but_not_what_makes_them_one(tmp_path: Path) -> None:
    overrides = {
        "*": {"evaluate_tasks": 8, "algorithm": {"groups": 4}},
        "grpo": {"steps": 7, "algorithm": {"std": True, "groups": 6}},
        "ppr": {"algorithm": {"mining": {"hardness": "margin"}}},
    }
    made = runs(tmp_path, overrides=overrides)
    assert all(run.config.evaluate_tasks == 8 for run in made.values())
    for name in ("grpo", "grpo-no-tools", "grpo-leave-one-out"):
        assert (made[name, 0].config.steps, made[name, 0].config.algorithm.groups) == (7, 6)
        assert made[name, 0].config.algorithm.std
    assert made["ppr", 0].config.algorithm.groups == made["dpo", 0].config.algorithm.groups == 4
    assert made["ppr", 0].config.algorithm.mining.hardness == "margin"
    assert made["ppr-top", 0].config.algorithm.mining.hardness == "top"
    assert made["ppo", 0].config.steps == 7
    assert made["ppo", 0].episodes == made["grpo", 0].episodes == 7 * 6 * 8


def test_a_short_run_is_short_everywhere(tmp_path: Path) -> None:
    for run in runs(tmp_path, "paper", most_steps=2).values():
        assert run.config.steps == 2
    assert runs(tmp_path, most_steps=2)["ppr-rounds", 0].config.algorithm.mining.rounds == 2


def test_an_adapter_is_trained_on(tmp_path: Path) -> None:
    made = runs(tmp_path, "paper", overrides={"*": {"lora_rank": 16}})
    assert made["grpo", 0].config.lora_rank == 16
    assert made["ppr", 0].config.lora_rank == made["dpo", 0].config.lora_rank == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": {"gpro": {}}}, "Did you mean 'grpo'"),
        ({"overrides": {"*": {"stepps": 3}}}, "no stage knows the setting stepps"),
        ({"overrides": {"*": {"algorithm": {"grops": 3}}}}, r"no stage knows the setting algorithm\.grops"),
        ({"overrides": {"ppo": {"steps": 3}}}, "plays as much as 'grpo'"),
        ({"overrides": {"grpo": {"optimization": {"lrr": 3}}}}, "Did you mean 'lr'"),
        ({"overrides": {"grpo": 3}}, "a JSON object"),
        ({"overrides": {"grpo": {"steps": 0}}}, "steps is at least 1"),
        ({"most_steps": 0}, "at least one step"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        experiment(tmp_path, **changes).runs("data", ENV, 1000, STAGES)


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    made = list(runs(tmp_path).values())
    training.check(made)
    run = made[1]
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(json.dumps(resolved(run.config)))
    training.check(made)
    (run.folder / "config.json").write_text(json.dumps(resolved(replace(run.config, rows=3, keep=7))))
    training.check(made)  # these change no result
    (run.folder / "config.json").write_text(json.dumps(resolved(replace(run.config, steps=9, seed=5))))
    with pytest.raises(MixedRunError, match="seed: 5, now 1; steps: 9, now 150"):
        training.check(made)


def test_presets_name_stages_that_they_have() -> None:
    for preset in PRESETS.values():
        assert isinstance(preset, Preset)
        names = [stage.name for stage in preset.stages]
        assert len(set(names)) == len(names)
        for stage in preset.stages:
            assert {stage.after, stage.base, stage.equal} <= {*names, ""}
        rows = preset.rows("tiny", {"device": "cpu"}, 8, 3)
        assert {row.reference for row in rows} <= {row.name for row in rows} | {""}
    assert {stage for stage, *_ in TRAINED.values()} <= {stage.name for stage in PRESETS["small"].stages}
