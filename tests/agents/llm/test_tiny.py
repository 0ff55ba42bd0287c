"""The embedded policy: small, quick to load, no network; it calls tools, answers validly and beats popularity."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from agentrec_env.types import StopReason
from agentrec_env.vector import RecVectorEnv
from agents import play
from agents.llm.agent import LLMAgent
from agents.llm.loading import TINY
from agents.llm.policy import Policy
from algos.questions import pair_environment

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the embedded model needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_it_is_small_and_plain():
    assert {path.name for path in TINY.iterdir()} == FILES
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 8e6
    with safe_open(TINY / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
        assert 1e6 <= sum(file.get_tensor(name).numel() for name in names) <= 3e6
    config = json.loads((TINY / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert "auto_map" not in config


@pytest.mark.usefixtures("offline")
def test_it_loads_in_a_moment_without_a_network():
    Policy.from_pretrained("tiny", device="cpu")  # what transformers imports on the way is not its fault
    begin = time.process_time()
    policy = Policy.from_pretrained("tiny", device="cpu")
    assert time.process_time() - begin < 1.0
    assert policy.shares
    assert policy.context >= 4096


def test_its_card_says_how_it_was_made():
    card = (TINY / "README.md").read_text()
    for word in ("python -m algos.sft", "seed", "577b451b7ee1150d", "N@10", "minutes"):
        assert word in card


def figures(tasks: range, **world: str) -> dict[str, float]:
    envs = RecVectorEnv(32, task_split="test", **world)
    episodes = play(envs, LLMAgent("tiny", temperature=0.0, device="cpu"), tasks)
    popular = play(envs, "popularity", tasks)
    return {
        "answered": sum(episode.stop is StopReason.ANSWERED for episode in episodes) / len(tasks),
        "called": sum(episode.calls > 0 for episode in episodes) / len(tasks),
        "ndcg": sum(episode.metrics["ndcg@10"] for episode in episodes) / len(tasks),
        "popularity": sum(episode.metrics["ndcg@10"] for episode in popular) / len(tasks),
    }


def test_it_calls_tools_and_answers():
    found = figures(range(16))
    assert found["answered"] >= 15 / 16
    assert found["called"] == 1.0


@pytest.mark.slow
def test_it_ranks_validly_and_beats_popularity():
    found = figures(range(500))
    assert found["answered"] > 0.99
    assert found["called"] > 0.99
    assert found["ndcg"] > found["popularity"] + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["office", "cds", "beauty"])
def test_it_ranks_real_items_that_it_has_never_seen(shared_data: Path, name: str):
    found = figures(range(150), dataset=str(shared_data / name), split="leave_one_out")
    assert found["answered"] > 0.99
    assert found["called"] > 0.99
    assert found["ndcg"] > found["popularity"] + 0.05


@pytest.mark.slow
def test_it_answers_questions_about_two_items():
    envs = pair_environment(RecVectorEnv(32, task_split="test"))[0]
    episodes = play(envs, LLMAgent("tiny", temperature=0.0, device="cpu"), range(500))
    assert sum(bool(episode.ranking) for episode in episodes) / 500 > 0.99
    for direction in ("MORE", "LESS"):
        asked = [episode.rank == 1 for episode in episodes if direction in episode.prompt.partition("\n")[0]]
        assert sum(asked) / len(asked) > 0.55, direction  # of 250, chance is above that in 5 %


def test_it_is_read_from_the_installed_package(tmp_path: Path):
    code = "from agents.llm.policy import Policy; print(Policy.from_pretrained('tiny', device='cpu').context)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 4096
