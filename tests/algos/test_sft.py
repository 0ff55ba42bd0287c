"""The warm start: the right loss, the same update however it is cut, bit-identical resumption, and it learns."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agentrec_env.data.synthetic import make_world
from agentrec_env.data.world import World
from agentrec_env.scenario import Config as Environment
from agentrec_env.vector import RecVectorEnv
from agents import play
from agents.llm.agent import LLMAgent
from agents.llm.fresh import NewModel, new_policy
from agents.llm.policy import Policy
from agents.protocol import Observation
from agents.teacher import Teacher
from algos.checkpoint import Checkpoints
from algos.command import main
from algos.config import Optimization
from algos.demonstrations import Lessons
from algos.sft import MAX_BAD_STEPS, SFT, SFTConfig

SMALL = NewModel(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, vocabulary=700, text_episodes=5)
FEW = {"ranker": "popularity", "plan": ["get_item_stats"], "variety": 0.2}


@pytest.fixture(scope="module")
def world() -> World:
    return World(make_world(num_users=120, num_items=560, seed=1).dataset)


@pytest.fixture(scope="module")
def start(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random policy, so that not every test trains a tokenizer."""
    folder = tmp_path_factory.mktemp("start") / "policy"
    new_policy(SMALL, RecVectorEnv(1, world=world), seed=0).save_pretrained(folder)
    return str(folder)


def config(out: Path, model: str, **settings: Any) -> SFTConfig:
    return replace(
        SFTConfig(
            out=out,
            model=model,
            new=SMALL,
            teacher_args=json.dumps(FEW),
            steps=6,
            episodes=3,
            rows=4,
            evaluate_every=0,
            checkpoint_every=2,
            lessons=Lessons(prompt="numbers"),
            optimization=Optimization(lr=3e-3, warmup=2),
            device="cpu",
            threads=1,
        ),
        **settings,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Interrupting:
    """A teacher that asks its run to stop after some batches, as a signal would at any moment."""

    run: SFT
    left: int

    def __init__(self, **settings: Any) -> None:
        self.inner = Teacher(**settings)

    def bind(self, envs: Any) -> None:
        self.inner.bind(envs)

    def reset(self, num_envs: int, seed: int) -> None:
        self.inner.reset(num_envs, seed)
        Interrupting.left -= 1
        if Interrupting.left == 0:
            Interrupting.run.stop()

    def act(self, observations: list[Observation], rows: list[int]) -> list[str]:
        return self.inner.act(observations, rows)


def test_the_loss_is_the_mean_over_all_sampled_tokens(tmp_path: Path, world: World, start: str):
    run = SFT(config(tmp_path, start), world=world)
    transcripts = run.demonstrations.batch(0, 3)
    losses = []
    with torch.no_grad():
        for transcript in transcripts:
            ids = torch.tensor(transcript.ids)[None]
            logprobs = run.policy.model(ids).logits[0, :-1].log_softmax(-1)
            losses.append(-logprobs[torch.arange(len(transcript) - 1), ids[0, 1:]][torch.tensor(transcript.mask[1:])])
    assert run.update(transcripts)["loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)


def test_questions_weigh_as_much_as_their_share_of_the_episodes(tmp_path: Path, world: World, start: str):
    run = SFT(config(tmp_path, start, episodes=4, questions=1), world=world)
    lists, questions = run.demonstrations.batch(0, 3), run.questions.batch(0, 1)
    nll = {
        name: -np.concatenate([run.policy.score([each])[0][each.mask] for each in batch]).mean()
        for name, batch in (("lists", lists), ("questions", questions))
    }
    figures = run.update(lists, questions)
    assert figures["questions"] == pytest.approx(nll["questions"], abs=1e-5)
    assert figures["loss"] == pytest.approx(0.75 * nll["lists"] + 0.25 * nll["questions"], abs=1e-5)


def test_an_update_does_not_depend_on_the_micro_batches(tmp_path: Path, world: World, start: str):
    after = []
    for micro_tokens in (1, 900, 100_000):
        run = SFT(config(tmp_path / str(micro_tokens), start, micro_tokens=micro_tokens), world=world)
        run.policy.model.double()  # Adam makes a whole step of a gradient that is rounding alone
        batch = run.demonstrations.batch(0, 6)
        for _ in range(2):
            figures = run.update(batch)
        after.append((figures, {name: weight.detach() for name, weight in run.weights.items()}))
    for figures, found in after[1:]:
        assert figures["loss"] == pytest.approx(after[0][0]["loss"], abs=1e-5)
        for name, weight in found.items():
            torch.testing.assert_close(weight, after[0][1][name], atol=1e-6, rtol=1e-5)


def test_memory_that_runs_out(tmp_path: Path, world: World, start: str, monkeypatch: pytest.MonkeyPatch):
    runs = [SFT(config(tmp_path / name, start), world=world) for name in ("wide", "tight")]
    for run in runs:
        run.policy.model.double()
    batch = runs[0].demonstrations.batch(0, 6)
    wide = runs[0].update(batch)
    longest, forward = max(map(len, batch)), Policy.forward

    def small(self: Policy, pack: Any, *arguments: Any) -> Any:
        if pack.tokens > longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pack, *arguments)

    monkeypatch.setattr(Policy, "forward", small)
    assert runs[1].update(batch)["loss"] == pytest.approx(wide["loss"], abs=1e-5)
    for name, weight in runs[1].weights.items():
        torch.testing.assert_close(weight, runs[0].weights[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_stopped_and_resumed_it_ends_the_same(tmp_path: Path, world: World, start: str, method: Any):
    optimization = Optimization(method=method, warmup=2)
    whole = config(tmp_path / "whole", start, optimization=optimization)
    SFT(whole, world=world).train()
    parts = config(tmp_path / "parts", start, optimization=optimization, teacher=f"{__name__}:Interrupting")
    for attempt in range(3):
        Interrupting.left = 2 + attempt
        Interrupting.run = SFT(replace(parts, resume=attempt > 0), world=world)
        Interrupting.run.train()
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert [line["step"] for line in metrics(tmp_path / "parts")] == list(range(6))
    timings = (tmp_path / "parts" / "timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in timings] == list(range(6))


def test_resumed_between_evaluations_the_best_policy_is_the_same(tmp_path: Path, world: World, start: str):
    settings = {"evaluate_every": 2, "evaluate_tasks": 4}
    SFT(config(tmp_path / "whole", start, **settings), world=world).train()
    parts = config(tmp_path / "parts", start, teacher=f"{__name__}:Interrupting", **settings)
    for attempt in range(3):
        Interrupting.left = 2 + attempt
        Interrupting.run = SFT(replace(parts, resume=attempt > 0), world=world)
        Interrupting.run.train()
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    best = [load_file(tmp_path / name / "best" / "model.safetensors") for name in ("whole", "parts")]
    assert equal(*best)


@pytest.mark.slow
def test_a_language_model_teaches_by_its_better_episodes(tmp_path: Path):
    teacher = {"teacher": "llm", "teacher_args": json.dumps({"model": "tiny"})}
    lessons = Lessons(best_of=2, above=0.2)
    run = SFT(config(tmp_path, "tiny", **teacher, lessons=lessons, steps=2, env=Environment()))
    episodes = run.demonstrations.episodes(0, 4)
    assert all(episode.reward > 0.2 and episode.calls > 0 for episode in episodes)
    first = run.demonstrations.batch(0, 4)
    for episode, transcript in zip(episodes, first, strict=False):
        said = run.policy.tokenizer.decode(transcript.ids[transcript.mask])
        assert all(turn.action.strip() in said for turn in episode.turns)
    run.train()
    assert [line["step"] for line in metrics(tmp_path)] == [0, 1]


def test_killed_after_a_checkpoint_the_steps_since_are_done_again(tmp_path: Path, world: World, start: str):
    whole = config(tmp_path / "whole", start, steps=5)
    SFT(whole, world=world).train()
    killed = config(tmp_path / "killed", start, steps=5)
    SFT(killed, world=world).train()
    folder = tmp_path / "killed"
    for step in (4, 5):
        name = folder / "checkpoints" / f"step-{step:08d}"
        if name.exists():
            (name / "COMPLETE").unlink()
    run = SFT(replace(killed, resume=True), world=world)
    assert run.step in (0, 2)
    run.train()
    assert equal(weights(tmp_path / "whole"), weights(folder))
    assert metrics(tmp_path / "whole") == metrics(folder)


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path, world: World, start: str):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        SFT(config(tmp_path / str(number), "new", steps=2, seed=seed), world=world).train()
        found.append(weights(tmp_path / str(number)))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def always(observation: Observation) -> str:
    """A teacher that is quickly learned from."""
    if observation["turn"] == 0:
        return '<tool_call>{"name": "get_user_profile", "arguments": {}}</tool_call>'
    return "<answer>[3, 1, 2]</answer>"


def test_some_lessons_are_questions_and_the_policy_is_judged_on_both(tmp_path: Path, world: World, start: str):
    settings = config(tmp_path, start, questions=2, steps=1, lessons=Lessons(), evaluate_every=1, evaluate_tasks=5)
    run = SFT(settings, world=world)
    decode = run.policy.tokenizer.decode
    seen: list[str] = []
    update = run.update

    def told(*kinds: Any) -> dict[str, float]:
        seen.extend(decode(each.ids) for kind in kinds for each in kind)
        return update(*kinds)

    run.update = told  # type: ignore[method-assign]
    figures = run.train()
    asked = [text for text in seen if "The two items:" in text]
    assert len(seen) == 3
    assert len(asked) == 2
    assert all(re.search(r"<answer>\\boxed\{[AB]\}</answer>", text) for text in asked)
    assert all("The 20 candidates:" in text for text in set(seen) - set(asked))
    assert {"valid/answered", "valid/questions_answered", "valid/questions_right"} <= figures.keys()
    assert metrics(tmp_path)[-1]["valid/questions_answered"] == figures["valid/questions_answered"]


def either(observation: Observation) -> str:
    """A teacher of both forms."""
    if observation["turn"] == 0:
        return '<tool_call>{"name": "get_user_profile", "arguments": {}}</tool_call>'
    return "<answer>\\boxed{B}</answer>" if len(observation["candidates"]) == 2 else "<answer>[3, 1, 2]</answer>"


@pytest.mark.slow
def test_lists_and_questions_are_learned_together(tmp_path: Path, world: World, start: str):
    settings = config(
        tmp_path,
        start,
        teacher=f"{__name__}:either",
        teacher_args="{}",
        episodes=4,
        questions=2,
        steps=200,
        evaluate_every=200,
        evaluate_tasks=40,
        checkpoint_every=200,
        lessons=Lessons(),
        optimization=Optimization(method="muon", lr=1e-2, warmup=5),
    )
    figures = SFT(settings, world=world).train()
    assert figures["valid/answered"] == figures["valid/questions_answered"] == 1.0
    assert 0.3 < figures["valid/questions_right"] < 0.7  # it always says B


@pytest.mark.slow
def test_it_learns_to_answer(tmp_path: Path, world: World, start: str):
    settings = config(
        tmp_path,
        start,
        teacher=f"{__name__}:always",
        teacher_args="{}",
        steps=200,
        evaluate_every=200,
        evaluate_tasks=12,
        checkpoint_every=200,
        lessons=Lessons(),
        optimization=Optimization(method="muon", lr=1e-2, warmup=5),
    )
    run = SFT(settings, world=world)
    figures = run.train()
    assert figures["valid/answered"] == 1.0
    assert figures["valid/calls"] == 1.0
    agent = LLMAgent(policy=Policy.from_pretrained(tmp_path / "best", device="cpu"), temperature=0.0)
    episodes = play(run.envs, agent, range(6))
    assert {tuple(e.candidates.index(i) + 1 for i in e.ranking) for e in episodes} == {(3, 1, 2)}
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    assert list((tmp_path / "tensorboard").iterdir())


def test_updates_that_are_not_finite_are_left_out_and_counted(tmp_path: Path, world: World, start: str):
    run = SFT(config(tmp_path, start), world=world)
    batch = run.demonstrations.batch(0, 3)
    run.update(batch)
    name, weight = next(iter(run.weights.items()))
    kept = {name: weight.detach().clone() for name, weight in run.weights.items()}
    with torch.no_grad():
        weight.fill_(torch.inf)
    for count in range(1, MAX_BAD_STEPS):
        assert run.update(batch)["skipped"] == count
    with torch.no_grad():
        weight.copy_(kept[name])
    assert all(torch.equal(kept[name], weight) for name, weight in run.weights.items())
    assert run.update(batch)["loss"] > 0
    with torch.no_grad():
        weight.fill_(torch.nan)
    for _ in range(MAX_BAD_STEPS - 1):
        run.update(batch)
    with pytest.raises(RuntimeError, match="not finite"):
        run.update(batch)


def test_an_adapter_alone_is_trained_where_it_is_asked_for(tmp_path: Path, world: World, start: str):
    pytest.importorskip("peft")
    SFT(config(tmp_path / "base", start, steps=1), world=world).train()
    base = str(tmp_path / "base" / "model")
    run = SFT(config(tmp_path / "adapted", base, lora_rank=2, steps=2), world=world)
    assert all("lora_" in name for name in run.weights)
    run.train()
    loaded = Policy.from_pretrained(tmp_path / "adapted" / "model", device="cpu")
    batch = run.demonstrations.batch(0, 2)
    assert np.allclose(loaded.score(batch)[0], run.policy.score(batch)[0], atol=1e-5)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, world: World, start: str):
    first = config(tmp_path, start, steps=1)
    SFT(first, world=world).train()
    with pytest.raises(FileExistsError, match="--resume"):
        SFT(first, world=world)
    with pytest.raises(ValueError, match="episodes: 3, now 4"):
        SFT(replace(first, resume=True, episodes=4), world=world)
    with pytest.raises(FileNotFoundError, match="without --resume"):
        SFT(replace(first, out=tmp_path / "none", resume=True), world=world)
    (tmp_path / "checkpoints" / "step-00000001" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        SFT(replace(first, resume=True), world=world)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1]


def test_repeats_become_unlikely_beside_the_answer(tmp_path: Path, world: World, start: str):
    ends = {}
    for weight in (0.0, 1e-9, 20.0):
        settings = {"repeats": weight, "steps": 40, "lessons": Lessons(prompt="none")}
        run = SFT(config(tmp_path / str(weight), start, **settings), world=world)
        batch = run.demonstrations.batch(0, 4)
        ends[weight] = [run.update(batch) for _ in range(40)][-1]
    assert ends[0.0]["repeats"] == 0
    assert ends[1e-9]["loss"] == pytest.approx(ends[0.0]["loss"], rel=0.05)
    assert 0 < ends[20.0]["repeats"] < 0.7 * ends[1e-9]["repeats"]


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"lora_rank": -1},
        {"model": "new", "lora_rank": 4},
        {"teacher_args": "popularity"},
        {"teacher_args": "[]"},
        {"repeats": -1},
        {"repeats": 1, "env": Environment(num_candidates="catalog")},
        {"questions": 16},
        {"questions": -1},
        {"questions": 1, "lessons": Lessons(prompt="none")},
        {"questions": 1, "env": Environment(num_candidates="catalog")},
        {"questions": 1, "env": Environment(mode="pair", num_candidates=2, reward="pair")},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any]):
    with pytest.raises(ValueError, match=r"got|leave"):
        SFTConfig(**bad)


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as ended:
        main("sft", ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--teacher", "--lora-rank", "--lr", "--resume", "--env.dataset", "--new.hidden", "--best-of"):
        assert flag in shown


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_the_command_killed_at_any_moment_and_resumed(tmp_path: Path, world: World, start: str):
    data = world.dataset
    assert data.time is not None
    lines = [
        f"{data.user_ids[u]},{data.items.ids[i]},{r},{t}"
        for u, i, r, t in zip(data.user, data.item, data.rating, data.time, strict=True)
    ]
    (tmp_path / "shop.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *lines]))
    command = [sys.executable, "-m", "algos.sft", "--model", "new", "--teacher-args", json.dumps(FEW), "--steps", "12"]
    command += ["--episodes", "2", "--evaluate-every", "0", "--checkpoint-every", "1", "--threads", "1", "--rows", "2"]
    command += ["--device", "cpu", "--env.dataset", str(tmp_path / "shop.csv"), "--new.hidden", "32", "--new.layers"]
    command += ["1", "--new.text-episodes", "5", "--new.vocabulary", "500", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    generator = np.random.default_rng(0)
    arguments = [*command, str(tmp_path / "killed")]
    for number, how in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        process = subprocess.Popen(arguments + ["--resume"] * (number > 0))
        while not (tmp_path / "killed" / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(float(generator.uniform(0, 1.5)))
        process.send_signal(how)
        process.wait()
    subprocess.run([*arguments, "--resume"], check=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
