"""The viewer's data, document, server, exports and command, without a browser."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import atif
import pytest

import benchmarks.viewer
from agentrec_env.episodes import Header, write
from agentrec_env.types import StopReason, Turn
from benchmarks import runner
from benchmarks.records import Folder as RunFolder
from benchmarks.runner import Unit
from benchmarks.suite import Row, Track
from benchmarks.viewer.collection import Collection, NoRunError, collect
from benchmarks.viewer.command import main
from benchmarks.viewer.document import document
from benchmarks.viewer.exports import FORMATS, export
from benchmarks.viewer.server import PageServer
from tests.benchmarks.runs import HOSTILE, episode, header, results, training


class Scripts(HTMLParser):
    """Script elements of a page by id, and all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.found: dict[str, str] = {}
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._open = dict(attrs).get("id") or "" if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.found[self._open] = self.found.get(self._open, "") + data


def parsed(page: str) -> Scripts:
    scripts = Scripts()
    scripts.feed(page)
    return scripts


def index_of(page: str) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(parsed(page).found["agentrec-data"])
    return index


def chunks_of(page: str) -> list[Any]:
    found = parsed(page).found
    count = len(index_of(page)["starts"])
    return [json.loads(gzip.decompress(base64.b64decode(found[f"agentrec-chunk-{i}"]))) for i in range(count)]


@pytest.fixture
def compared(tmp_path: Path) -> Collection:
    return collect(results(tmp_path / "results", 12))


def test_a_results_folder_is_collected(compared: Collection) -> None:
    assert [player.name for player in compared.players] == ["popularity", "scripted", "llm:tiny"]
    assert len(compared.played) == 36
    assert compared.curves == {}
    assert compared.notes == ()
    first = compared.played[:3]
    assert [one.episode.task_index for one in first] == [0, 0, 0]
    assert [one.player for one in first] == [0, 1, 2]
    assert first[0].asker is not None
    assert first[0].asker.kind == "taste"


def test_the_blocks_of_a_comparison_keep_their_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [(user, i, 1_600_000_000 + 86_400 * (user + i)) for user in range(60) for i in range(6)]
    lines = [f"u{user},i{(user * 7 + i * i) % 40},5,{time}" for user, i, time in days]
    source = tmp_path / "reviews.csv"
    source.write_text("\n".join(["user,item,rating,timestamp", *lines]) + "\n", encoding="utf-8")
    monkeypatch.setattr(runner, "BLOCK", 8)
    monkeypatch.setattr(runner, "KEPT", 2)
    track = Track("pool-5", "1 and 4", {"num_candidates": 5})
    unit = Unit("reviews", str(source), "leave_one_out", 0, track, Row("mine", "popularity"), 3, 0, tuple(range(20)))
    folder = RunFolder(tmp_path / "out")
    for order in (0, 1):
        assert list(runner.play_unit(replace(unit, order=order), folder, runner.Agents())) == [8, 8, 4]
    found = collect(tmp_path / "out")
    assert [one.episode.task_index for one in found.played] == list(range(16))
    (player,) = found.players
    assert player.about == {
        "dataset": "reviews", "split": "leave_one_out", "track": "pool-5", "pool": "1 and 4",
        "agent": "mine", "role": "agent", "seed": 3,
    }  # fmt: skip
    for one in found.played:
        assert one.names[one.episode.target] in one.episode.prompt
        assert one.asker is not None
        assert one.asker.known > 0


def test_a_training_folder_has_curves_and_an_agent_for_each_evaluation(tmp_path: Path) -> None:
    found = collect(training(tmp_path / "run"))
    assert [player.about["step"] for player in found.players] == [0, 20, 40, 60]
    assert [step for step, _ in found.curves["reward"]] == list(range(60))
    assert [step for step, _ in found.curves["valid/ndcg@10"]] == [0, 20, 40, 60]
    page = document(found)
    assert [player["label"] for player in index_of(page)["players"]] == ["step 0", "step 20", "step 40", "step 60"]
    assert index_of(page)["curves"]["entropy"][0][0] == 0


def test_each_agent_keeps_the_same_first_tasks_where_all_would_be_too_many(tmp_path: Path) -> None:
    found = collect(results(tmp_path, 140), limit=30)
    for player in range(3):
        assert [one.episode.task_index for one in found.played if one.player == player] == list(range(10))
    assert "first 10 episodes" in found.notes[0]
    (tmp_path / "units/synthetic/pool-20/row0/seed0/episodes-0000.jsonl.gz").write_bytes(b"broken")
    found = collect(tmp_path, limit=600)
    assert {
        one.player
        for one in found.played
        if one.episode.task_index < 128 and found.players[one.player].name == "popularity"
    } == set()
    assert any("episodes-0000.jsonl.gz, line 1" in note for note in found.notes)


def test_seeds_and_tracks_tell_players_apart(tmp_path: Path) -> None:
    base = {"dataset": "d", "agent": "sasrec", "role": "baseline"}
    for number, (track, seed) in enumerate([("pool-20", 0), ("pool-20", 1), ("catalogue", 0)]):
        about = base | {"track": track, "seed": seed}
        write(tmp_path / "units" / str(number) / "episodes-0000.jsonl.gz", [episode(0, 1)], header(about))
    players = index_of(document(collect(tmp_path)))["players"]
    assert [player["label"] for player in players] == ["sasrec, seed 0", "sasrec, seed 1", "sasrec"]
    assert [player["where"] for player in players] == ["pool-20", "pool-20", "catalogue"]
    assert players[0]["place"] == players[1]["place"] != players[2]["place"]


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "limit"])
def test_what_cannot_be_shown_is_refused_with_advice(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if kind != "missing":
        run.mkdir()
    if kind == "text":
        run = run / "notes.txt"
        run.write_text("x")
    limit = 0 if kind == "limit" else 10
    with pytest.raises(NoRunError, match=r"--limit" if kind == "limit" else r"give the results folder"):
        collect(run, limit)
    if kind == "missing":
        assert main([str(run)]) == 2
        assert "does not exist" in capsys.readouterr().err


def test_the_page_holds_all_of_each_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.viewer.document.CHUNK", 20_000)
    found = collect(results(tmp_path, 40))
    page = document(found)
    index, chunks = index_of(page), chunks_of(page)
    assert len(chunks) > 1
    episodes = [entry for chunk in chunks for entry in chunk["episodes"]]
    prompts = [chunk["prompts"][entry[0]] for chunk in chunks for entry in chunk["episodes"]]
    assert len(episodes) == len(found.played) == len(index["columns"]["reward"]) == 120
    for place, (one, entry, prompt) in enumerate(zip(found.played, episodes, prompts, strict=True)):
        played = one.episode
        assert prompt == played.prompt
        assert [turn[0] for turn in entry[1]] == [turn.action for turn in played.turns]
        assert [turn[2] for turn in entry[1]] == [turn.observation for turn in played.turns]
        assert [[name, json.loads(arguments)] for turn in entry[1] for name, arguments in turn[1]] == [
            [call.name, dict(call.arguments)] for turn in played.turns for call in turn.calls
        ]
        assert entry[2:5] == [list(played.candidates), list(played.ranking), played.target]
        assert index["columns"]["rank"][place] == (played.rank or 0)
        task = index["tasks"][index["columns"]["task"][place]]
        assert (task["index"], task["user"]) == (played.task_index, played.user_id)
        assert index["stops"][index["columns"]["stop"][place]] == played.stop


def test_hostile_text_stays_data(tmp_path: Path) -> None:
    page = document(collect(results(tmp_path / HOSTILE.replace("/", "_")[:60], 6, hostile=True)))
    plain = document(collect(results(tmp_path / "plain", 6)))
    assert parsed(page).tags.count("script") == parsed(plain).tags.count("script")
    assert not {"img", "link", "iframe", "object", "a"} & set(parsed(page).tags)
    assert not {"src", "href", "style", "onerror", "onload", "onclick"} & set(parsed(page).attributes)
    assert HOSTILE in index_of(page)["tasks"][0]["positive"]
    policy = re.search(r'Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")


def test_numbers_that_json_does_not_know_do_not_break_the_page(tmp_path: Path) -> None:
    odd = replace(episode(0, 0), reward=float("nan"), terms={"x": float("inf")}, info={"y": float("-inf")})
    odd = replace(odd, user_id="\ud800")
    write(tmp_path / "e.jsonl", [odd], Header({"agent": "odd"}))
    page = document(collect(tmp_path / "e.jsonl"))
    assert index_of(page)["columns"]["reward"] == [None]
    page.encode()


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer("<p>page</p>") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(
    server: PageServer, path: str = "/", host: str | None = None, method: str = "GET"
) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{server.server_port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def test_the_server_gives_the_page_to_this_machine_alone(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, body, headers = request(server)
    assert (status, body) == (200, b"<p>page</p>")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert request(server, host=f"localhost:{server.server_port}")[0] == 200
    assert request(server, method="HEAD")[:2] == (200, b"")
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", "", "127.0.0.1.evil.example:80"):
        assert request(server, host=host)[0] == 403
    for path in ("/etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/index.html"):
        status, body, _ = request(server, path)
        assert status == 404
        assert b"root:" not in body
    assert request(server, method="POST")[0] == 501


def test_view_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = results(tmp_path / "run", 5)
    benchmarks.viewer.view(run, None, tmp_path / "page.html")
    assert index_of((tmp_path / "page.html").read_text("utf-8"))["title"] == "run"
    assert "15 episodes" in capsys.readouterr().out
    assert main([str(run), "--out", str(tmp_path / "again.html"), "--limit", "6"]) == 0
    assert len(index_of((tmp_path / "again.html").read_text("utf-8"))["columns"]["task"]) == 6


def called(turn: Turn) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in turn.calls]


def test_atif_is_valid_and_holds_the_conversation(compared: Collection, tmp_path: Path) -> None:
    assert export(compared, "atif", tmp_path / "atif") == len(compared.played)
    paths = sorted((tmp_path / "atif").iterdir())
    assert len(paths) == len(compared.played)
    for path, one in zip(paths, compared.played, strict=True):
        found = atif.Trajectory.model_validate_json(path.read_text("utf-8"))
        played = one.episode
        assert found.schema_version == "ATIF-v1.7"
        assert found.steps[0].message == played.prompt
        assert len(found.steps) == 1 + len(played.turns)
        for step, turn in zip(found.steps[1:], played.turns, strict=True):
            calls = step.tool_calls or []
            assert [(call.function_name, call.arguments) for call in calls] == [
                (c.name, c.arguments) for c in turn.calls
            ]
            told = step.observation.results if step.observation else []
            assert [result.source_call_id for result in told] == [call.tool_call_id for call in calls]
            for result in told:
                assert isinstance(result.content, str)
                assert result.content in turn.observation
            if "<think>" in turn.action:
                assert step.reasoning_content
                assert step.reasoning_content in turn.action
        assert found.final_metrics is not None
        assert found.final_metrics.extra is not None
        assert found.final_metrics.extra["reward"] == played.reward
        assert found.extra is not None
        assert found.extra["stop"] == played.stop


def test_hub_sessions_hold_the_conversation(compared: Collection) -> None:
    for one in compared.played:
        text = FORMATS["hub"][0](one, compared.players[one.player], "id1")
        session, *messages = [json.loads(line) for line in text.splitlines()]
        assert (session["type"], session["id"], session["harness"]) == ("session", "id1", "agentrec")
        assert session["metadata"]["reward"] == one.episode.reward
        assert {entry["type"] for entry in messages} == {"message"}
        said = [entry["message"] for entry in messages]
        assert said[0] == {"role": "user", "content": one.episode.prompt}
        asked = {}
        for message in said[1:]:
            assert isinstance(message["content"], str)
            if message["role"] == "assistant":
                asked |= {call["id"]: call["function"] for call in message.get("toolCalls", [])}
            elif message["role"] == "tool":
                assert message["toolCallId"] in asked
        calls = [call for turn in one.episode.turns for call in turn.calls]
        assert [(f["name"], json.loads(f["arguments"])) for f in asked.values()] == [
            (c.name, c.arguments) for c in calls
        ]
        if one.episode.stop is StopReason.ANSWERED:
            assert "<answer>" in said[-1]["content"]


def test_export_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = results(tmp_path / "run", 2)
    with pytest.raises(SystemExit):
        main([str(run), "--export", "hub"])
    assert "--out FOLDER" in capsys.readouterr().err
    assert main([str(run), "--export", "hub", "--out", str(tmp_path / "hub")]) == 0
    assert len(list((tmp_path / "hub").glob("*.jsonl"))) == 6
