"""Trained models kept between runs, beside the datasets: one checked file each, written whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from agentrec_env.data.cache import cache_dir

_DIGEST = 32
_log = logging.getLogger(__name__)


def save_model(kind: str, key: str, data: bytes) -> None:
    """Keep ``data`` under ``cache_dir()/models``. Where that cannot be written, a later run trains again."""
    path = _path(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        _log.warning("the model %s cannot be kept (%s); set AGENTREC_CACHE to a folder that can", path, error)


def load_model(kind: str, key: str) -> bytes | None:
    """What was kept under ``key``; None where there is nothing, or where it is damaged."""
    path = _path(kind, key)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        _log.warning("the kept model %s is damaged and will be trained again", path)
        return None
    return data


def source_digest(files: Iterable[str]) -> str:
    """A hash of source files, so that a model trained by other code is never taken for this one's."""
    digest = hashlib.sha256()
    for file in files:
        if os.path.isfile(file):
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def _path(kind: str, key: str) -> Path:
    return cache_dir() / "models" / f"{kind}-{key}.bin"
