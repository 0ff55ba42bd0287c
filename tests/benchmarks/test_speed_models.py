"""The speed scripts of the language-model policy run at a tiny size, and what they compare does the same. No timing."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.speed import ceilings, grpo_step, learners, rollout, sft
from benchmarks.speed.contenders import CERTAIN, CONTENDERS, WEAK, Setup
from benchmarks.speed.rollout import Player
from benchmarks.speed.steppers import Stepper
from benchmarks.speed.workers import Worker, ratios, spread
from benchmarks.speed.workload import SCRIPT, SHAPES, Plan, Workload, scripted_model

PLAN = Plan(groups=2, members=2, prompt=300, shared=256, observation=30)
SETUP = Setup("tiny", PLAN)
TINY = ["--groups", "2", "--members", "2", "--prompt", "300", "--shared", "256", "--observation", "30"]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(PLAN, SHAPES["tiny"].vocabulary)


def test_prompts_have_the_length_asked_for_and_observations_are_ragged(workload: Workload) -> None:
    prompts = workload.prompts()
    assert {len(prompt.ids) for prompt in prompts} == {300}
    assert {prompt.shared for prompt in prompts} == {256}
    assert len({prompt.ids for prompt in prompts}) == 2
    lengths = [len(transcript) for transcript in workload.transcripts()]
    assert len(set(lengths)) > 1
    assert max(lengths) <= PLAN.longest


def test_prompts_are_what_the_chat_template_writes(workload: Workload) -> None:
    ids = workload.tokenizer.apply_chat_template(
        workload.messages(1), tools=[workload.schema], add_generation_prompt=True, return_dict=False
    )
    assert tuple(ids) == workload.prompts()[-1].ids


def test_prompts_that_cannot_hold_the_schema_are_refused() -> None:
    with pytest.raises(ValueError, match="take more"):
        Workload(replace(PLAN, prompt=40, shared=20), SHAPES["tiny"].vocabulary)


@pytest.mark.parametrize(
    ("size", "sure_at"), [("tiny", -0.5), ("1m", -0.5), ("3m", -0.5), pytest.param("8m", -0.3, marks=pytest.mark.slow)]
)
def test_the_model_keeps_to_its_script(size: str, sure_at: float) -> None:
    shape = SHAPES[size]
    workload = Workload(PLAN, shape.vocabulary)
    sure, unsure = (scripted_model(shape, workload, certainty=value) for value in (CERTAIN, WEAK))
    assert sum(weight.numel() for weight in sure.parameters()) == shape.parameters
    for transcript in workload.transcripts():
        ids = torch.tensor([transcript])
        places = [place for place in range(PLAN.prompt, len(transcript)) if _scripted(transcript, place, workload)]
        assert len(places) == len(SCRIPT) * (PLAN.turns + 1)
        wanted, before = ids[0, places], torch.tensor(places) - 1
        with torch.no_grad():
            probable = sure(ids).logits[0, before].softmax(-1)
            doubtful = unsure(ids).logits[0, before].log_softmax(-1)
        assert probable.gather(1, wanted[:, None]).min() > 1 - 1e-5
        assert doubtful.argmax(-1).tolist() == wanted.tolist()
        assert doubtful.gather(1, wanted[:, None]).max() < sure_at


def _scripted(ids: list[int], place: int, workload: Workload) -> bool:
    chain = dict(pairwise((workload.start, *workload.script)))
    return chain.get(ids[place - 1]) == ids[place]


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "trl"])
def test_contenders_play_the_same_rollout(name: str) -> None:
    expected = Workload(PLAN, SHAPES["tiny"].vocabulary).transcripts()
    contender = CONTENDERS[name](SETUP)
    assert contender.play().transcripts == expected
    assert contender.play(rows=2).transcripts == expected[:2]
    assert CONTENDERS[name](replace(SETUP, greedy=True, peer_rows=3)).play().transcripts == expected
    assert CONTENDERS[name](replace(SETUP, dtype="bfloat16")).play().transcripts == expected


def test_log_probabilities_are_those_of_a_whole_forward_pass() -> None:
    player = Player("ours", replace(SETUP, greedy=True))
    assert player("agree") < rollout.TOLERANCE


def test_seconds_are_split_and_set_against_ceilings() -> None:
    split = Player("ours", SETUP)("split")
    parts = dict(split["seconds"])
    assert parts.pop("seconds") == pytest.approx(sum(parts.values()))
    assert all(value > 0 for value in [*parts.values(), *split["reached"].values(), *split["ceilings"].values()])


def test_the_least_work_is_what_is_counted_by_hand(workload: Workload) -> None:
    work = ceilings.least(SHAPES["tiny"], workload, itemsize=4)
    answers = sum(len(row) - PLAN.prompt - 4 * len(SCRIPT) for row in workload.transcripts())
    # The last sampled token of a turn is read with the answer to it.
    assert work.prefill_tokens == 256 + 2 * (300 - 256) + answers + PLAN.rows * PLAN.turns
    assert work.decode_tokens == PLAN.rows * 4 * len(SCRIPT)
    assert work.decode_steps == 4 * (len(SCRIPT) - 1)
    norms = 64 * (2 * 2 + 1) + 2 * 2 * 16
    weights = work.decode_steps * (SHAPES["tiny"].parameters - norms) * 4
    entry = 2 * 2 * 2 * 16 * 4
    own = sum(
        place - 1 - PLAN.prompt
        for row in workload.transcripts()
        for place in range(PLAN.prompt + 1, len(row))
        if _scripted(row, place, workload) and row[place] != workload.script[0]
    )
    assert work.decode_bytes == weights + (own + work.decode_steps * (256 + 2 * 44)) * entry
    assert work.decode_bytes_unshared == weights + (own + 4 * work.decode_steps * 300) * entry


@pytest.mark.parametrize("kind", sft.KINDS)
def test_batches_are_a_quarter_sampled(kind: sft.Kind) -> None:
    batch = sft.transcripts(sft.Setup("tiny", length=128), kind, 3)
    assert max(map(len, batch)) <= 128
    assert all(transcript.mask.sum() == 32 for transcript in batch)
    assert len({tuple(transcript.ids[:64]) for transcript in batch}) == (16 if kind == "apart" else 1)


@pytest.mark.parametrize("kind", sft.KINDS)
@pytest.mark.parametrize(("arithmetic", "bound"), [("float32", 1e-5), ("mixed", 3e-2)])
def test_ours_and_the_plain_loop_train_alike(kind: sft.Kind, arithmetic: sft.Arithmetic, bound: float) -> None:
    setup = sft.Setup("tiny", arithmetic, batch=4, length=128)
    ours, plain = sft.Ours(setup), sft.Plain(setup)
    batch = sft.transcripts(setup, kind, 0)
    (loss, gradient), (expected, reference) = ours.gradient(batch), plain.gradient(batch)
    assert loss == pytest.approx(expected, rel=bound)
    assert np.linalg.norm(gradient - reference) < bound * np.linalg.norm(reference)
    for number in range(3):
        batch = sft.transcripts(setup, kind, number)
        assert ours.update(batch) == pytest.approx(plain.update(batch), rel=bound)
    assert ours.update(batch) < expected


STEP = learners.Setup("tiny", replace(PLAN, turns=1), micro_tokens=700, trl_rows=2)


def test_steps_are_those_of_the_script_and_plain_rows_learn_the_same_from_it() -> None:
    ours, plain = learners.Ours(STEP), learners.Plain(STEP)
    assert len({prompt.ids for prompt in ours.prompts()}) == PLAN.groups
    assert len({prompt.ids for prompt in plain.prompts()}) == PLAN.rows
    assert (ours.policy.shares, plain.policy.shares) == (True, False)
    before = [weight.detach().clone() for weight in ours.model.parameters()]
    for number in range(2):
        for learner in (ours, plain):
            learner.watch.keep = True
            step = learner.step()
            assert step.transcripts == learner.workload.transcripts()
            assert min(step.rollout, step.update) > 0
            assert step.norm == pytest.approx(np.linalg.norm(learner.watch.gradient), rel=1e-5)
            assert step.norm > 0.01
        difference = np.linalg.norm(ours.watch.gradient - plain.watch.gradient) / step.norm
        assert 0 < difference < grpo_step.GRADIENT_TOLERANCE, number
    weights = [weight.detach() for weight in ours.model.parameters()]
    moved = max(float((weight - old).abs().max()) for weight, old in zip(weights, before, strict=True))
    assert moved == pytest.approx(2 * learners.OPTIMIZATION.lr, rel=0.2)


def test_the_least_work_of_an_update_is_what_is_counted_by_hand(workload: Workload) -> None:
    work = Stepper("ours", learners.Setup("tiny", PLAN, micro_tokens=100))("work")
    rows = [row[:-1] for row in workload.transcripts()]  # the last token is predicted and not read
    heads = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert work["update"]["tokens"] == len(heads)
    assert work["update"]["tokens_unshared"] == work["computed_tokens"] == sum(map(len, rows))
    assert work["update"]["rule_flops"] == 6 * len(heads) * SHAPES["tiny"].parameters
    whole = workload.transcripts()
    predicting = {
        tuple(row[:end]) for row in whole for end in range(PLAN.prompt, len(row)) if _scripted(row, end, workload)
    }
    keys, rest = 2 * 64 * 32, 64 * (2 * 64 + 3 * 128)
    layers = 2 * keys * len(heads)
    for read in (heads, predicting):  # by the first layer and by the last
        layers += rest * len(read) + 2 * 64 * sum(map(len, read))
    output = 1024 * 64 * PLAN.rows * 4 * len(SCRIPT)
    assert work["update"]["flops"] == 3 * 2 * (layers + output)


def test_growth_changes_one_thing_at_a_time() -> None:
    points = grpo_step.one_at_a_time((8, 1024, "1m"), [4, 8], [512, 1024], ["1m", "3m"])
    assert points == [(4, 1024, "1m"), (8, 1024, "1m"), (8, 512, "1m"), (8, 1024, "3m")]


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios({"ours": [1.0, 2.0, 4.0], "other": [3.0, 2.0, 8.0]}, "ours") == {"other": spread([3.0, 1.0, 2.0])}


def _refuse(text: str) -> None:
    raise ValueError(text)


@pytest.mark.slow
def test_a_failing_contender_says_why() -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        Worker(_refuse, ("no such thing",), 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rollout_script_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rollout.json"
    base = [*TINY, "--size", "tiny", "--rounds", "2", "--threads", "1", "--out", str(out)]
    rollout.main([*base, "--contenders", "generate-cached", "trl"])
    record = json.loads(out.read_text())
    contenders = record["results"][0]["contenders"]
    peers = ["ours", "generate-cached", *(["trl"] if find_spec("trl") else [])]
    assert list(contenders) == peers == record["settings"]["contenders"]
    assert all(len(row["rounds"]) == 2 and row["memory"]["peak_mb"] > 0 for row in contenders.values())
    assert "times_ours" not in contenders["ours"]
    assert record["results"][0]["logprob_difference"] < rollout.TOLERANCE
    assert "decoding" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.gpu
def test_the_rollout_script_runs_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    out = tmp_path / "rollout.json"
    base = [*TINY, "--size", "tiny", "--device", "cuda", "--dtype", "bfloat16", "--rounds", "1"]
    rollout.main([*base, "--contenders", "generate", "generate-cached", "--out", str(out)])
    assert json.loads(out.read_text())["results"][0]["ours_split"]["ceilings"]["bytes_per_s"] > 1e11


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sft_script_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "sft.json"
    sft.main(["--size", "tiny", "--quick", "--batch", "4", "--length", "128", "--threads", "1", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert [row["arithmetic"] for row in results] == ["float32", "mixed"]
    assert results[0]["gradient_difference"] < 1e-5
    assert all(row[kind]["times_ours"]["median"] > 0 for row in results for kind in sft.KINDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_step_script_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    grpo_step.main([*TINY, "--size", "tiny", "--rounds", "2", "--threads", "1", "--out", str(out)])
    record = json.loads(out.read_text())["results"][0]
    names = ["ours", "plain rows", *(["trl"] if find_spec("trl") else [])]
    assert list(record["learners"]) == names
    assert max(record["gradient_difference"].values()) < grpo_step.GRADIENT_TOLERANCE
    assert record["norm_difference"] < grpo_step.NORM_TOLERANCE["float32"]
    for name, row in record["learners"].items():
        assert row["memory"]["peak_mb"] > 0
        for part in ("rollout", "update", "all", "processor"):
            assert len(row[part]["rounds"]) == 2
            assert ("times_ours" in row[part]) == (name != "ours")
    assert "times ours" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_growth_of_a_step_is_set_against_its_least_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "growth.json"
    base = ["--size", "tiny", "--groups", "2", "--members", "2", "4", "--prompt", "300", "--observation", "30"]
    grpo_step.main([*base, "--growth", "--shared", "256", "--rounds", "1", "--threads", "1", "--out", str(out)])
    record = json.loads(out.read_text())
    assert [result["setup"]["plan"]["members"] for result in record["results"]] == [2, 4]
    few, many = (result["work"]["update"] for result in record["results"])
    assert few["tokens"] < many["tokens"] < 2 * few["tokens"]
    assert all(0 < share < 1 for result in record["results"] for share in result["reached"].values())
    assert record["largest_over_smallest"]["update"]["counted arithmetic"] >= 1
    assert "per unit of" in capsys.readouterr().out


def test_a_learner_with_another_gradient_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Liar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def work(self, name: str) -> float:
            return 0.0 if name == "ours" else 1e-2

    monkeypatch.setattr(grpo_step, "Worker", Liar)
    with pytest.raises(SystemExit, match="gradients differ"):
        grpo_step.gradient_differences(STEP, ["ours", "plain rows"], 1)
