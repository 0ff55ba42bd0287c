"""What lies beside the weights: a card that the hub reads, folders that transformers and peft read, and the upload."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.llm import loading
from agents.llm.card import Card
from agents.llm.hub import push_to_hub
from agents.llm.loading import PolicyLoadError
from agents.llm.lora import LoRA
from agents.llm.policy import Policy
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.agents.llm.hub_server import REVISION, TOKEN, serving

CARD = Card(
    "grpo on a shop", "It was made.", {"ndcg@10": 0.51234, "hit@1": 0.25}, "200 valid tasks of a shop", ("grpo",)
)
IDS = torch.tensor([[5, 9, 200, 31, 7]])


@pytest.fixture
def policy() -> Policy:
    return Policy(tiny_model(seed=3), tiny_tokenizer())


def test_the_front_matter_is_the_hubs(policy: Policy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "model", card=CARD)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("transformers", "text-generation", None)
    assert data.tags == ["agentrec", "recommendation", "tool-use", "grpo"]
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures == {"ndcg@10": 0.5123, "hit@1": 0.25}
    assert {result.dataset_name for result in data.eval_results} == {"200 valid tasks of a shop"}
    assert card.text.startswith("# grpo on a shop\n\nIt was made.\n\n## How to use it\n")


def test_a_policy_without_history_says_so(policy: Policy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert "not known" in card.text
    assert card.data.eval_results is None


def test_figures_stay_with_the_weights_that_were_judged(policy: Policy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "judged", card=CARD)
    again = Policy.from_pretrained(tmp_path / "judged", value_head=True, device="cpu")
    again.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_bytes() == (tmp_path / "judged" / "README.md").read_bytes()
    again.save_pretrained(tmp_path / "rounded", dtype="bfloat16")
    with torch.no_grad():
        next(iter(again.trainable().values()))[0] += 1.0
    again.save_pretrained(tmp_path / "trained")
    for other in ("rounded", "trained"):
        assert "0.5123" not in (tmp_path / other / "README.md").read_text()


def test_the_model_on_the_hub_is_remembered(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.save_pretrained(tmp_path / "download")
    (tmp_path / "download" / "README.md").unlink()
    monkeypatch.setattr(loading, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "download"))
    Policy.from_pretrained("org/base", device="cpu").save_pretrained(tmp_path / "one", card=CARD)
    Policy.from_pretrained(tmp_path / "one", device="cpu").save_pretrained(tmp_path / "two", card=CARD)
    assert ModelCard.load(tmp_path / "two" / "README.md").data.base_model == "org/base"
    (tmp_path / "two" / "README.md").write_text("---\n[not a mapping\n---\nnotes\nbase_model: org/other\n")
    assert Policy.from_pretrained(tmp_path / "two", device="cpu").origin is None


def test_plain_transformers_reads_the_folder(policy: Policy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "model", card=CARD)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(model(IDS).logits, tiny_model(seed=3)(IDS).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert tokenizer("Red Guitar Strap").input_ids == policy.tokenizer("Red Guitar Strap").input_ids


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft reads the old name
def test_plain_peft_reads_an_adapter(policy: Policy, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    policy.save_pretrained(tmp_path / "base")
    adapted = Policy.from_pretrained(tmp_path / "base", lora=LoRA(rank=2), device="cpu")
    with torch.no_grad():
        for weight in adapted.trainable().values():
            weight.add_(0.05)
    adapted.save_pretrained(tmp_path / "adapter", card=CARD)
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    )
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, adapted.model(IDS).logits)
        assert not torch.allclose(plain(IDS).logits, tiny_model(seed=3)(IDS).logits)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.library_name == "peft"
    assert f'from_pretrained("{tmp_path / "base"}"), "FOLDER"' in card.text


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the hub was asked for, and the files that it was given."""
    asked: dict[str, Any] = {}

    def create(self: HfApi, repo_id: str, **options: Any) -> Any:
        asked["create"] = {"repo_id": repo_id, "token": self.token, **options}
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload(self: HfApi, *, folder_path: Path, **options: Any) -> Any:
        asked["upload"] = options
        asked["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url="https://hub.test/me/policy/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return asked


def test_a_policy_goes_to_the_hub(policy: Policy, hub: dict[str, Any]) -> None:
    url = policy.push_to_hub("policy", card=CARD, private=True, token="t", commit_message="First", revision="dev")
    assert url == "https://hub.test/me/policy/commit/1"
    assert hub["create"] == {"repo_id": "policy", "private": True, "token": "t", "exist_ok": True}
    assert hub["upload"] == {"repo_id": "me/policy", "commit_message": "First", "revision": "dev"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= hub["files"].keys()
    assert b"grpo on a shop" in hub["files"]["README.md"]


def test_a_runs_folder_goes_to_the_hub_as_it_is(policy: Policy, hub: dict[str, Any], tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "best", card=CARD)
    push_to_hub(tmp_path / "best", "policy")
    assert hub["files"] == {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    assert "AgentRec" in hub["upload"]["commit_message"]
    Policy.from_pretrained(tmp_path / "best", device="cpu").push_to_hub("policy")
    assert b"0.5123" in hub["files"]["README.md"]
    with pytest.raises(PolicyLoadError, match="holds no policy"):
        push_to_hub(tmp_path, "policy")


ROUND = """
import sys
from pathlib import Path
from agents.llm.hub import push_to_hub
from agents.llm.policy import Policy

print(push_to_hub(sys.argv[1], "policy", commit_message="First"))
Policy.from_pretrained("me/policy", device="cpu").save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_there_and_back_over_http(policy: Policy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "best", card=CARD)
    with serving() as hub:
        here = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", ROUND, tmp_path / "best", tmp_path / "again"]
        run = subprocess.run(
            [*map(str, command)], env=os.environ | here | {"HF_TOKEN": TOKEN}, capture_output=True, text=True
        )
        assert run.returncode == 0, (run.stderr, hub.refused)
        assert run.stdout.strip() == f"{hub.url}/me/policy/commit/{REVISION}"
        assert hub.files["me/policy"] == {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
        assert hub.messages == ["First"]
        weights = "model.safetensors"
        assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "best" / weights).read_bytes()
        assert ModelCard.load(tmp_path / "again" / "README.md").data.base_model == "me/policy"
        run = subprocess.run(
            [*map(str, command)], env=os.environ | here | {"HF_TOKEN": "x"}, capture_output=True, text=True
        )
        assert "401" in run.stderr
        assert TOKEN not in run.stderr
