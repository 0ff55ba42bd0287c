"""Nothing that an agent gets to see depends on what it must not know: byte for byte, and by statistics.

For each task the target is swapped for another candidate of the same pool and everything after the task is rewritten
or deleted; prompt, tool outputs and signals must not change by one byte. On purely random data nothing may rank better
than chance. A tool that looks ahead on purpose shows that the check can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from agentrec_env.counterfactual import CHANGES, counterfactual
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.load import load
from agentrec_env.data.splits import TASK_SPLITS
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.rewards import REWARDS
from agentrec_env.session import Rules, Session
from agentrec_env.tools import TOOLS, Tool, ToolError, call_tool, tool
from agentrec_env.tools.signals import SIGNALS, matrix
from agentrec_env.types import Task
from tests.conftest import random_dataset

SPLIT_NAMES = ("temporal", "leave_one_out")
CHANCE = float(np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in range(1, 21)]))  # N@10 of 20: .2272


def calls(world: World, task: Task, tools: list[Tool]) -> Iterator[tuple[Tool, dict[str, str]]]:
    """Calls that an agent could make: every title of pool and history, numbers, ids, words, and nonsense."""
    items = world.dataset.items
    at_hand = [*task.candidates.tolist(), *task.history.tolist()]
    names = [items.titles[i] or items.ids[i] for i in at_hand] + [f"[{n}]" for n in range(len(task.candidates) + 1)]
    names += [items.ids[at_hand[0]], "brand thing", "number 3 thing", "nothing of the kind", ""]
    for used in tools:
        parameters = list(used.schema["function"]["parameters"]["properties"])
        if not parameters:
            yield used, {}
        for name in names if parameters else ():
            yield used, dict.fromkeys(parameters, name)


def seen(world: World, task: Task, tools: list[Tool]) -> dict[str, str | bytes]:
    """All that an agent may get to see before it answers."""
    mode = "catalog" if world.catalog else "rank"
    session = Session(Rules(world, {t.name: t for t in tools}, REWARDS.get("agenticrec"), mode))
    shown: dict[str, str | bytes] = {"prompt": session.reset(task)}
    view: View = session.view
    for used, arguments in calls(world, task, tools):
        try:
            shown[f"{used.name} {arguments}"] = call_tool(used, view, arguments)
        except ToolError as error:
            shown[f"{used.name} {arguments}"] = f"error: {error}"
    items = task.candidates if len(task.candidates) else np.arange(world.dataset.num_items)
    values = matrix(view, items)
    for column, name in enumerate(SIGNALS.names()):
        shown[f"signal {name}"] = values[:, column].tobytes()
    return shown


def leaks(world: World, task: Task, change: str, tools: list[Tool], generator: np.random.Generator) -> list[str]:
    """What changed though it must not."""
    before = seen(world, task, tools)
    after = seen(*counterfactual(world, task, change, generator), tools)
    assert before.keys() == after.keys()
    return [name for name in before if before[name] != after[name]]


def some_tasks(world: World, task_split: str, count: int, generator: np.random.Generator) -> list[Task]:
    indices = generator.permutation(world.num_tasks(task_split))[:count]
    return [world.task(task_split, int(index)) for index in indices]


def all_tools() -> list[Tool]:
    return [TOOLS.get(name) for name in TOOLS.names()]


@pytest.mark.parametrize("task_split", TASK_SPLITS)
@pytest.mark.parametrize(("split", "times"), [("temporal", True), ("leave_one_out", True), ("leave_one_out", False)])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_hidden_changes_nothing_that_is_seen(change: str, split: str, times: bool, task_split: str) -> None:
    generator = np.random.default_rng(0)
    world = World(random_dataset(5, users=30, items=45, per_user=9, times=times), split)
    for task in some_tasks(world, task_split, 2, generator):
        assert leaks(world, task, change, all_tools(), generator) == []


@pytest.mark.parametrize("task_split", TASK_SPLITS)
@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_nothing_hidden_is_seen_in_catalogue_mode(split: str, task_split: str) -> None:
    generator = np.random.default_rng(1)
    world = World(random_dataset(6, users=30, items=45, per_user=9), split, "catalog")
    for task in some_tasks(world, task_split, 2, generator):
        assert leaks(world, task, "rewrite", all_tools(), generator) == []


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_same_time_interactions_are_unknown(split: str) -> None:
    """Whole-day times tie: what falls on the task's own day is hidden, others' and the user's own alike."""
    data = random_dataset(7, users=30, items=45, per_user=9)
    assert data.time is not None
    data = replace(data, time=data.time // (20 * 86_400_000) * 20 * 86_400_000)
    generator = np.random.default_rng(2)
    world = World(data, split)
    for task in some_tasks(world, "test", 3, generator):
        assert leaks(world, task, "delete", all_tools(), generator) == []


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_the_check_finds_a_tool_that_looks_ahead(split: str) -> None:
    @tool(register=False, guarded=False)
    def total_popularity(view: View) -> str:
        """Times taken, the future included."""
        data = view._split.dataset
        return str(np.bincount(data.item, minlength=data.num_items)[view.candidates].tolist())

    @tool(register=False, guarded=False)
    def own_future(view: View) -> str:
        """Candidates that the user takes at some time."""
        data = view._split.dataset
        return str(np.isin(view.candidates, data.item[data.rows(view.user)]).tolist())

    generator = np.random.default_rng(3)
    world = World(random_dataset(5, users=30, items=45, per_user=9), split)
    task = some_tasks(world, "test", 1, generator)[0]
    for change in CHANGES:
        found = leaks(world, task, change, [total_popularity, own_future], generator)
        assert found == ["total_popularity {}", "own_future {}"]


@pytest.fixture(scope="module")
def office(shared_data: Path) -> Dataset:
    return load(shared_data / "office", cache=False)


def office_leaks(office: Dataset, split: str, task_splits: tuple[str, ...], changes: tuple[str, ...]) -> None:
    world = World(office, split)
    generator = np.random.default_rng(4)
    for task_split in task_splits:
        for task in some_tasks(world, task_split, 1, generator):
            for change in changes:
                assert leaks(world, task, change, all_tools(), generator) == []


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_real_reviews_hide_the_future(office: Dataset, split: str) -> None:
    office_leaks(office, split, ("test",), ("rewrite",))


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_real_reviews_hide_the_future_in_every_way(office: Dataset, split: str) -> None:
    office_leaks(office, split, TASK_SPLITS, CHANGES)


def gains(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [T, S]: expected NDCG@10 of each task and signal, ties in random order, unknown values last."""
    discount = np.concatenate([[0.0], np.cumsum([1 / np.log2(r + 1) if r <= 10 else 0 for r in range(1, 21)])])
    scores = np.where(np.isnan(scores), -np.inf, scores)  # [T, C, S]
    own = np.take_along_axis(scores, targets[:, None, None], axis=1)
    above, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    return (discount[above + equal] - discount[above]) / equal


def many_tasks(world: World, count: int) -> tuple[list[Task], np.ndarray]:
    """``count`` tasks over all task splits with fresh pools, and the place of each target in its pool."""
    generator = np.random.default_rng(5)
    tasks = []
    for number in range(count):
        task_split = TASK_SPLITS[number % 3]
        tasks.append(world.task(task_split, int(generator.integers(world.num_tasks(task_split))), seed=number))
    return tasks, np.array([int(np.flatnonzero(task.candidates == task.target)[0]) for task in tasks])


@pytest.mark.parametrize("negatives", ["uniform", "popularity", "hard"])
@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_place_in_the_pool_tells_nothing(split: str, negatives: str) -> None:
    world = World(random_dataset(8, users=200, items=150), split, negatives=negatives)
    tasks, places = many_tasks(world, 1500)
    counts = np.bincount(places, minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-3
    gain = np.where(np.arange(1, 21) <= 10, 1 / np.log2(np.arange(2, 22)), 0)
    for place in (places, 19 - places):  # the order shown, and reversed
        error = gain[place].std() / np.sqrt(len(place))
        assert abs(gain[place].mean() - CHANCE) < 3.5 * error
    assert all(len(set(task.candidates.tolist())) == 20 for task in tasks)


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_no_signal_beats_chance_on_random_data(split: str) -> None:
    world = World(random_dataset(9, users=300, items=200, per_user=9), split)
    tasks, places = many_tasks(world, 450)
    scores = np.stack([matrix(world.view(task), task.candidates) for task in tasks])
    gain = gains(scores, places)
    errors = gain.std(axis=0) / np.sqrt(len(tasks))
    for name, mean, error in zip(SIGNALS.names(), gain.mean(axis=0), errors, strict=True):
        assert mean - CHANCE < 4 * error + 1e-9, f"{name} scores {mean:.3f} on data without any pattern"


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_no_signal_is_too_good_to_be_true_on_real_reviews(office: Dataset, split: str) -> None:
    world = World(office, split)
    generator = np.random.default_rng(6)
    tasks = some_tasks(world, "test", 120, generator)
    places = np.array([int(np.flatnonzero(task.candidates == task.target)[0]) for task in tasks])
    gain = gains(np.stack([matrix(world.view(task), task.candidates) for task in tasks]), places).mean(axis=0)
    assert gain.max() < 0.6  # the best known single signal is at .46
    assert gain.max() > 0.4


def test_data_is_not_touched(tiny: Dataset) -> None:
    world = World(tiny)
    task = world.task("test", 0)
    fingerprint = tiny.fingerprint
    seen(world, task, all_tools())
    counterfactual(world, task, "rewrite", np.random.default_rng(0))
    replaced = world.dataset
    assert replaced.fingerprint == fingerprint
