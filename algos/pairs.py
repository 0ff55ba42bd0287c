"""Ranking violations of a policy, mined from its own lists: what stage 2 of AgenticRec (arXiv:2603.21613) learns from.

Where a list does not name first the item that the user took, every item above it is a hard negative. Each task that was
played leaves a readable line, so a run that is killed goes on where it was, several runs can learn from the same
violations, and people can look at what a policy gets wrong.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agentrec_env.data.dataset import Items
from agentrec_env.types import Episode, IntArray, StopReason
from agents.play import play
from algos.algorithm import check_choices
from algos.requests import shuffled
from algos.rollout import FAULTS, Numbered, sampler
from algos.stage import Stage

FOLDER = "mined"
"""Of the files, in that of a run."""
CHUNK = 512
"""Tasks that are played before their lines are written."""


@dataclass(frozen=True)
class Round:
    """The steps of a run that learn from the same violations."""

    number: int
    """From 0."""
    begin: int
    """First step."""
    end: int
    """The one after the last."""


@dataclass(frozen=True)
class Mining:
    """Which violations are mined, and in what order they are learnt from.

    Raises:
        ValueError: A setting outside its range.
    """

    rounds: int = 1
    """How often the policy of the moment is mined, at equal distances over the steps of the run. The paper mines once;
    with more, each round learns from what is still wrong after the one before."""
    hardness: Literal["random", "top", "margin"] = "random"
    """Which item above the positive is the negative: any (paper), or the first of the list ("top"). "margin" takes any
    and begins with close calls, whose two items stand next to each other, going on to those far apart."""
    mine_tasks: int = 0
    """Training tasks played a round, drawn at random; 0: all (paper)."""
    mine_temperature: float = 0.0
    """Of sampling in mining; 0: greedy, the list that the policy stands by."""
    mined: Path | None = None
    """A file of another run, such as runs/ppr/mined/round-1.jsonl, in place of mining in the first round: to compare
    runs on the same violations."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in (("rounds", 1), ("mine_tasks", 0), ("mine_temperature", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}; got {getattr(self, name)}")

    def plan(self, num_tasks: int) -> str:
        """What would be mined of the training tasks, in words."""
        tasks = f"{min(self.mine_tasks or num_tasks, num_tasks):,} of the training tasks"
        times = "1 time" if self.rounds == 1 else f"{self.rounds} times"
        return f"{tasks}, {times}" + (f"; the first time read from {self.mined}" if self.mined else "")

    def round(self, step: int, steps: int) -> Round:
        """The round of a step.

        Args:
            step: From 0.
            steps: Of the run.

        Raises:
            ValueError: More rounds than steps.
        """
        if self.rounds > steps:
            raise ValueError(f"{self.rounds} rounds need as many steps; the run has {steps}")
        number = step * self.rounds // steps
        return Round(number, -(-number * steps // self.rounds), -(-(number + 1) * steps // self.rounds))


@dataclass(frozen=True)
class Violation:
    """A list in which something stands above the item that the user took, or which misses it."""

    task: int
    """Number of the training task."""
    seed: int
    """Of its pool."""
    positive: int
    """Item that the user took."""
    ranking: tuple[int, ...]
    """Items of the list, best first."""
    actions: tuple[str, ...] = ()
    """What the policy wrote; the last is the list."""

    @property
    def above(self) -> tuple[int, ...]:
        """Items ranked above the positive, best first; the whole list where it was missed."""
        missed = self.positive not in self.ranking
        return self.ranking if missed else self.ranking[: self.ranking.index(self.positive)]


def violation(episode: Episode) -> Violation | None:
    """What is wrong with the list of an episode; None where nothing is, or there is no valid list."""
    if episode.stop is not StopReason.ANSWERED or episode.rank == 1:
        return None
    seed = -1 if episode.seed is None else episode.seed
    actions = tuple(turn.action for turn in episode.turns)
    return Violation(episode.task_index, seed, episode.target, episode.ranking, actions)


def serve(
    found: Sequence[Violation], mining: Mining, now: Round, places: IntArray, total: int, seed: int
) -> tuple[IntArray, IntArray]:
    """What is learnt from at some places of a round.

    Violations come once each before any comes again, in random orders; with hardness "margin", all that the round gets
    to is sorted by how far negative and positive stand from each other. A violation has the same negative all through
    the round.

    Args:
        found: V violations.
        mining: How hard, and in which order.
        now: The round.
        places: int64 [n], each below `total`.
        total: Places of the round.
        seed: Of the run.

    Returns:
        int64 [n] each: number of the violation, and where in its `above` the negative stands.
    """
    choices = np.array([len(each.above) for each in found], np.int64)
    chosen = (np.random.default_rng([seed, 9, now.number]).random(len(found)) * choices).astype(np.int64)
    if mining.hardness == "top":
        chosen[:] = 0
    order = [seed, 10, now.number]
    if mining.hardness == "margin":
        row = shuffled(np.arange(total), len(found), order)
        served = row[np.argsort((choices - chosen)[row], kind="stable")][places]
    else:
        served = shuffled(places, len(found), order)
    return served, chosen[served]


def mine(stage: Stage, mining: Mining, number: int) -> tuple[Violation, ...]:
    """The violations of round `number`, in order of tasks: read where they are mined, else mined by the policy as it
    is. All ranks get the same.

    Raises:
        RuntimeError: There is none.
        FileNotFoundError, ValueError: A file that is not there, or was mined from other tasks or otherwise.
        Stopped: Some rank was asked to stop; what was mined is kept.
    """
    header = _header(stage, mining, number)
    if mining.mined is not None and number == 0:
        path, header = mining.mined, {name: header[name] for name in ("world", "split")}
        if not path.is_file():
            raise FileNotFoundError(f"mined is a file that another run has left in its folder {FOLDER}/; got {path}")
    else:
        path = stage.folder / FOLDER / f"round-{number + 1}.jsonl"
        if stage.ranks.any(not path.is_file()):
            _mine(stage, mining, number, header, path)
    return _read(path, path.stat().st_mtime_ns, json.dumps(header), stage.envs.world.dataset.items)


def _header(stage: Stage, mining: Mining, number: int) -> dict[str, Any]:
    """What a file says of itself first."""
    return {
        "world": stage.envs.world.protocol,
        "split": stage.envs.scenario.config.task_split,
        "tools": list(stage.envs.scenario.rules.tools),
        "round": number + 1,
        "tasks": min(mining.mine_tasks or stage.num_tasks, stage.num_tasks),
        "temperature": mining.mine_temperature,
        "seed": stage.seed,
    }


def _mine(stage: Stage, mining: Mining, number: int, header: Mapping[str, Any], path: Path) -> None:
    """Play the tasks of a round that no line tells of yet."""
    ranks, training = stage.ranks, stage.training
    part = path.with_name(f".{path.name}-part")
    order = np.random.default_rng([stage.seed, 6, number]).permutation(stage.num_tasks)[: header["tasks"]]
    tasks = np.sort(order)
    seeds = np.random.default_rng([stage.seed, 7, number]).integers(2**31, size=stage.num_tasks)
    seed = int(np.random.default_rng([stage.seed, 8, number]).integers(2**62))
    agent = sampler(stage.policy, training, mining.mine_temperature)
    outcomes = ranks.gather(_begun(part, header, len(tasks)) if ranks.first else [])[0]
    while len(outcomes) < len(tasks):
        places = range(len(outcomes) + ranks.rank, min(len(outcomes) + CHUNK, len(tasks)), ranks.size)
        here = tasks[list(places)]
        play_here = partial(play, stage.envs, Numbered(agent, places), here.tolist(), seed, stage.check)
        episodes = stage.together(partial(play_here, seeds[here].tolist()))
        lines = [_line(episode, stage.envs.world.dataset.items) for episode in episodes]
        gathered = sorted(pair for rank in ranks.gather(list(zip(places, lines, strict=True))) for pair in rank)
        if ranks.first:
            with part.open("ab") as file:
                file.write(b"".join(line for _, line in gathered))
                file.flush()
                os.fsync(file.fileno())
        outcomes += [json.loads(line)["outcome"] for _, line in gathered]
        told = f"{len(outcomes):,} of {len(tasks):,} tasks ({_told(Counter(outcomes))})"
        stage.say(f"mining, round {number + 1}: {told}")
    if ranks.first:
        os.replace(part, path)
    ranks.wait()


def _begun(part: Path, header: Mapping[str, Any], tasks: int) -> list[str]:
    """Outcomes of what an earlier attempt has left in `part`, which is cut back to whole chunks, or begun."""
    first = _written(header)
    lines = part.read_bytes().splitlines(keepends=True) if part.is_file() else []
    whole = [line for line in lines[1:] if line.endswith(b"\n")] if lines[:1] == [first] else []
    kept = whole if len(whole) == tasks else whole[: len(whole) // CHUNK * CHUNK]
    part.parent.mkdir(parents=True, exist_ok=True)
    fresh = part.with_name(f"{part.name}-new")
    fresh.write_bytes(b"".join([first, *kept]))
    os.replace(fresh, part)
    return [json.loads(line)["outcome"] for line in kept]


def _written(line: Mapping[str, Any]) -> bytes:
    """A line of a file."""
    # Half a surrogate pair, which some titles hold, is written as JSON would.
    return (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _line(episode: Episode, items: Items) -> bytes:
    """What is kept of a task that was played."""
    found = violation(episode)
    line: dict[str, Any] = {"task": episode.task_index, "seed": episode.seed, "user": episode.user_id}
    if episode.stop in FAULTS:
        line["outcome"] = "lost"
    elif episode.stop is not StopReason.ANSWERED:
        line["outcome"] = "without a valid list"
    elif found is None:
        line["outcome"] = "first"
    else:
        line["outcome"] = "missed" if episode.rank is None else "below others"
        line["positive"], *line["list"] = (
            {"id": items.ids[item], "title": items.titles[item]} for item in (found.positive, *found.ranking)
        )
        line["actions"] = found.actions
    return _written(line)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, header: str, items: Items) -> tuple[Violation, ...]:
    """The violations of a file; `changed` tells versions of it apart."""
    try:
        told, *records = (json.loads(line) for line in path.read_bytes().splitlines())
        found = tuple(
            Violation(
                record["task"],
                record["seed"],
                items.index[record["positive"]["id"]],
                tuple(items.index[item["id"]] for item in record["list"]),
                tuple(record["actions"]),
            )
            for record in records
            if "list" in record
        )
        outcomes = Counter(record["outcome"] for record in records)
        different = {name: value for name, value in json.loads(header).items() if told.get(name) != value}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no file of violations mined from these items ({type(error).__name__}: {error}); mine anew"
        ) from error
    if different:
        raise ValueError(
            f"{path} was mined otherwise ({', '.join(f'{name}: {told.get(name)!r}' for name in different)}; this run "
            f"has {', '.join(f'{name}: {value!r}' for name, value in different.items())}); mine anew in another --out"
        )
    if not found:
        raise RuntimeError(
            f"{path} has no list with anything above the positive (of {len(records):,} tasks: {_told(outcomes)}), so "
            "there is nothing to learn from; mine more tasks, or a policy that gives valid lists"
        )
    return found


def _told(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
