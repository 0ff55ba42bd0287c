"""Which rows and tracks a command line asks for, and in words what it leaves out."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentrec_env.tools import TOOLS
from benchmarks.ablations import READERS, tool_rows
from benchmarks.experiment import Experiment
from benchmarks.presets import PRESETS, SMALL, TRACK, TRAINED
from benchmarks.suite import DEFAULT, Row, Size, Suite, Track, endpoint_rows, model_rows

EMBEDDED, SPLIT = "synthetic", "temporal"
"""The world that taught the embedded policy, and the split of its training tasks."""
LLM = "pip install 'agentrec-env[llm]'"


@dataclass(frozen=True)
class Selection:
    """What is compared."""

    rows: tuple[Row, ...]
    tracks: tuple[Track, ...]
    experiment: Experiment
    split: str
    policies: frozenset[str]
    """Rows that play a policy as it is, which are left out where test tasks are among those that taught it."""
    left_out: tuple[str, ...]
    """What a larger run would have, a sentence each."""

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return any(row.stage for row in self.rows)

    def of(self, source: str) -> list[Row]:
        """The rows on a dataset."""
        taught = source == EMBEDDED and self.split != SPLIT and self.experiment.model == "tiny" and not self.trains
        return [row for row in self.rows if not taught or row.name not in self.policies]


def select(options: argparse.Namespace, size: Size) -> Selection:
    """The rows and tracks of a command line.

    Raises:
        ValueError: Flags that do not fit together, or a name that is no row and no track.
    """
    _check_flags(options)
    suite = DEFAULT.with_env(options.env).with_agents(options.agent)
    trains = options.train or size.trains or any(name in TRAINED for name in options.only)
    if options.preset and not trains:
        raise ValueError(f"--preset {options.preset} is for rows that are trained: add --train or --full")
    preset = PRESETS[options.preset or SMALL]
    preset = replace(preset, env={name: options.env.get(name, value) for name, value in preset.env.items()})
    if trains and len(options.model) > 1:
        raise ValueError(f"one model is trained at a time; got --model {' --model '.join(options.model)}")
    if options.model_args and not options.model and not trains:
        raise ValueError("--model-args are for --model, which is not given")
    model = options.model[0] if trains and options.model else preset.model
    models = [] if trains else model_rows(options.model, options.model_args or {}, options.num_envs)
    if options.endpoint:
        models += endpoint_rows(options.endpoint, options.endpoint_model, options.endpoint_args or {}, options.num_envs)
    if "tiny" in ([model] if trains else options.model):
        _check_embedded(options)
    own = preset.rows(model, options.model_args or {}, options.num_envs, options.train_seeds)
    policies = frozenset(row.name for row in own if not row.stage)
    references = [row for row in (*DEFAULT.rows, *own) if row.name in ("scripted", "grpo+ppr" if trains else "frozen")]
    offered = options.env.get("tools", TOOLS.names())
    parts = [part for each in references for part in tool_rows(each, each.env.get("tools", offered))]
    everything = suite.with_rows([*models, *own, *READERS, *parts])

    ablates = options.ablations or size.trains
    plays = trains or not options.model

    def wanted(row: Row) -> bool:
        if row.name in options.only:
            return True
        if row.ablation and not ablates:
            return False
        if row in READERS:
            return trains or ablates
        return trains if row.stage else plays if row.lane == "llm" and row in (*own, *parts) else True

    suite = Suite(tuple(row for row in everything.rows if wanted(row)), everything.tracks)
    lacking = importlib.util.find_spec("transformers") is None and not trains
    if lacking:
        suite = replace(suite, rows=tuple(row for row in suite.rows if row.name not in policies))
    asked = [*options.only, *options.agent, *(row.name for row in models)]
    if options.ablations:
        asked += [row.name for row in suite.rows if row.ablation and row.reference in options.only]
    try:
        suite = suite.only(asked if options.only else size.tracks)
    except ValueError:
        everything.only(asked)  # its message knows all names
        raise
    experiment = Experiment(
        preset,
        model,
        options.training or options.out / "training",
        tuple(options.seed + seed for seed in range(options.train_seeds)),
        options.train_args,
        options.train_steps,
    )
    said = [] if options.only else _left_out(options, size, suite, own, trains, ablates, plays, lacking)
    return Selection(suite.rows, suite.tracks, experiment, options.split, policies, tuple(said))


def _check_flags(options: argparse.Namespace) -> None:
    if options.num_envs < 1:
        raise ValueError(f"--num-envs {options.num_envs}: at least one is needed")
    if options.train_seeds < 1:
        raise ValueError(f"--train-seeds {options.train_seeds}: at least one is needed")
    if bool(options.endpoint) != bool(options.endpoint_model):
        raise ValueError("--endpoint URL and --endpoint-model NAME go together: where to ask, and for which model")
    if options.endpoint_args and not options.endpoint:
        raise ValueError("--endpoint-args are for --endpoint, which is not given")


def _check_embedded(options: argparse.Namespace) -> None:
    if options.split != SPLIT and EMBEDDED in (options.dataset or [EMBEDDED]):
        raise ValueError(
            f"the embedded policy learned from training tasks of --split {SPLIT}, and among the test tasks of --split "
            f"{options.split} are some of them: take --split {SPLIT} on {EMBEDDED}, or another --model"
        )


def _left_out(
    options: argparse.Namespace,
    size: Size,
    suite: Suite,
    own: Sequence[Row],
    trains: bool,
    ablates: bool,
    plays: bool,
    lacking: bool,
) -> list[str]:
    said = []
    trained = ", ".join(row.name for row in own if row.stage and not row.ablation)
    if not trains:
        said.append(f"Nothing is trained here: the rows {trained} come with --train (or --full, which has all).")
    if lacking:
        said.append(f"Rows that play a language model need {LLM}.")
    elif plays and not trains and options.split != SPLIT and EMBEDDED in (options.dataset or [EMBEDDED]):
        said.append(f"The embedded policy learned from {EMBEDDED}'s training tasks of --split {SPLIT}: no row here.")
    if not ablates:
        said.append(
            "Ablations (each tool alone and left out, and with --train parts of training) come with --ablations."
        )
    played = {track.name for track in suite.tracks}
    if left := [track.name for track in DEFAULT.tracks if track.name not in played]:
        said.append(f"Tracks that are not played: {', '.join(left)}.")
    if trains and len(played) > 1:
        said.append(f"Policies are trained for track {TRACK} and play no other.")
    if size.tasks is not None and options.tasks is None:
        said.append(f"At most {size.tasks:,} test tasks and {size.seeds} seeds of rows that are fitted.")
    return said
