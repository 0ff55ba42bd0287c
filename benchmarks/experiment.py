"""From stages as data to the training runs of a dataset: their settings, folders and order.

Every run is one of algos' own, with a folder that it can be resumed from, and that says with which settings, from which
policy and by which code it was made; a folder that was made otherwise is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from agentrec_env.registry import did_you_mean
from benchmarks.presets import Preset, Stage
from benchmarks.suite import slug

ALL = "*"
"""In overrides: whatever stages know the settings."""
APART = 1_000_000
"""Between the seeds of stages that follow one another, so that none plays again the episodes of one before it; variants
of a stage play the same as it."""
C = TypeVar("C")


@dataclass(frozen=True)
class Run:
    """One stage with one seed."""

    dataset: str
    stage: Stage
    seed: int
    """Of its whole chain; the stage's own is the one in `config`."""
    config: Any
    """`algos.training.Training`, or `algos.sft.SFTConfig`; its `out` is the run's folder."""
    after: Run | None = None
    """The run whose policy it starts from."""

    @property
    def folder(self) -> Path:
        """Of the run."""
        folder: Path = self.config.out
        return folder

    @property
    def policy(self) -> Path:
        """What it is trained for: the best policy on valid tasks, or the last one where it is not judged."""
        return self.folder / ("best" if self.config.evaluate_every else "model")

    @property
    def adapts(self) -> bool:
        """Whether its policy is an adapter."""
        return self.config.lora_rank > 0 or (self.after is not None and self.after.adapts)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.stage.name} on {self.dataset} (seed {self.seed})"

    @property
    def episodes(self) -> int:
        """Episodes that it learns from."""
        algorithm = getattr(self.config, "algorithm", None)
        a_step = self.config.episodes if algorithm is None else algorithm.groups * algorithm.group_size
        return int(self.config.steps * a_step)

    @property
    def most_tokens(self) -> int | None:
        """Tokens that it can sample at most; None where it samples none."""
        if self.stage.algorithm in ("sft", "dpo"):
            return None
        return self.episodes * int(self.config.max_episode_tokens)


@dataclass(frozen=True)
class Experiment:
    """What is trained, beside the preset.

    Raises:
        ValueError: Overrides of a stage that there is not, or of a setting that nobody knows.
    """

    preset: Preset
    model: str
    out: Path
    """Folder of all runs."""
    seeds: tuple[int, ...]
    overrides: Mapping[str, Mapping[str, Any]]
    """Settings by stage, which its variants inherit; "*" for all stages that know them."""
    most_steps: int | None = None
    """Steps of a run at most."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.preset.stages]
        for name, settings in self.overrides.items():
            if name not in (*names, ALL):
                raise ValueError(did_you_mean("stage", name, [*names, ALL]))
            if not isinstance(settings, Mapping):
                raise ValueError(f"settings of stage {name!r} are a JSON object; got {settings!r}")
            self._check(name, settings)
        if self.most_steps is not None and self.most_steps < 1:
            raise ValueError(f"a run takes at least one step; got {self.most_steps}")

    def runs(self, dataset: str, env: Mapping[str, Any], tasks: int, stages: Iterable[str]) -> list[Run]:
        """The runs that lead to `stages`, each after the one that it starts from.

        Args:
            dataset: Its name in results.
            env: Arguments of the environment.
            tasks: Training tasks.
            stages: Names.
        """
        wanted = [self._stage(name) for name in dict.fromkeys(stages)]
        made: dict[tuple[str, int], Run] = {}
        configs: dict[str, Any] = {}
        for place, stage in (part for each in wanted for part in enumerate(self._chain(each))):
            if stage.name not in configs:
                configs[stage.name] = self._config(stage, env, tasks)
            for seed in self.seeds:
                after = made.get((self._start(stage), seed))
                folder = self.out / slug(dataset) / slug(stage.name) / f"seed{seed}"
                model = self.model if after is None else str(after.policy)
                config = replace(configs[stage.name], out=folder, seed=seed + APART * place, model=model)
                if after is not None and after.adapts:  # the adapter that lies there is trained on
                    config = replace(config, lora_rank=0)
                made.setdefault((stage.name, seed), Run(dataset, stage, seed, config, after))
        return list(made.values())

    def _check(self, name: str, settings: Mapping[str, Any]) -> None:
        """Refuse settings of "*" that no stage knows, and sizes of a stage that plays as much as another."""
        if name == ALL:
            known = {leaf for stage in self.preset.stages for leaf in _leaves(_known(_defaults(stage), settings))}
            if unknown := sorted(set(_leaves(settings)) - known):
                raise ValueError(f"no stage knows the setting {', '.join(unknown)} that {ALL!r} names")
            return
        equal = self._stage(name).equal
        if equal and {"steps", "algorithm.groups"} & set(_leaves(settings)):
            raise ValueError(f"stage {name!r} plays as much as {equal!r}: set steps and groups there")

    def _stage(self, name: str) -> Stage:
        return next(stage for stage in self.preset.stages if stage.name == name)

    def _start(self, stage: Stage) -> str:
        return stage.after or (self._start(self._stage(stage.base)) if stage.base else "")

    def _chain(self, stage: Stage) -> list[Stage]:
        start = self._start(stage)
        return [*(self._chain(self._stage(start)) if start else []), stage]

    def _settings(self, stage: Stage, config: Any) -> dict[str, Any]:
        """What is set of a stage, nested: the preset's, what is set for all, what is set for it; a variant's own come
        after all that its base has."""
        if stage.base:
            settings = _merged(self._settings(self._stage(stage.base), config), stage.settings)
        else:
            settings = _merged(stage.settings, _known(config, self.overrides.get(ALL, {})))
        return _merged(settings, self.overrides.get(stage.name, {}))

    def _passes(self, stage: Stage) -> float:
        return stage.passes or (self._passes(self._stage(stage.base)) if stage.base else 0.0)

    def _config(self, stage: Stage, env: Mapping[str, Any], tasks: int) -> Any:
        """Settings of a stage, without folder, seed and model."""
        config = _defaults(stage)
        settings = _merged({"env": {**env, **self.preset.env}}, self._settings(stage, config))
        equal = self._config(self._stage(stage.equal), env, tasks) if stage.equal else None
        if equal is not None:
            size = settings.get("algorithm", {}).get("group_size", config.algorithm.group_size)
            groups = equal.algorithm.groups * equal.algorithm.group_size // size
            settings = _merged(settings, {"steps": equal.steps, "algorithm": {"groups": groups}})
        config = with_settings(config, settings)
        if "steps" not in settings:
            config = replace(config, steps=max(1, math.ceil(self._passes(stage) * tasks / config.algorithm.groups)))
        if self.most_steps is not None:
            config = replace(config, steps=min(config.steps, self.most_steps))
        rounds = getattr(getattr(getattr(config, "algorithm", None), "mining", None), "rounds", 1)
        if rounds > config.steps:  # of a run that was cut short
            config = with_settings(config, {"algorithm": {"mining": {"rounds": config.steps}}})
        return config


def with_settings(config: C, settings: Mapping[str, Any]) -> C:
    """A dataclass with other values, nested ones in part.

    Raises:
        ValueError: A name that it does not have, with the nearest one; or a value that it refuses.
    """
    names = [field.name for field in fields(config)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in names:
            raise ValueError(did_you_mean("setting", name, names, f"Those of {type(config).__name__} are meant."))
        old = getattr(config, name)
        changes[name] = with_settings(old, value) if is_dataclass(old) and isinstance(value, Mapping) else value
    return replace(config, **changes)  # type: ignore[type-var]


def differences(run: Run) -> list[str]:
    """In what the settings of the run's folder differ from those of the run; empty where there is no folder yet."""
    from algos import config, sft, training

    path = run.folder / config.CONFIG
    if not path.is_file():
        return []
    held = json.loads(path.read_text(encoding="utf-8"))
    free = sft.FREE if run.stage.algorithm == "sft" else training.FREE
    return config.differences(held, config.resolved(run.config), free)


def training_code() -> str:
    """A hash of the sources that a training run depends on."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(
        path for package in ("agentrec_env", "agents", "algos") for path in (root / package).rglob("*.py")
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _defaults(stage: Stage) -> Any:
    if stage.algorithm == "sft":
        from algos.sft import SFTConfig

        return SFTConfig()
    from algos.dpo import DPO
    from algos.listwise_grpo import ListwiseGRPO
    from algos.ppo import PPO
    from algos.ppr import PPR
    from algos.training import Training

    algorithm: Any = {"grpo": ListwiseGRPO, "ppo": PPO, "ppr": PPR, "dpo": DPO}[stage.algorithm]()
    return Training(algorithm)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second winning, nested objects likewise."""
    result = dict(first)
    for name, value in second.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _known(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a dataclass has, nested ones likewise."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name in {field.name for field in fields(config)}:
            old = getattr(config, name)
            found[name] = _known(old, value) if is_dataclass(old) and isinstance(value, Mapping) else value
    return found


def _leaves(settings: Mapping[str, Any], before: str = "") -> list[str]:
    """Dotted names of all values."""
    found: list[str] = []
    for name, value in settings.items():
        found += _leaves(value, f"{before}{name}.") if isinstance(value, Mapping) else [before + name]
    return found


def needed_stages(rows: Sequence[Any]) -> list[str]:
    """Stages whose policies some rows play."""
    return list(dict.fromkeys(row.stage for row in rows if row.stage))
