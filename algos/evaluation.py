"""Evaluation during training: the same valid tasks with their fixed pools in all runs, and N@10 with its interval."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agentrec_env import episodes as files
from agentrec_env.data.world import World
from agentrec_env.statistics import PairedBootstrap
from agentrec_env.types import Episode, StopReason
from agentrec_env.vector import RecVectorEnv
from agents.llm.policy import Policy
from agents.play import play
from algos.distributed import Ranks
from algos.rollout import Numbered, sampler
from algos.training import Training

RESAMPLES = 2_000
FOLDER = "transcripts"
EPISODES = "episodes"
"""Folder of a run that holds all episodes of each evaluation, `evaluate_tasks` of them, as `agentrec_env.episodes`."""


class Evaluation:
    """Judges a policy between updates.

    Args:
        envs: Valid tasks.
        policy: Who plays.
        training: The run's settings.
        ranks: Who plays the other tasks.
    """

    def __init__(self, envs: RecVectorEnv, policy: Policy, training: Training[Any], ranks: Ranks) -> None:
        self._envs = envs
        self._policy = policy
        self._training = training
        self._ranks = ranks
        count = min(training.evaluate_tasks, envs.num_tasks)
        self._places = range(ranks.rank, count, ranks.size)
        self._tasks = judged_tasks(envs.num_tasks, count)[ranks.rank :: ranks.size]

    @property
    def world(self) -> World:
        """What is played in."""
        return self._envs.world

    def play(self, on_episode: Callable[[Episode], None] | None = None) -> list[Episode]:
        """This rank's episodes."""
        # Made anew each time: it has a copy of the weights, which training has no room for.
        agent = sampler(self._policy, self._training, self._training.evaluate_temperature)
        return play(self._envs, Numbered(agent, self._places), self._tasks, self._training.seed, on_episode)

    def judge(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Means over the episodes of all ranks, and the 95 % bootstrap interval of N@10.

        Args:
            episodes: This rank's.
        """
        names = ("ndcg@10", "hit@1", "reward", "answered", "calls", "tokens")
        mine = [(place, _judged(episode)) for place, episode in zip(self._places, episodes, strict=True)]
        found = sorted(pair for part in self._ranks.gather(mine) for pair in part)
        table = np.array([values for _, values in found])
        figures = {f"valid/{name}": float(mean) for name, mean in zip(names, table.mean(axis=0), strict=True)}
        draws = PairedBootstrap({"": table[:, 0]}, np.random.default_rng([self._training.seed, 5]), RESAMPLES)
        interval = draws.interval("")
        return figures | {"valid/ndcg@10/low": interval.low, "valid/ndcg@10/high": interval.high}

    def together(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The episodes of all ranks in the order of tasks, without their token records; each rank calls it."""
        mine = [replace(episode, info=files.storable(episode.info)) for episode in episodes]
        parts = self._ranks.gather(list(zip(self._places, mine, strict=True)))
        return [episode for _, episode in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]


def judged_tasks(total: int, count: int) -> list[int]:
    """Which of `total` valid tasks are played: the same for all runs, so that seeds, settings and stages compare; more
    of them include fewer."""
    return [int(index) for index in np.random.default_rng(4).permutation(total)[:count]]


def _judged(episode: Episode) -> tuple[float, ...]:
    return (
        episode.metrics.get("ndcg@10", 0.0),
        episode.metrics.get("hit@1", 0.0),
        episode.reward,
        float(episode.stop is StopReason.ANSWERED),
        float(episode.calls),
        float(episode.info.get("tokens", 0)),
    )


def keep_episodes(episodes: Sequence[Episode], folder: Path, step: int, world: World) -> Path:
    """Write the episodes of the evaluation after `step` steps, whole, to episodes/ in the folder of a run."""
    path = folder / EPISODES / f"step-{step:08d}.jsonl.gz"
    about = {"run": folder.name, "step": step, "dataset": world.dataset.name, "protocol": world.protocol}
    files.write(path, episodes, files.describe(episodes, about, world))
    return path


def write_transcripts(episodes: Sequence[Episode], folder: Path, step: int) -> Path:
    """Write whole episodes as text for people, to transcripts/ in the folder of a run."""
    parts = []
    for episode in episodes:
        terms = ", ".join(f"{name} {value:g}" for name, value in episode.terms.items() if value)
        place = "not in the list" if episode.rank is None else f"at place {episode.rank}"
        parts.append(f"{'=' * 80}\nTask {episode.task_index} of {episode.task_split}, user {episode.user_id}\n")
        parts.append(f"{episode.prompt}\n")
        for turn in episode.turns:
            parts.append(f"{'-' * 30} agent\n{turn.action}\n")
            if turn.observation:
                parts.append(f"{'-' * 30} environment\n{turn.observation}\n")
        parts.append(
            f"{'-' * 30} end: {episode.stop}, the item taken is {place}; reward {episode.reward:g} ({terms})\n"
        )
        if episode.error is not None:
            parts.append(f"{episode.error}\n")
    path = folder / FOLDER / f"step-{step:08d}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-new")
    temporary.write_text("".join(parts), encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
    return path
