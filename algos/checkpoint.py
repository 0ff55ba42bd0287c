"""Checkpoints of a run: whole or not there, whatever moment the process is killed at, and never a pickle.

A checkpoint is written to a folder of a temporary name: tensors as safetensors, everything else as JSON, a COMPLETE
marker with the digests of all files last, each on the disk before the next; then the folder is renamed. A reader takes
the newest folder whose marker and digests are right. Where ranks have pieces of tensors, each writes a file of its own,
and any number of ranks reads them, be their tensors whole or in pieces.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from algos.distributed import Ranks
from algos.storage import SUFFIX, in_pieces, read_pieces, write_pieces

FORMAT = 1
TENSORS, VALUES, MARKER = "state.safetensors", "state.json", "COMPLETE"
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.step-\d{8,}-[0-9a-f]{8}")

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or of another kind; says what to do."""


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to go on as if nothing had happened."""

    step: int
    """Steps done."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights, optimizer moments, states of torch generators: any dtype, by name."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """JSON: cursors, counters, states of numpy generators, the config."""


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    Args:
        folder: made when the first one is saved.
        keep: how many to keep; older ones are deleted when a new one is safe.
        ranks: the processes of the run, which see the same folder.

    Raises:
        ValueError: `keep` is below 1.
    """

    def __init__(self, folder: Path | str, keep: int = 2, ranks: Ranks | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep is how many checkpoints stay, at least 1; got {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._ranks = ranks or Ranks()

    def save(self, state: State) -> Path:
        """Write `state`, with which each rank calls this; the path of the checkpoint, which the first one finishes.

        Raises:
            TypeError, ValueError: values that are no JSON (nan is none).
        """
        record = {"format": FORMAT, "step": state.step, "values": state.values}
        values = json.dumps(record, allow_nan=False, indent=1).encode()
        name = f"step-{state.step:08d}"
        fresh, final = self.folder / f".{name}-{secrets.token_hex(4)}", self.folder / name
        digests: dict[str, str] = {}
        if in_pieces(state.tensors):
            fresh = self._ranks.gather(fresh)[0]
            write_pieces(fresh, state.tensors)
            files = sorted(path.name for path in fresh.glob(f"*{SUFFIX}"))
            mine = {file: _digest(fresh / file) for file in files[self._ranks.rank :: self._ranks.size]}
            digests = {file: digest for part in self._ranks.gather(mine) for file, digest in part.items()}
        elif self._ranks.first:
            tensors = save({n: tensor.detach().cpu().contiguous().clone() for n, tensor in state.tensors.items()})
            fresh.mkdir(parents=True)
            _write(fresh / TENSORS, tensors)
            digests[TENSORS] = hashlib.sha256(tensors).hexdigest()
        if self._ranks.first:
            _write(fresh / VALUES, values)
            digests[VALUES] = hashlib.sha256(values).hexdigest()
            _write(fresh / MARKER, json.dumps(digests).encode())
            _sync_folder(fresh)
            if final.exists():  # a step that was done again after a resume
                os.rename(final, self.folder / f".{name}-{secrets.token_hex(4)}")
            os.rename(fresh, final)
            _sync_folder(self.folder)
            self._tidy()
        return final

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name, path in found if name and (path / MARKER).is_file())

    def load(self, step: int | None = None, like: Mapping[str, Tensor] | None = None) -> State:
        """The state of `step`, or of the newest checkpoint that is sound.

        Args:
            step: of which the checkpoint is wanted.
            like: parameters by name; what belongs to one that is in pieces comes in such pieces.

        Raises:
            CheckpointError: there is none, or that of `step` is damaged.
        """
        steps = self.steps() if step is None else [step]
        if not steps:
            raise CheckpointError(f"{self.folder} holds no complete checkpoint; start without --resume")
        for number in reversed(steps):
            try:
                return _read(self.folder / f"step-{number:08d}", like or {})
            except CheckpointError as error:
                if number == steps[0]:
                    raise
                logger.warning("%s; an older checkpoint is taken", error)
        raise AssertionError

    def _tidy(self) -> None:
        """Delete what is too old, and what killed processes left half written."""
        for step in self.steps()[: -self.keep]:
            old = self.folder / f"step-{step:08d}"
            (old / MARKER).unlink()  # a deletion that is cut short leaves something incomplete, not something broken
            shutil.rmtree(old, ignore_errors=True)
        for path in self.folder.iterdir():
            if _PARTIAL.fullmatch(path.name) or (_NAME.fullmatch(path.name) and not (path / MARKER).is_file()):
                shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(
    optimizers: Sequence[torch.optim.Optimizer], names: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The moments of `optimizers` by the names of their parameters, as ``"optimizer/moment/parameter"``.

    Args:
        optimizers: whose state is tensors alone, as that of AdamW and Muon; each parameter is in one of them.
        names: name -> parameter.
    """
    tensors: dict[str, Tensor] = {}
    for optimizer, (name, parameter) in product(optimizers, names.items()):
        for moment, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as {moment!r}; only tensors"
                )
            tensors[f"optimizer/{moment}/{name}"] = value
    return tensors


def restore_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], names: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave; a parameter without moments gets none."""
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, moment, name = key.split("/", 2)
            if name not in names:
                raise CheckpointError(f"the checkpoint has moments of {name!r}, which is not trained here")
            parameter = names[name]
            # Counters of steps stay on the CPU, where the optimizers of torch keep them.
            place = value if value.dim() == 0 else value.to(parameter.device)
            owner[parameter].state[parameter][moment] = place.clone()


def restore_weights(names: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], prefix: str = "model/") -> None:
    """Copy the tensors whose names begin with `prefix` into the parameters of those names.

    Raises:
        CheckpointError: other names or shapes.
    """
    saved = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    odd = sorted(saved.keys() ^ names.keys())
    if odd:
        raise CheckpointError(f"the checkpoint is of another model: {', '.join(odd[:3])} stand in only one of the two")
    for name, parameter in names.items():
        if parameter.shape != saved[name].shape:
            raise CheckpointError(
                f"the checkpoint is of another model: {name} has shape {tuple(saved[name].shape)} in it and "
                f"{tuple(parameter.shape)} here"
            )
        with torch.no_grad():
            parameter.copy_(saved[name])


def _read(folder: Path, like: Mapping[str, Tensor]) -> State:
    if not (folder / MARKER).is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint (no {MARKER})")
    files = {path.name for path in folder.glob(f"*{SUFFIX}")}
    try:
        digests = json.loads((folder / MARKER).read_bytes())
        values = (folder / VALUES).read_bytes()
        found = {VALUES: hashlib.sha256(values).hexdigest()} | {file: _digest(folder / file) for file in files}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    if not isinstance(digests, dict):
        raise CheckpointError(f"{folder} is damaged: {MARKER} holds no digests")
    wrong = sorted(file for file in found.keys() | digests.keys() if found.get(file) != digests.get(file))
    if wrong:
        raise CheckpointError(f"{folder} is damaged: {', '.join(wrong)} not as written")
    try:
        record = json.loads(values)
        if record["format"] != FORMAT:
            raise CheckpointError(f"{folder} has format {record['format']!r}; this version reads {FORMAT}")
        whole = files == {TENSORS} and not in_pieces(like)
        tensors = load((folder / TENSORS).read_bytes()) if whole else read_pieces(folder, like)
        return State(int(record["step"]), tensors, record["values"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} is no checkpoint: {type(error).__name__}: {error}") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
