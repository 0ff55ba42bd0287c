"""Rows of language models: local ones and endpoints are rows like others, and leave no secret behind."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import run_all, runner
from benchmarks.records import Folder
from benchmarks.runner import Unit
from benchmarks.suite import DEFAULT, Row, model_rows
from tests.agents.chat_server import Body, ChatServer, good, send, serving
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer

CORE = "0123456789abcdef"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", f"sk-test-{CORE}")
    with serving() as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> str:
    """200 users with 6 dated interactions each, as a CSV of one's own."""
    rng = np.random.default_rng(0)
    lines = ["user,item,rating,timestamp"]
    for user in range(200):
        days = np.sort(rng.integers(0, 300, size=6))
        items = rng.permutation(60)[:6]
        lines += [f"u{user},i{i},5,{1_600_000_000 + 86_400 * d}" for i, d in zip(items, days, strict=True)]
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def command(source: str, out: Path, *more: str, tasks: int = 10, jobs: int = 0) -> list[str]:
    base = ["--dataset", source, "--jobs", str(jobs), "--tasks", str(tasks), "--out", str(out)]
    return [*base, "--only", "random", "pool-20", *more]


def asking(server: ChatServer, **arguments: Any) -> list[str]:
    flags = ["--endpoint", server.url, "--endpoint-model", "toy"]
    return [*flags, "--endpoint-args", json.dumps({"retries": 0} | arguments)]


def result(out: Path) -> Any:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))["results"][0]


@pytest.mark.parametrize("jobs", [0, 1])
def test_an_endpoint_is_a_row_and_its_key_stays_outside(
    source: str, tmp_path: Path, server: ChatServer, capfd: pytest.CaptureFixture[str], jobs: int
) -> None:
    out = tmp_path / "out"
    assert run_all.main(command(source, out, *asking(server), jobs=jobs)) == 0
    rows = {row["name"]: row for row in result(out)["rows"]}
    assert set(rows) == {"random", "endpoint:toy"}
    assert rows["endpoint:toy"]["stops"] == {"answered": 10}
    assert rows["endpoint:toy"]["calls"] == {"score_candidates": 1.0}
    # One first look, then two requests for each task in the fixed order and in another.
    assert len(server.bodies) == 1 + 2 * 10 + 2 * 10
    assert server.headers[0]["authorization"].endswith(CORE)
    assert run_all.main(command(source, out, *asking(server, timeout=50, max_requests=10_000), jobs=jobs)) == 0
    assert len(server.bodies) == 41, "finished blocks were played again"
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(CORE.encode() in path.read_bytes() for path in written)
    assert CORE not in "".join(capfd.readouterr())


def test_an_endpoint_that_stops_leaves_a_gap_that_the_next_start_fills(
    source: str, tmp_path: Path, server: ChatServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BLOCK", 4)
    out = tmp_path / "out"
    assert run_all.main(command(source, out, *asking(server, max_requests=12))) == 1
    assert len(server.bodies) == 12
    (missing,) = result(out)["missing"].items()
    assert missing[0] == "endpoint:toy"
    assert "the budget of 12 requests is used up" in missing[1]
    assert "goes on from there" in capfd.readouterr().out
    assert run_all.main(command(source, out, *asking(server, max_requests=500))) == 0
    assert len(server.bodies) == 12 + 1 + 40 - 8, "the first block was kept"


def test_an_endpoint_that_refuses_costs_one_request_and_no_other_row(
    source: str, tmp_path: Path, server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda body: send(401, json.dumps({"error": {"message": f"bad key sk-test-{CORE}"}}).encode())
    out = tmp_path / "out"
    assert run_all.main(command(source, out, *asking(server))) == 1
    assert len(server.bodies) == 1
    assert {row["name"] for row in result(out)["rows"]} == {"random"}
    assert "HTTP 401: bad key [key]" in result(out)["missing"]["endpoint:toy"]
    assert not any(CORE.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert CORE not in "".join(capfd.readouterr())


def test_an_episode_without_a_reply_is_marked_and_kept(source: str, tmp_path: Path, server: ChatServer) -> None:
    numbers = itertools.count()

    def answer(body: Body) -> Any:
        return send(500, b"{}") if next(numbers) == 5 else good(body)

    server.answer = answer
    out = tmp_path / "out"
    assert run_all.main(command(source, out, *asking(server))) == 0
    stops = next(row for row in result(out)["rows"] if row["name"] == "endpoint:toy")["stops"]
    assert stops == {"answered": 9, "agent_error": 1} or stops == {"answered": 10}  # it may fall into the other order


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--endpoint", "http://127.0.0.1:1/v1"], "go together"),
        (["--endpoint-model", "toy"], "go together"),
        (["--endpoint", f"http://me:{CORE}@h/v1", "--endpoint-model", "toy"], "no user, password"),
        (["--endpoint", "here", "--endpoint-model", "toy"], "a URL such as"),
        (
            ["--endpoint", "http://h/v1", "--endpoint-model", "toy", "--endpoint-args", f'{{"api_key": "{CORE}"}}'],
            "unexpected keyword argument 'api_key'",
        ),
        (
            ["--endpoint", "http://h/v1", "--endpoint-model", "toy", "--endpoint-args", f'{{"key_env": "sk-{CORE}"}}'],
            "name, in capitals",
        ),
        (["--endpoint", "http://h/v1", "--endpoint-model", "a", "--endpoint-model", "a"], "two rows have the name"),
        (["--model", "tiny", "--model", "tiny"], "two rows have the name 'llm:tiny'"),
        (["--model-args", "{}", "--endpoint-args", '{"a": 1}'], "--endpoint-args are for --endpoint"),
        (["--model-args", '{"a": 1}'], "--model-args are for --model"),
        (["--num-envs", "0"], "at least one"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_played(
    source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert run_all.main(command(source, tmp_path / "out", *flags)) == 2
    told = capfd.readouterr().err
    assert said in told
    assert CORE not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[1]", "{", "1e999x"])
def test_arguments_are_a_json_object(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_all.main(["--model", "tiny", "--model-args", text])
    assert "JSON" in capfd.readouterr().err


def test_a_model_is_known_by_what_its_folder_holds(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights.safetensors").write_bytes(b"1234")

    def key(num_envs: int = 64, **arguments: Any) -> str:
        return model_rows([str(folder)], arguments, num_envs)[0].key

    first = key()
    assert first == key() == key(num_envs=8) == key(rows=4)
    assert first != key(temperature=0.5)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("hidden")
    assert key() == first
    (folder / "sub" / "weights.safetensors").write_bytes(b"1235")
    assert key() != first
    (folder / "sub" / "weights.safetensors").write_bytes(b"1234")
    assert key() == first
    (folder / "config.json").rename(folder / "other.json")
    assert key() != first
    assert [row.name for row in model_rows(["tiny", "org/name"], {}, 64)] == ["llm:tiny", "llm:org/name"]


def test_a_lane_is_one_process_with_one_agent_a_model(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy.py").write_text(
        "import os, pathlib\n"
        "class Heavy:\n"
        "    def __init__(self, name, log): self.log = pathlib.Path(log, f'{name}-{os.getpid()}'); self.note('made')\n"
        "    def note(self, word): self.log.open('a').write(word + '\\n')\n"
        "    def reset(self, num_envs, seed): self.note(f'{num_envs} rows')\n"
        "    def act(self, observations, rows): return ['<answer>[1]</answer>'] * len(rows)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    log = tmp_path / "log"
    log.mkdir()
    rows = [Row(n, "heavy:Heavy", kwargs={"name": n, "log": str(log)}, lane="gpu", num_envs=5) for n in ("a", "b")]
    rows.append(Row("c", "heavy:Heavy", kwargs={"name": "c", "log": str(log)}))
    pool = DEFAULT.tracks[0]
    units = [Unit("d", source, "temporal", 0, pool, row, 0, order, tuple(range(8))) for order in (0, 1) for row in rows]
    updates = list(runner.run(units, Folder(tmp_path / "out"), jobs=3))
    assert not [update.error for update in updates if update.error]
    (a,), (b,), (c,) = (list(log.glob(f"{name}-*")) for name in "abc")
    assert a.name.split("-")[1] == b.name.split("-")[1] != c.name.split("-")[1]
    assert a.read_text().split("\n") == ["made", "5 rows", "5 rows", ""]
    assert c.read_text().split("\n") == ["made", "64 rows", "made", "64 rows", ""]


@pytest.mark.slow
def test_a_local_model_is_a_row(source: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    tokenizer = tiny_tokenizer("qwen3")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = json.dumps({"max_turn_tokens": 8, "device": "cpu"})
    flags = ["--model", str(folder), "--model-args", arguments, "--num-envs", "4"]
    assert run_all.main(command(source, out, *flags, tasks=6)) == 0
    row = next(row for row in result(out)["rows"] if row["name"] == f"llm:{folder}")
    assert row["stops"] == {"overflow": 6}
