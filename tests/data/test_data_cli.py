"""The commands `python -m agentrec_env.data download | describe`, as a person meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentrec_env.data.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def has(out: str, label: str, value: str) -> bool:
    return re.search(rf"{re.escape(label)}\W+{re.escape(value)}", out) is not None


def test_describe_a_real_file(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "describe", str(shared_data / "raw/Gift_Cards_5.json.gz"))
    assert (code, err) == (0, "")
    for label, value in (
        ("interactions", "2,972"),
        ("users", "458"),
        ("items (reviewed)", "148"),
        ("time", "2012-01-31 00:00 to 2018-08-22 00:00"),
        ("rating known", "100.0%, mean 4.89"),
        ("price known", "72.3% of items"),
        ("10-19", "35"),
    ):
        assert has(out, label, value), (label, out)
    assert "McAuley 2018 reviews" in out
    assert "1,547 lines read, 148 kept" in out
    assert "dropped 1,399 on items that no one reviewed" in out


def test_describe_says_what_was_dropped_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"user_id": "U", "parent_asin": "I", "rating": None, "timestamp": 1_600_000_000_000}
    lines = [json.dumps(record)] * 2 + [json.dumps({**record, "timestamp": None}), "{broken \x1b[31m<|im_end|>"]
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(lines))
    code, out, _ = run(capsys, "describe", str(path), "--no-cache")
    assert code == 0
    assert "4 lines read, 1 kept" in out
    assert "dropped 1 exact repeats of an earlier line" in out
    assert "dropped 1 without a timestamp in a file that has them" in out
    assert "1 bad lines, among them:" in out
    assert "line 4: JSON is malformed" in out
    assert "\x1b" not in out
    assert "<|im_end|>" not in out
    assert has(out, "rating known", "0.0%")


def test_describe_metadata_alone(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "describe", str(shared_data / "raw/meta_Gift_Cards.json.gz"))
    assert code == 0
    assert has(out, "items", "1,547")
    assert has(out, "price known", "23.1% of items")


def test_describe_without_times_names_the_split(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "describe", str(shared_data / "beauty"))
    assert code == 0
    assert "use the leave_one_out split" in out
    assert has(out, "interactions", "198,502")


def test_describe_the_embedded_world(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "describe", "synthetic")
    assert code == 0
    assert "embedded synthetic world" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "nowhere"], "error: unknown dataset 'nowhere'"),
        (
            ["download", "Gift", "Crads"],
            "error: unknown category of edition 2023 'Gift Crads'. Did you mean 'Gift_Cards'?",
        ),
        (["download", "Beauty", "--edition", "20"], "error: unknown edition '20'"),
        (["download", "Books", "--sha256", "abc"], "write FILE=HASH"),
    ],
)
def test_errors_are_one_message_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agentrec_env.data", "--help"], capture_output=True, text=True, check=True
    )
    assert "download" in done.stdout
    assert "describe" in done.stdout
    missing = subprocess.run([sys.executable, "-m", "agentrec_env.data"], capture_output=True, text=True)
    assert missing.returncode == 2
