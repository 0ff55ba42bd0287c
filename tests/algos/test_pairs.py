"""Mined violations: found where a list says so, kept as readable lines, the same however often mining is cut short."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agentrec_env.types import Episode, StopReason, Turn
from agents.play import play
from algos import pairs
from algos.interrupt import Stopped
from algos.learner import Learner
from algos.pairs import Mining, Round, Violation, mine, serve, violation
from algos.ppr import PPR
from tests.algos.small import MINING, learner, settings


@st.composite
def lists(draw: st.DrawFn) -> Episode:
    """An episode with any list, or none, on a pool of any size."""
    pool = draw(st.lists(st.integers(0, 99), min_size=2, max_size=20, unique=True))
    stop = draw(st.sampled_from((StopReason.ANSWERED, StopReason.ANSWERED, StopReason.INVALID, StopReason.OVERFLOW)))
    length = draw(st.integers(1, min(10, len(pool)))) if stop is StopReason.ANSWERED else 0
    return Episode(
        task_split="train",
        task_index=draw(st.integers(0, 9)),
        user_id="A",
        seed=draw(st.integers(0, 9)),
        prompt="",
        turns=(Turn("think", (), "no", 0.0), Turn("answer", (), "", 0.0)),
        candidates=tuple(pool),
        ranking=tuple(draw(st.permutations(pool))[:length]),
        target=draw(st.sampled_from(pool)),
        reward=0.0,
        terms={},
        metrics={},
        stop=stop,
    )


def wrong(episode: Episode) -> list[int] | None:
    """By the paper's words: what is ranked above the item taken; the whole list where that is missed; None: nothing."""
    if episode.stop != "answered":
        return None
    above = []
    for item in episode.ranking:
        if item == episode.target:
            break
        above.append(item)
    return above or None


@given(lists())
def test_a_violation_is_found_exactly_where_something_stands_above(episode: Episode) -> None:
    found, expected = violation(episode), wrong(episode)
    assert (found is None) is (expected is None)
    if found is not None:
        assert list(found.above) == expected
        assert (found.task, found.seed, found.positive) == (episode.task_index, episode.seed, episode.target)
        assert found.ranking == episode.ranking
        assert found.actions == ("think", "answer")


def violations(count: int, seed: int = 0) -> list[Violation]:
    """Of lists of different lengths."""
    generator = np.random.default_rng(seed)
    return [Violation(task, task, 0, tuple(range(1, 1 + int(generator.integers(1, 11))))) for task in range(count)]


@given(st.integers(1, 40), st.integers(1, 60), st.sampled_from(("random", "top", "margin")), st.integers(0, 5))
@hypothesis_settings(deadline=None)
def test_all_come_once_before_any_comes_again(count: int, total: int, hardness: Any, seed: int) -> None:
    found, mining, now = violations(count), Mining(hardness=hardness), Round(0, 0, 10)
    served, chosen = serve(found, mining, now, np.arange(total), total, seed)
    often = Counter(served.tolist())
    assert max(often.values()) - (min(often.values()) if len(often) == count else 0) <= 1
    assert all(0 <= negative < len(found[each].above) for each, negative in zip(served, chosen, strict=True))
    assert len({(each, negative) for each, negative in zip(served, chosen, strict=True)}) == len(often)
    places = np.arange(total)[:: max(1, total // 3)]
    some = serve(found, mining, now, places, total, seed)
    assert [x.tolist() for x in some] == [served[places].tolist(), chosen[places].tolist()]
    if hardness == "top":
        assert not chosen.any()
    if hardness == "margin":
        margins = [len(found[each].above) - negative for each, negative in zip(served, chosen, strict=True)]
        assert margins == sorted(margins)


def test_a_random_negative_is_any_with_equal_chance() -> None:
    found = [Violation(task, 0, 0, (1, 2, 3, 4)) for task in range(4000)]
    _, chosen = serve(found, Mining(), Round(0, 0, 1), np.arange(4000), 4000, 0)
    counts = Counter(chosen.tolist())
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(900 < count < 1100 for count in counts.values())
    other = serve(found, Mining(), Round(1, 1, 2), np.arange(4000), 4000, 0)[1]
    assert 0.2 < (other == chosen).mean() < 0.3


def test_rounds_divide_the_steps() -> None:
    mining = Mining(rounds=3)
    rounds = [mining.round(step, 10) for step in range(10)]
    assert [now.number for now in rounds] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {(now.begin, now.end) for now in rounds} == {(0, 4), (4, 7), (7, 10)}
    with pytest.raises(ValueError, match="3 rounds need as many steps; the run has 2"):
        mining.round(0, 2)


def run(out: Path, **changes: Any) -> Learner:
    return learner(settings(PPR(groups=4, group_size=4, mining=replace(MINING, **changes)), out, evaluate_every=0))


def test_mined_is_what_the_policy_gets_wrong(tmp_path: Path) -> None:
    """Played again by hand, from the seeds in the file, and judged from the text of the answers."""
    this = run(tmp_path, mine_tasks=60, mine_temperature=0.5)
    found = mine(this.stage, this.algorithm.mining, 0)
    header, *lines = (json.loads(line) for line in (tmp_path / "mined" / "round-1.jsonl").read_text().splitlines())
    assert (header["round"], header["tasks"], header["temperature"]) == (1, 60, 0.5)
    tasks = [line["task"] for line in lines]
    assert tasks == sorted(set(tasks))
    assert len(tasks) == 60 < max(tasks) < this.envs.num_tasks
    ids = this.envs.world.dataset.items.ids
    told = {each.task: each for each in found}
    outcomes = Counter(line["outcome"] for line in lines)
    assert outcomes.keys() == {"first", "below others", "missed", "without a valid list"}
    for line in lines:
        task = this.envs.scenario.draw(np.random.default_rng(line["seed"]), True, {"task": line["task"]})[0]
        assert line["user"] == this.envs.world.dataset.user_ids[task.user]
        assert (line["task"] in told) is ("list" in line) is (line["outcome"] in ("below others", "missed"))
        if "list" in line:
            numbers = json.loads(re.search(r"<answer>(\[.*\])</answer>", line["actions"][-1])[1])  # type: ignore[index]
            ranking = [int(task.candidates[number - 1]) for number in numbers]
            assert [item["id"] for item in line["list"]] == [ids[item] for item in ranking]
            assert line["positive"]["id"] == ids[task.target]
            assert line["outcome"] == ("below others" if task.target in ranking else "missed")
            above = ranking[: ranking.index(task.target)] if task.target in ranking else ranking
            assert list(told[line["task"]].above) == above
            assert told[line["task"]].positive == task.target


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes]:
    """A finished file, and what it holds; mined in chunks of 5."""
    monkeypatch.setattr(pairs, "CHUNK", 5)
    this = run(tmp_path / "whole")
    mine(this.stage, this.algorithm.mining, 0)
    path = tmp_path / "whole" / "mined" / "round-1.jsonl"
    return path, path.read_bytes()


def played(this: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of tasks that are played from here on."""
    tasks: list[int] = []

    def playing(envs: Any, agent: Any, here: list[int], *rest: Any) -> list[Episode]:
        tasks.extend(here)
        return play(envs, agent, here, *rest)

    monkeypatch.setattr(pairs, "play", playing)
    return tasks


def test_a_stop_in_mining_loses_no_chunk(
    whole: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = run(tmp_path / "cut")
    stop_after(this, 12)
    tasks = played(this, monkeypatch)
    with pytest.raises(Stopped):
        mine(this.stage, this.algorithm.mining, 0)
    done = set(tasks[:10])
    again = learner(replace(this.training, resume=True))
    tasks.clear()
    mine(again.stage, again.algorithm.mining, 0)
    assert not done & set(tasks)
    assert len(tasks) == 14
    assert (tmp_path / "cut" / "mined" / "round-1.jsonl").read_bytes() == whole[1]
    assert [path.name for path in (tmp_path / "cut" / "mined").iterdir()] == ["round-1.jsonl"]


def stop_after(this: Learner, episodes: int) -> None:
    """Have the run be asked to stop when so many episodes have ended."""
    check: Callable[[Episode], None] = this.stage.check
    left = episodes

    def counting(episode: Episode) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            this.stop()
        check(episode)

    object.__setattr__(this.stage, "check", counting)


@pytest.mark.parametrize("kept", [0, 40, 0.3, 0.95, 1.0])
def test_a_file_that_ends_anywhere_is_finished_to_the_same_bytes(
    whole: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    path, content = whole
    cut = tmp_path / "cut" / "mined" / ".round-1.jsonl-part"
    this = run(tmp_path / "cut")
    cut.parent.mkdir()
    cut.write_bytes(content[: int(kept * len(content)) if kept <= 1 else int(kept)])
    lines = max(cut.read_bytes().count(b"\n") - 1, 0)
    tasks = played(this, monkeypatch)
    found = mine(this.stage, this.algorithm.mining, 0)
    assert (cut.parent / "round-1.jsonl").read_bytes() == content
    assert len(tasks) == 24 - (24 if lines == 24 else lines // 5 * 5)
    assert not cut.exists()
    assert mine(this.stage, this.algorithm.mining, 0) == found
    assert path.read_bytes() == content


def test_what_another_run_has_mined(whole: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path / "first")
    expected = mine(first.stage, first.algorithm.mining, 0)
    other = run(tmp_path / "other", mined=whole[0])
    tasks = played(other, monkeypatch)
    assert mine(other.stage, other.algorithm.mining, 0) == expected
    assert not tasks
    mine(other.stage, other.algorithm.mining, 1)  # later rounds mine the present policy
    assert len(tasks) == 24


def test_files_that_do_not_fit_are_refused(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    content = whole[1]
    this = run(tmp_path / "run")

    def given_file(text: bytes) -> None:
        (tmp_path / "file").write_bytes(text)
        mine(this.stage, Mining(mined=tmp_path / "file"), 0)

    with pytest.raises(FileNotFoundError, match="left in its folder mined/"):
        mine(this.stage, Mining(mined=tmp_path / "nothing"), 0)
    with pytest.raises(ValueError, match=r"mined otherwise .*world: 'random .*seed 1'"):
        given_file(content.replace(b"pool seed 0", b"pool seed 1"))
    with pytest.raises(ValueError, match="no file of violations"):
        given_file(b"[]\n")
    with pytest.raises(ValueError, match="no file of violations"):
        given_file(re.sub(rb'"id": "B', b'"id": "X', content))
    with pytest.raises(RuntimeError, match=r"nothing above|nothing to learn from"):
        given_file(content.split(b"\n")[0] + b'\n{"task": 0, "outcome": "first"}\n')
    (tmp_path / "run" / "mined").mkdir()
    (tmp_path / "run" / "mined" / "round-1.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"temperature: 1.0.*temperature: 0.25"):
        mine(this.stage, replace(MINING, mine_temperature=0.25), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds is at least 1"),
        ({"hardness": "soft"}, "hardness is one of 'random', 'top', 'margin'"),
        ({"mine_tasks": -1}, "mine_tasks is at least 0"),
        ({"mine_temperature": -0.5}, "mine_temperature is at least 0"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mining(**change)
