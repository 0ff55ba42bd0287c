"""benchmarks/learning.py, in small: runs are made once, and figures are those of the tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import learning

pytest.importorskip("transformers")


def _arguments(out: Path, *more: str) -> list[str]:
    words = ["--warm", "tiny", "--out", str(out), "--steps", "2", "--groups", "2", "--group-size", "2", "--every", "1"]
    tools = json.dumps({"tools": ["score_candidates", "get_item_stats", "candidates_analyze"]})
    return [*words, "--valid", "4", "--tasks", "6", "--seeds", "3", "--env", tools, *more]


def test_rates_name_algorithms(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        learning.parse(_arguments(tmp_path, "--lr", "reinforce=1e-3"))
    assert "reinforce" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_made_once_and_judged_by_task(tmp_path: Path) -> None:
    out = tmp_path / "learning"
    learning.main(_arguments(out, "--lr", "listwise_grpo=1e-4", "ppo=1e-4"))
    results = json.loads((out / "results.json").read_text())
    assert set(results["rows"]) == {"warm start", "list-wise GRPO", "PPO"}
    assert set(results["comparisons"]) == {
        "list-wise GRPO - warm start",
        "PPO - warm start",
        "list-wise GRPO - PPO",
    }
    by_task = json.loads((out / "ppo-seed3" / "test.json").read_text())["ndcg@10"]
    assert len(by_task) == 6
    assert results["rows"]["PPO"]["ndcg@10"]["mean"] == pytest.approx(sum(by_task) / 6)
    curve = results["curves"]["list-wise GRPO"]
    assert curve["steps"] == [0, 1, 2]
    assert curve["tokens"][0] == 0 < curve["tokens"][1] < curve["tokens"][2]
    # Both begin with the warm start, which plays the same valid tasks.
    assert [each[0] for each in curve["values"]] == [each[0] for each in results["curves"]["PPO"]["values"]]
    assert "<svg" in (out / "learning.svg").read_text()

    weights = out / "ppo-seed3" / "best" / "model.safetensors"
    changed = weights.stat().st_mtime_ns
    learning.main(_arguments(out, "--lr", "listwise_grpo=1e-4", "ppo=1e-4"))
    assert weights.stat().st_mtime_ns == changed


def test_a_folder_is_held_to_its_settings(tmp_path: Path) -> None:
    first, _ = learning.parse(_arguments(tmp_path))
    first.claim()
    more, _ = learning.parse(_arguments(tmp_path, "--seeds", "3", "4"))
    more.claim()
    other, _ = learning.parse(_arguments(tmp_path, "--tasks", "7"))
    with pytest.raises(ValueError, match=r"other settings \(tasks: 6\)"):
        other.claim()
