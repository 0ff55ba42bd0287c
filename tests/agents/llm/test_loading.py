"""Saving and loading: what comes back, what is refused and how, and that a folder is never half written."""

from __future__ import annotations

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.llm import loading
from agents.llm.loading import PolicyLoadError
from agents.llm.lora import LoRA
from agents.llm.packing import packs
from agents.llm.policy import Policy
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer
from tests.agents.llm.transcripts import groups


@pytest.fixture
def folder(tmp_path):
    Policy(tiny_model(), tiny_tokenizer(), value_head=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def everything(policy):
    return np.concatenate(policy.score(groups(0)))


def test_what_is_saved_comes_back(folder):
    policy = Policy(tiny_model(seed=5), tiny_tokenizer(), value_head=True)
    with torch.no_grad():
        policy.value_head.weight.fill_(0.5)
    policy.save_pretrained(folder)
    again = Policy.from_pretrained(str(folder), value_head=True, device="cpu")
    np.testing.assert_array_equal(everything(again), everything(policy))
    assert torch.equal(again.value_head.weight, policy.value_head.weight)
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template
    assert Policy.from_pretrained(folder, device="cpu").value_head is None
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert len({path.stat().st_mode & 0o777 for path in folder.iterdir()}) == 1, "all can be read by who may read one"


def test_weights_can_be_saved_smaller(folder):
    policy = Policy(tiny_model(seed=5), tiny_tokenizer())
    policy.save_pretrained(folder, dtype="bfloat16")
    kept = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    again = Policy.from_pretrained(folder, device="cpu")
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    assert np.abs(everything(again) - everything(policy)).mean() < 0.02


def test_an_adapter_is_saved_alone_and_finds_its_base(folder, tmp_path):
    policy = Policy.from_pretrained(folder, lora=LoRA(rank=4), value_head=True, device="cpu")
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(0.05)
    policy.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = Policy.from_pretrained(tmp_path / "adapter", value_head=True, device="cpu")
    np.testing.assert_array_equal(everything(again), everything(policy))
    assert again.trainable().keys() == policy.trainable().keys()
    with again.reference():
        np.testing.assert_array_equal(everything(again), everything(Policy.from_pretrained(folder, device="cpu")))
    with pytest.raises(PolicyLoadError, match="holds an adapter already"):
        Policy.from_pretrained(tmp_path / "adapter", lora=LoRA())


def test_damaged_adapters(folder, tmp_path):
    Policy.from_pretrained(folder, lora=LoRA(rank=4), device="cpu").save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    good = json.loads(config.read_text())
    for bad, message in (
        ("{", "damaged"),
        (json.dumps({**good, "base_model_name_or_path": None}), "does not say which model"),
        (json.dumps({**good, "base_model_name_or_path": "/not/there"}), "no folder /not/there"),
        (json.dumps({**good, "r": 8}), "cannot be put on its base model"),
        (json.dumps({**good, "peft_type": "IA3"}), "IA3"),
    ):
        config.write_text(bad)
        with pytest.raises(PolicyLoadError, match=message):
            Policy.from_pretrained(tmp_path / "adapter", device="cpu")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(PolicyLoadError, match="other formats can run code"):
        Policy.from_pretrained(tmp_path / "adapter", device="cpu")


def test_gradient_checkpointing_saves_what_layers_keep(folder):
    def kept(**options):
        sizes = []
        policy = Policy.from_pretrained(folder, device="cpu", **options)
        (pack,) = packs(groups(0), 10**6)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            policy(pack).logprobs.sum()
        return sum(sizes)

    assert kept(gradient_checkpointing=True) < 0.5 * kept()


def test_a_save_that_fails_leaves_the_old_folder(folder, monkeypatch):
    policy = Policy(tiny_model(seed=5), tiny_tokenizer())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(policy.tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="no space"):
        policy.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else"):
        Policy(tiny_model(), tiny_tokenizer()).save_pretrained(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_missing_sources(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "empty", "holds no model"),
        (tmp_path / "not there", "there is no folder"),
        ("./not there", "there is no folder"),
        ("a/b/c", "there is no folder"),
        (folder / "config.json", "is a file"),
        ("nobody/no-such-model", "cannot be reached"),
        ("not a valid id", "cannot load the files"),
    ):
        with pytest.raises(PolicyLoadError, match=message):
            Policy.from_pretrained(source, device="cpu")
    monkeypatch.setattr(loading, "TINY", tmp_path / "empty")
    with pytest.raises(PolicyLoadError, match="embedded model is missing"):
        Policy.from_pretrained("tiny")


def test_unknown_ids_on_a_hub_that_answers(monkeypatch):
    def unknown(name, **_):
        raise OSError(f"404 Client Error. Repository Not Found for {name}")

    monkeypatch.setattr(loading, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    with pytest.raises(PolicyLoadError, match=r"(?s)404 Client Error.*Give \"tiny\", a folder"):
        Policy.from_pretrained("org/misspelt", device="cpu")


def test_a_hub_id_is_read_from_its_download_without_code_or_pickles(folder, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(loading, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    policy = Policy.from_pretrained("org/name", lora=LoRA(rank=2), device="cpu")
    assert asked["name"] == "org/name"
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["allow_patterns"])
    assert policy.model.peft_config["default"].base_model_name_or_path == "org/name"


def test_damaged_folders(folder, tmp_path):
    with pytest.raises(PolicyLoadError, match="'float64' is not supported; choose one of float32, mixed, bfloat16"):
        Policy.from_pretrained(folder, dtype="float64")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(PolicyLoadError, match="cannot load the model"):
        Policy.from_pretrained(folder, device="cpu")
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(PolicyLoadError, match="safetensors"):
        Policy.from_pretrained(folder, device="cpu")


def test_incomplete_weights_are_no_random_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyLoadError, match=r"lacks weights.*layers.1.mlp.up_proj"):
        Policy.from_pretrained(folder, device="cpu")


def test_code_of_a_model_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(PolicyLoadError, match="cannot load the model"):
        Policy.from_pretrained(folder, device="cpu")


def test_a_folder_without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(PolicyLoadError, match="has no tokenizer"):
        Policy.from_pretrained(folder, device="cpu")
