"""Episodes come back from disk as they were, and damage is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrec_env.data.synthetic import make_world
from agentrec_env.data.synthetic_choice import SIGNALS
from agentrec_env.data.world import World
from agentrec_env.episodes import EpisodeFileError, Header, decode, describe, encode, read, storable, write
from agentrec_env.types import Episode, StopReason, ToolCall, Turn
from agentrec_env.vector import RecVectorEnv
from agents.play import play

texts = st.text(st.characters(), max_size=20)
floats = st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
turns = st.builds(
    Turn,
    action=texts,
    calls=st.lists(st.builds(ToolCall, name=texts, arguments=objects), max_size=2).map(tuple),
    observation=texts,
    seconds=floats,
)
items = st.lists(st.integers(0, 2**62), max_size=5, unique=True).map(tuple)
episodes = st.builds(
    Episode,
    task_split=texts,
    task_index=st.integers(0, 10**6),
    user_id=texts,
    seed=st.none() | st.integers(),
    prompt=texts,
    turns=st.lists(turns, max_size=3).map(tuple),
    candidates=items,
    ranking=items,
    target=st.integers(0, 2**62),
    reward=floats,
    terms=st.dictionaries(texts, floats, max_size=3),
    metrics=st.dictionaries(texts, floats, max_size=3),
    stop=st.sampled_from(StopReason),
    error=st.none() | texts,
    info=objects,
)


def plain(episode: Episode) -> Any:
    """All that an episode holds, with the types of its numbers: -0.0 is not 0, and 1 is not True."""
    return repr([getattr(episode, name) for name in Episode.__dataclass_fields__])


def simple(**changes: Any) -> Episode:
    chosen: dict[str, Any] = {
        "task_split": "test",
        "task_index": 0,
        "user_id": "u",
        "seed": None,
        "prompt": "p",
        "turns": (Turn("a", (ToolCall("t", {"x": [1]}),), "o", 0.5),),
        "candidates": (1, 2),
        "ranking": (2, 1),
        "target": 1,
        "reward": 0.5,
        "terms": {"r": 0.5},
        "metrics": {"mrr": 0.5},
        "stop": StopReason.ANSWERED,
    }
    return Episode(**(chosen | changes))


@settings(max_examples=60, deadline=None)
@given(episodes)
def test_a_line_holds_an_episode_to_the_bit(episode: Episode) -> None:
    line = encode(episode)
    assert "\n" not in line
    assert line.isascii()
    assert plain(decode(line)) == plain(episode)


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_a_file_holds_header_and_episodes(name: str, tmp_path: Path) -> None:
    played = [simple(task_index=i, reward=i / 3, prompt="line\nbreak\u2028 \ud800 é") for i in range(5)]
    header = Header({"agent": "mine", "seed": 3}, {1: "one", 2: "<b>"}, {0: describe_asker()})
    path = tmp_path / "new" / name
    write(path, played, header)
    first = path.read_bytes()
    found = read(path)
    assert found.header == header
    assert [plain(episode) for episode in found.episodes] == [plain(episode) for episode in played]
    assert found.damaged == ()
    write(path, found.episodes, found.header)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [name]


def describe_asker() -> Any:
    from agentrec_env.episodes import Asker

    return Asker(7, "style")


def test_numbers_that_are_not_finite_are_kept() -> None:
    episode = decode(encode(simple(reward=float("nan"), terms={"a": float("inf"), "b": float("-inf")})))
    assert np.isnan(episode.reward)
    assert episode.terms == {"a": float("inf"), "b": float("-inf")}


def test_what_json_cannot_hold_is_left_out_and_named() -> None:
    info = {
        "tokens": 5,
        "transcript": object(),
        "pair": (1, 2),
        "by_number": {1: 2},
        "array": np.zeros(2),
        "deep": [{}],
    }
    assert storable(info) == {"tokens": 5, "deep": [{}]}
    line = encode(simple(info=info))
    assert json.loads(line)["left_out"] == ["array", "by_number", "pair", "transcript"]
    assert decode(line).info == {"tokens": 5, "deep": [{}]}


@pytest.mark.parametrize("bad", [b"{", b"null", b'{"turns": []}', b"\xff\xfe", b'{"turns": 3}', b"[" * 100_000])
def test_a_damaged_line_is_reported_by_its_number(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, [simple(task_index=i) for i in range(3)])
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], bad, *lines[3:]]) + b"\n")
    with pytest.raises(EpisodeFileError, match=r"e\.jsonl, line 3: "):
        read(path)
    found = read(path, strict=False)
    assert [episode.task_index for episode in found.episodes] == [0, 2]
    (message,) = found.damaged
    assert "line 3" in message


def test_a_file_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    texts = np.random.default_rng(0).integers(33, 120, (50, 500))
    write(path, [simple(task_index=i, prompt="".join(map(chr, row))) for i, row in enumerate(texts.tolist())])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = read(path, strict=False)
    assert 10 < len(found.episodes) < 40
    assert f"line {len(found.episodes) + 2}" in found.damaged[-1]
    with pytest.raises(EpisodeFileError, match="end too early"):
        read(path)
    path.write_bytes(whole[:500] + b"xxxx" + whole[504:])  # lines may be readable, but the check sum tells
    assert read(path, strict=False).damaged
    with pytest.raises(EpisodeFileError):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"step": 0}\n', "line 1: no file of episodes"),
        (b"hello\n", "line 1"),
        (b'{"format": "agentrec-episodes", "version": 2}\n', "reads version 1"),
        (gzip.compress(b"x", mtime=0), "line 1"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(content)
    with pytest.raises(EpisodeFileError, match=message):
        read(path, strict=False)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write(path, [simple()])
    with pytest.raises(TypeError):
        write(path, [simple(), simple(terms={"x": object()})])
    assert len(read(path).episodes) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["e.jsonl"]


def test_the_header_names_items_and_says_who_asked(tmp_path: Path) -> None:
    world = World(make_world(300, 540).dataset, num_candidates=5)
    played = play(RecVectorEnv(4, world=world, task_split="test"), "popularity", range(6))
    header = describe(played, {"agent": "popularity"}, world)
    assert set(header.items) == {item for e in played for item in (*e.ranking, e.target)}
    assert set(header.askers) == set(range(6))
    for episode in played:
        task = world.task("test", episode.task_index)
        assert header.askers[episode.task_index].known == task.position
        assert header.askers[episode.task_index].kind in SIGNALS
        assert header.items[episode.target] in episode.prompt
    write(tmp_path / "e.jsonl.gz", played, header)
    found = read(tmp_path / "e.jsonl.gz")
    assert found.header == header
    assert [plain(e) for e in found.episodes] == [plain(e) for e in played]
