"""Runs are trained in order, each once, and one that fails costs those after it alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.claims import Claim
from benchmarks.curves import Judged, training_result
from benchmarks.experiment import Experiment, Run
from benchmarks.presets import PRESETS, TRAINED
from benchmarks.training import train
from tests.benchmarks.test_experiment import ENV


@dataclass
class Trainer:
    """Stands in for algos: a run leaves its policy, whose content names what it came from."""

    begun: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    stop_after: int = 999

    def __call__(self, run: Run) -> bool:
        self.begun.append(f"{run.stage.name}/{run.seed}")
        if len(self.begun) > self.stop_after:
            return False
        if run.stage.name in self.broken:
            raise RuntimeError("out of memory")
        start = training._start_digest(run)
        training._record_origin(run, start)
        run.policy.mkdir(parents=True, exist_ok=True)
        (run.policy / "weights").write_text(f"{run.stage.name} {run.seed} after {start}")
        outcome = {"start": start, "policy": training.files_digest(run.policy), "seconds": 1.0}
        (run.folder / training.DONE).write_text(json.dumps(outcome))
        return True


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(training, "_train", made)
    monkeypatch.setattr(training, "LOOK", 0.01)
    return made


def runs(tmp_path: Path, *stages: str) -> list[Run]:
    wanted = stages or [stage for stage, *_ in TRAINED.values()]
    return Experiment(PRESETS["small"], "tiny", tmp_path, (0, 1), {}).runs("data", ENV, 1000, wanted)


def said() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


def test_each_run_is_trained_once_and_after_what_it_starts_from(tmp_path: Path, trainer: Trainer) -> None:
    lines, say = said()
    wanted = runs(tmp_path)
    assert train(wanted, 0, say) == {}
    assert sorted(trainer.begun) == sorted(f"{run.stage.name}/{run.seed}" for run in wanted)
    for run in wanted:
        if run.after is not None:
            names = [f"{each.stage.name}/{each.seed}" for each in (run.after, run)]
            assert trainer.begun.index(names[0]) < trainer.begun.index(names[1])
    assert sum(line.startswith("trained ") for line in lines) == len(wanted)
    assert train(wanted, 0, say) == {}
    assert len(trainer.begun) == len(wanted), "what was done was trained again"


def test_a_run_that_fails_ends_those_after_it_and_is_tried_again(tmp_path: Path, trainer: Trainer) -> None:
    trainer.broken = {"grpo"}
    _, say = said()
    wanted = runs(tmp_path, "ppo", "ppr", "dpo")
    errors = train(wanted, 0, say)
    assert {run.stage.name for run in wanted if run.folder in errors} == {"grpo", "ppr", "dpo"}
    by_name = {f"{run.stage.name}/{run.seed}": errors.get(run.folder) for run in wanted}
    assert by_name["grpo/1"] == "RuntimeError: out of memory"
    assert by_name["ppr/0"] == "grpo on data (seed 0) failed"
    assert by_name["ppo/0"] is None
    result = training_result("data", wanted, errors)
    assert "grpo on data (seed 1): RuntimeError: out of memory" in result.remarks
    assert {curve.stage for curve in result.curves} == {"sft", "ppo"}
    trainer.broken = set()
    assert train(wanted, 0, say) == {}


def test_a_stop_is_passed_on_and_the_next_start_goes_on(tmp_path: Path, trainer: Trainer) -> None:
    _, say = said()
    wanted = runs(tmp_path, "grpo")
    trainer.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        train(wanted, 0, say)
    assert all(Claim.holder(run.folder) is None for run in wanted)
    trainer.stop_after = 999
    train(wanted, 0, say)
    assert trainer.begun == ["sft/0", "sft/1", "grpo/0", "grpo/0", "grpo/1"]


def test_what_another_machine_trains_is_waited_for(tmp_path: Path, trainer: Trainer) -> None:
    wanted = runs(tmp_path, "grpo")
    claim = Claim.take(wanted[0].folder)
    assert claim is not None

    class Elsewhere:
        """Ends its run when it is waited for."""

        def __init__(self) -> None:
            self.told: list[str] = []

        def __call__(self, text: str) -> None:
            self.told.append(text)
            if text.startswith("waiting"):
                trainer(wanted[0])
                claim.__exit__(None, None, None)

    claim.__enter__()
    say = Elsewhere()
    assert train(wanted, 0, say) == {}
    assert [line for line in say.told if line.startswith("waiting")] != []
    assert sorted(trainer.begun) == ["grpo/0", "grpo/1", "sft/0", "sft/1"]


def test_a_run_stays_with_the_policy_that_it_began_from(tmp_path: Path, trainer: Trainer) -> None:
    _, say = said()
    wanted = runs(tmp_path, "again")
    train(wanted, 0, say)
    of = {(run.stage.name, run.seed): run for run in wanted}
    assert [training.stale(run) for run in wanted] == [None] * len(wanted)
    warm, grpo = of["sft", 1], of["grpo", 1]
    told = training.outcome(warm)
    (warm.policy / "weights").write_text("another")
    (warm.folder / training.DONE).write_text(json.dumps(told | {"policy": training.files_digest(warm.policy)}))
    for stage in ("grpo", "again"):
        assert "the policy of sft on data (seed 1), which is another one now" in str(training.stale(of[stage, 1]))
        assert training.stale(of[stage, 0]) is None
    (warm.folder / training.DONE).write_text(json.dumps(told | {"start": "another"}))
    for stage in ("sft", "grpo", "again"):
        assert "tiny, which is another one now" in str(training.stale(of[stage, 1]))
    (grpo.folder / training.DONE).unlink()
    assert "began from another policy" in train(wanted, 0, say)[grpo.folder]
    assert of["sft", 0].folder not in train(wanted, 0, say)


def test_curves_are_means_of_the_seeds(tmp_path: Path, trainer: Trainer) -> None:
    _, say = said()
    wanted = runs(tmp_path, "grpo")
    train(wanted, 0, say)
    for run in wanted[2:]:
        lines = [{"step": 0, "valid/ndcg@10": 0.2 + 0.1 * run.seed}]
        lines += [{"step": s, "calls/a": 1.0 + run.seed, "calls/b": s, "sampled_tokens": 50.0} for s in range(80)]
        lines += [{"step": 80, "valid/ndcg@10": 0.5}]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    grpo = next(curve for curve in training_result("data", wanted, {}).curves if curve.stage == "grpo")
    assert (grpo.seeds, grpo.start, grpo.sampled_tokens) == (2, "sft", 4000)
    assert grpo.calls["a"] == [1.5] * len(grpo.steps)
    assert sum(grpo.calls["b"]) / len(grpo.steps) == pytest.approx(39.5)
    assert grpo.valid == [Judged(0, 0.0, pytest.approx(0.25), 0.2, pytest.approx(0.3)), Judged(80, 4000, 0.5, 0.5, 0.5)]
    assert grpo.best == [0.5, 0.5]
    assert grpo.chosen == [80, 80]
    (wanted[2].folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "valid/ndcg@10": 0.5}) + "\n" for step in (0, 40, 80))
    )
    grpo = next(curve for curve in training_result("data", wanted, {}).curves if curve.stage == "grpo")
    assert grpo.chosen == [0, 80], "of equals the first is kept"


@pytest.fixture(autouse=True)
def _no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "training_code", lambda: "code")
