"""Checkpoints: what was saved comes back to the bit, and nothing half-written, damaged or executable is ever read."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from algos.checkpoint import (
    CheckpointError,
    Checkpoints,
    State,
    optimizer_tensors,
    restore_optimizers,
    restore_weights,
)


def state(step: int) -> State:
    tensors = {
        "model/w": torch.full((3, 2), float(step)),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "rng": torch.Generator().manual_seed(step).get_state(),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }
    return State(step, tensors, {"cursor": [step, 2**70], "none": None, "name": "é"})


def test_gives_back_what_was_saved_to_the_bit(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "deep" / "er")
    checkpoints.save(state(3))
    back = checkpoints.load()
    assert (back.step, back.values) == (3, {"cursor": [3, 2**70], "none": None, "name": "é"})
    for name, tensor in state(3).tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)


def test_keeps_the_newest(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 5, 20):
        checkpoints.save(state(step))
    assert checkpoints.steps() == [5, 20]
    assert checkpoints.load(5).step == 5
    checkpoints.save(state(20))
    assert checkpoints.steps() == [5, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000020"]
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(State(1, {}, {"loss": float("nan")}))
    with pytest.raises(TypeError):
        checkpoints.save(State(1, {}, {"path": Path()}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "COMPLETE"])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path: Path, file: str, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(state(step))
    damaged = tmp_path / "step-00000002" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert checkpoints.load().step == 1
    assert "damaged" in caplog.text
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(2)


def test_says_so_where_there_is_none(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        Checkpoints(tmp_path / "nowhere").load()
    with pytest.raises(CheckpointError, match="not a complete"):
        Checkpoints(tmp_path).load(7)


def test_half_written_ones_are_not_seen_and_are_cleared_away(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(state(1))
    shutil.copytree(path, tmp_path / ".step-00000002-0123abcd")
    shutil.copytree(path, tmp_path / "step-00000003")
    (tmp_path / "step-00000003" / "COMPLETE").unlink()
    (tmp_path / "notes").mkdir()
    assert checkpoints.load().step == 1
    checkpoints.save(state(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step-00000001", "step-00000004"]


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_is_refused_even_with_a_right_digest(tmp_path: Path, monkeypatch):
    import hashlib
    import json

    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(tmp_path / "run")
    folder = checkpoints.save(state(1))
    (folder / "state.safetensors").write_bytes(pickle.dumps(_Bomb()))
    digests = {f: hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in ("state.safetensors", "state.json")}
    (folder / "COMPLETE").write_text(json.dumps(digests))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoints.load()
    assert not (tmp_path / "exploded").exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_at_any_moment_there_is_a_sound_one(tmp_path: Path):
    code = (
        "import sys, itertools, torch; from algos.checkpoint import Checkpoints, State\n"
        "for step in itertools.count(1):\n"
        "    tensors = {'w': torch.full((50_000,), float(step))}\n"
        "    Checkpoints(sys.argv[1], keep=1).save(State(step, tensors, {'s': step}))\n"
        "    print(step, flush=True)"
    )
    for delay in (0.0, 0.013, 0.031):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        saved = process.communicate()[0].split()
        back = Checkpoints(tmp_path).load()
        assert back.step >= int(saved[-1] if saved else 1)
        assert torch.equal(back.tensors["w"], torch.full((50_000,), float(back.step)))
        assert back.values == {"s": back.step}


def test_optimizers_go_on_as_if_nothing_had_happened(tmp_path: Path):
    def made() -> tuple[dict[str, nn.Parameter], list[torch.optim.Optimizer]]:
        generator = torch.Generator().manual_seed(0)
        weights = {n: nn.Parameter(torch.randn(4, 4, generator=generator)) for n in ("a", "b.c", "idle")}
        first = torch.optim.AdamW([weights["a"], weights["idle"]], lr=0.1)
        return weights, [first, torch.optim.SGD([weights["b.c"]], lr=0.1, momentum=0.9)]

    def step(weights: dict[str, nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        (weights["a"] ** 3 + weights["b.c"] ** 2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()

    weights, optimizers = made()
    for _ in range(3):
        step(weights, optimizers)
    saved = {f"model/{n}": w for n, w in weights.items()} | optimizer_tensors(optimizers, weights)
    Checkpoints(tmp_path).save(State(3, saved))
    step(weights, optimizers)

    others, again = made()
    tensors = Checkpoints(tmp_path).load().tensors
    restore_weights(others, tensors)
    restore_optimizers(again, others, tensors)
    step(others, again)
    assert all(torch.equal(weights[name], others[name]) for name in weights)

    with pytest.raises(CheckpointError, match="another model"):
        restore_weights({"a": weights["a"]}, tensors)
    with pytest.raises(CheckpointError, match="shape"):
        restore_weights(others | {"a": nn.Parameter(torch.zeros(2, 2))}, tensors)
    with pytest.raises(CheckpointError, match="not trained here"):
        restore_optimizers(again, {"b.c": others["b.c"]}, tensors)
