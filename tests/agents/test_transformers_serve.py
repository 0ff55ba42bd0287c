"""The endpoint agent against a real server, `transformers serve`, with models made here and with the embedded one."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import agents
from agentrec_env.actions import render
from agentrec_env.data.world import World
from agentrec_env.types import StopReason, ToolCall
from agentrec_env.vector import RecVectorEnv
from agents import play
from agents.endpoint import Endpoint, EndpointError
from tests.agents.llm.conftest import ADDED, tiny_model, tiny_tokenizer

TINY = Path(agents.__file__).parent / "llm" / "tiny"
CALL = '{"name":"score_candidates","arguments":{}}'
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if messages[-1].role == "tool" %}<think>{% endif %}{% endif %}"""

pytest.importorskip("fastapi", reason="transformers serve needs pip install 'transformers[serving]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """The URL of a server that has loaded the model in `folder`; gone at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--host", "127.0.0.1", "--port", port]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as output:
        process = subprocess.Popen([*map(str, command)], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 150
        while not healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def healthy(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def chain_model(follows: Mapping[int, int], vocab_size: int) -> Qwen3ForCausalLM:
    """A Qwen3 in which a token alone decides the next: attention and MLP add nothing to its embedding."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        embedding = torch.randn(vocab_size, 64, generator=generator)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        for token, after in follows.items():
            model.lm_head.weight[after] += embedding[token]
    return model


def test_calls_and_answers_of_a_real_server(shop: World, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(added=(*ADDED, CALL))
    tokenizer.chat_template = TEMPLATE
    acts = f"\n<tool_call>{CALL}</tool_call><|im_end|>", "<think></think><answer>[8]</answer><|im_end|>"
    chains = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in acts]
    follows = {a: b for chain in chains for a, b in itertools.pairwise(chain)}
    model = chain_model(follows, len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with transformers_serve(tmp_path / "model", tmp_path / "log") as url:
        agent = Endpoint(url, str(tmp_path / "model"), temperature=0, max_turn_tokens=40, concurrency=4)
        episodes = play(RecVectorEnv(4, world=shop, task_split="test"), agent, range(6))
        for episode in episodes:
            assert episode.stop == StopReason.ANSWERED, episode.error
            call = ToolCall("score_candidates", {})
            assert episode.turns[0].action == render([call]), "the server gave the call as text, not natively"
            assert [turn.calls for turn in episode.turns] == [(call,), ()]
            assert episode.ranking == (episode.candidates[7],)
            assert episode.info["completion_tokens"] > 0
        assert agent.metrics["requests"] == 13
        assert agent.metrics["failures"] == 0
        with pytest.raises(EndpointError, match="pinned"):
            play(RecVectorEnv(1, world=shop, task_split="test"), Endpoint(url, "another"), range(6))


def test_what_a_random_model_says_ends_every_episode(shop: World, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 16))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with transformers_serve(tmp_path / "model", tmp_path / "log") as url:
        agent = Endpoint(url, str(tmp_path / "model"), max_turn_tokens=60, retries=1)
        episodes = play(RecVectorEnv(4, world=shop, task_split="test"), agent, range(6))
        assert all(e.stop in (StopReason.INVALID, StopReason.OVERFLOW, StopReason.ANSWERED) for e in episodes)
        again = Endpoint(url, str(tmp_path / "model"), max_turn_tokens=60, temperature=0, concurrency=1)
        runs = [play(RecVectorEnv(n, world=shop, task_split="test"), again, range(3)) for n in (1, 3)]
        assert [[t.action for t in e.turns] for e in runs[0]] == [[t.action for t in e.turns] for e in runs[1]]


@pytest.mark.skipif(not (TINY / "config.json").exists(), reason="the embedded model is not there yet")
@pytest.mark.parametrize("native", [False, True])
def test_the_embedded_model_behind_a_server(shop: World, tmp_path: Path, native: bool) -> None:
    with transformers_serve(TINY, tmp_path / "log") as url:
        agent = Endpoint(url, str(TINY), native_tools=native, temperature=0, max_turn_tokens=80)
        episodes = play(RecVectorEnv(4, world=shop, task_split="test"), agent, range(12))
    answered = [episode.stop == StopReason.ANSWERED for episode in episodes]
    assert sum(answered) >= 11, [episode.error for episode in episodes]
    assert any(episode.calls for episode in episodes)
