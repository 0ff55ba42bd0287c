"""Tensors of which each rank has a piece, in files: one a rank, that any number of ranks reads back in its own cut.

torch.distributed.checkpoint plans who writes and who reads what. Its usual storage keeps the plan as a pickle; the one
used here keeps it as JSON in the header of each safetensors file, and neither writes nor reads a pickle.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

SUFFIX = ".safetensors"


def check_storage() -> None:
    """Raise ImportError where this torch cannot write pieces in that way."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    if "save_distributed" not in inspect.signature(HuggingFaceStorageWriter).parameters:
        raise ImportError(f"shard needs a newer torch than {torch.__version__}, such as 2.13; or leave shard out")


def in_pieces(tensors: Mapping[str, Tensor]) -> bool:
    """Whether ranks have pieces of some of them."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def write_pieces(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this rank's pieces, beside those that the other ranks write, to the disk.

    Args:
        folder: Where no such files are yet; the same for all ranks.
        tensors: The same names on all ranks. Those that are not in pieces are equal, and are written once.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_pieces(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read what `write_pieces` wrote, or any safetensors files; each rank by itself.

    Args:
        folder: With the files of all ranks.
        like: Tensors in pieces. What has the shape of one and the same last part of its name, behind a "/", comes in
            such pieces; all else comes whole, on the CPU.

    Raises:
        SafetensorError, ValueError: A file that is something else.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, kind in reader.read_metadata().state_dict_metadata.items():
        if not isinstance(kind, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        model = like.get(name.rsplit("/", 1)[-1])
        if model is not None and model.shape == kind.size:
            tensors[name] = torch.empty_like(model, dtype=kind.properties.dtype, requires_grad=False)
        else:
            tensors[name] = torch.empty(kind.size, dtype=kind.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what is asked for
        try:
            load(tensors, storage_reader=reader, no_dist=True)
        except CheckpointException as error:  # no Exception to Python
            raise ValueError(str(error)) from None
    return tensors
