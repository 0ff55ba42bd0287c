"""A run keeps each task's result, goes on after any interruption, and ends in the same tables.

The loop here is the stand-in of conftest.py, so that an interruption can be placed exactly.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run_all, runner
from benchmarks.records import Block, Folder, Place, Record, SettingsMismatchError
from benchmarks.suite import DEFAULT, Row, Suite, slug
from tests.benchmarks.conftest import StandIn

ROWS = ["random", "popularity", "oracle", "pool-20"]
TIMINGS = {"milliseconds", "prepare_seconds", "wall time of this start", "finished", "processes", "command"}


def command(source: str, out: Path, *more: str) -> list[str]:
    base = ["--dataset", source, "--jobs", "0", "--tasks", "48", "--out", str(out)]
    return [*base, *(more or ["--only", *ROWS])]


def numbers(out: Path) -> Any:
    """results.json without what depends on the clock."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in TIMINGS}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads((out / "results.json").read_text(encoding="utf-8")))


def test_a_run_writes_its_reports(source: str, tmp_path: Path, stand_in: StandIn) -> None:
    out = tmp_path / "out"
    assert run_all.main(command(source, out)) == 0
    (track,) = numbers(out)["results"]
    rows = {row["name"]: row for row in track["rows"]}
    assert set(rows) == {"random", "popularity", "oracle"}
    assert track["rows"][0]["name"] == "oracle"
    assert track["tasks"] == 48
    assert rows["random"]["seeds"] == 3
    assert rows["random"]["episodes"] == 144
    assert rows["random"]["order"]["tasks"] == 48
    assert rows["popularity"]["calls"] == {"get_user_profile": 1.0}
    assert "48 of" in track["protocol"]
    assert "pool seed 0" in track["protocol"]
    assert (out / "report.md").exists()
    assert (out / "report.html").exists()
    records = [line for path in out.rglob("*.jsonl") for line in path.read_text().splitlines()[1:]]
    assert len(records) == 144 + 48 + 48 + 3 * 48
    assert {"task", "user", "rank", "ranking", "calls", "stop", "turns", "seconds", "reward", "terms"} <= set(
        json.loads(records[0])
    )


@pytest.mark.parametrize("stop_after", [0, 1, 7, 20])
def test_an_interrupted_run_goes_on(source: str, tmp_path: Path, stand_in: StandIn, stop_after: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_all.main(command(source, whole)) == 0
    total, stand_in.blocks = stand_in.blocks, 0
    stand_in.stop_after = stop_after
    assert run_all.main(command(source, parts)) == 130
    assert not (parts / "results.json").exists()
    stand_in.stop_after = None
    assert run_all.main(command(source, parts)) == 0
    assert stand_in.blocks == total, "finished blocks were played again"
    assert numbers(parts) == numbers(whole)


def test_a_damaged_block_is_played_again(source: str, tmp_path: Path, stand_in: StandIn) -> None:
    out = tmp_path / "out"
    run_all.main(command(source, out))
    before, played = numbers(out), stand_in.blocks
    first, second, third = sorted(out.rglob("random-*/seed0/*.jsonl"))
    first.write_bytes(first.read_bytes()[:-40])
    second.write_text("")
    third.unlink()
    (out / "report.html").unlink()
    assert run_all.main(command(source, out)) == 0
    assert stand_in.blocks == played + 3
    assert numbers(out) == before
    assert not list(out.rglob("*.partial"))


def test_other_settings_are_not_mixed_in(
    source: str, tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_all.main(command(source, out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run_all.main([*command(source, out), "--seed", "1"]) == 2
    told = capsys.readouterr().err
    assert "seed: the folder has 0, this run 1" in told
    assert "another --out" in told
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_rows_and_tracks_can_be_added_later(source: str, tmp_path: Path, stand_in: StandIn) -> None:
    out = tmp_path / "out"
    run_all.main(command(source, out, "--only", "random", "pool-20"))
    played = stand_in.blocks
    assert run_all.main(command(source, out)) == 0
    assert stand_in.blocks > played
    assert run_all.main(command(source, out, "--only", "random", "pool-20", "catalogue")) == 0
    assert {track["track"] for track in numbers(out)["results"]} == {"pool-20", "catalogue"}
    assert run_all.main(command(source, out)) == 0


def test_a_failing_agent_does_not_end_the_run(
    source: str, tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    stand_in.broken_rows = {"popularity"}
    assert run_all.main([*command(source, out), "--agent", "mine:Agent"]) == 1
    (track,) = numbers(out)["results"]
    assert {row["name"] for row in track["rows"]} == {"random", "oracle", "mine:Agent"}
    assert any("No module named 'torch'" in reason for reason in track["missing"].values())
    mine = next(row for row in track["rows"] if row["name"] == "mine:Agent")
    assert mine["failed"] > 0
    assert mine["stops"]["agent_error"] + mine["stops"]["answered"] == 48
    assert "No module named 'torch'" in (out / "report.md").read_text()
    assert "No module named 'torch'" in capsys.readouterr().out
    stand_in.broken_rows = set()
    assert run_all.main([*command(source, out), "--agent", "mine:Agent"]) == 0
    assert not numbers(out)["results"][0]["missing"]


def test_redo_forgets_a_row(source: str, tmp_path: Path, stand_in: StandIn) -> None:
    out = tmp_path / "out"
    run_all.main(command(source, out))
    played = stand_in.blocks
    assert run_all.main([*command(source, out), "--redo", "oracle"]) == 0
    assert stand_in.blocks == played + 6


def test_wrong_command_lines_say_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(["--only", "popularty", "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean 'popularity'" in capsys.readouterr().err
    assert run_all.main(["--tasks", "0", "--only", "pool-20", "--out", str(tmp_path / "out")]) == 2
    assert "at least one task" in capsys.readouterr().err
    assert run_all.main(["--dataset", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert run_all.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(row.name in shown for row in DEFAULT.rows)
    assert not (tmp_path / "out").exists()


def test_the_environment_of_all_rows_can_be_set(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rules = {"tools": ["score_candidates", "tests.fakes:cheap"], "max_calls": 1, "history_length": 3}
    assert run_all.main([*command(source, out, "--only", "scripted", "pool-20"), "--env", json.dumps(rules)]) == 0
    (track,) = numbers(out)["results"]
    assert track["rows"][0]["calls"] == {"score_candidates": 1.0}
    assert '; tools ["score_candidates", "tests.fakes:cheap"]; max_calls 1' in track["protocol"]
    assert "history <= 3" in track["protocol"]
    assert run_all.main(command(source, out, "--only", "scripted", "pool-20")) == 2
    assert "the folder has" in capsys.readouterr().err
    for wrong, told in (
        ('{"max_call": 1}', "Did you mean 'max_calls'"),
        ('{"num_candidates": 5}', "the tracks"),
        ('{"tools": ["score_candidate"]}', "Did you mean 'score_candidates'"),
        ('{"tools": "score_candidates"}', 'write {"tools": ["score_candidates"]}'),
        ('{"max_calls": "4"}', "max_calls"),
    ):
        assert run_all.main(command(source, tmp_path / "other", "--env", wrong)) == 2, wrong
        assert told in capsys.readouterr().err, wrong


def test_a_folder_of_something_else_is_left_alone(source: str, tmp_path: Path, stand_in: StandIn) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    assert run_all.main(command(source, out)) == 2
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_another_order_holds_the_same_candidates(source: str) -> None:
    world = runner.open_world(source, "temporal", 0, DEFAULT.tracks[0])
    other = runner.Reordered(world, 1)
    tasks = [(world.task("test", i), other.task("test", i)) for i in range(20)]
    assert all(set(a.candidates) == set(b.candidates) and a.target == b.target for a, b in tasks)
    assert any((a.candidates != b.candidates).any() for a, b in tasks)
    assert all((b.candidates == other.task("test", i).candidates).all() for i, (_, b) in enumerate(tasks))


def test_suite_rows_are_told_apart_by_all_that_makes_them() -> None:
    row = Row("a", "fusion", kwargs={"trees": 10})
    assert row.key != Row("a", "fusion", kwargs={"trees": 20}).key
    assert row.key == Row("a", "fusion", "baseline", kwargs={"trees": 10}, seeds=3).key
    assert slug("pool-20") == "pool-20"
    assert re.fullmatch(r"_\.\._etc_passwd-[0-9a-f]{8}", slug("../../etc/passwd"))
    assert len({slug("beauty v1"), slug("beauty_v1"), slug("\u9999"), slug("\u8888")}) == 4
    assert re.fullmatch(r"_-[0-9a-f]{8}", slug(".."))
    suite = Suite(DEFAULT.rows, DEFAULT.tracks).with_agents(["fusion", "mine:Agent"])
    assert [r.name for r in suite.rows].count("fusion") == 1
    assert suite.rows[-1].role == "agent"


def test_blocks_survive_the_way_to_disk_and_back(tmp_path: Path) -> None:
    record = Record(3, "ü\n", 1, -1, (1, 2), 1, {"mrr": 1.0}, {"a": 2}, "answered", 1, 0.25, 1.1, {"bonus": 0.1}, "é")
    folder, place = Folder(tmp_path), Place("d", "t", "row", 0)
    block = Block((3,), 1.5, 0.5, (record,))
    folder.write(place, 0, block)
    assert folder.finished(place, [(3,), (4,)]) == [block, None]
    assert folder.finished(place, [(5,)]) == [None]


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new")
    folder.claim({"run": {"seed": 0}, "tracks": {}})
    folder.claim({"run": {"seed": 0}, "tracks": {"a/b": {"tasks": 3}}})
    with pytest.raises(SettingsMismatchError, match="a/b tasks: the folder has 3, this run 4"):
        folder.claim({"run": {"seed": 0}, "tracks": {"a/b": {"tasks": 4}}})
    with pytest.raises(SettingsMismatchError, match="seed: the folder has 0, this run 7"):
        folder.claim({"run": {"seed": 7}, "tracks": {}})
