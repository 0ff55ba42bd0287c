"""A folder that is written whole or not at all.

A reader finds the old content or the new, never a mixture; only between two renames it finds none, with the old content
beside it under a name that begins with a dot.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_folder(folder: Path, marks: tuple[str, ...]) -> Iterator[Path]:
    """Give a new folder to write into, which takes the place of `folder` when the block ends well.

    Args:
        folder: What to write or replace.
        marks: Names of files of which a folder must hold one to be replaced, so that nothing else is ever deleted.

    Raises:
        FileExistsError: `folder` is there and is neither empty nor one of those that may be replaced.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and not (
        folder.is_dir() and (not any(folder.iterdir()) or any((folder / mark).is_file() for mark in marks))
    ):
        raise FileExistsError(
            f"{folder} holds something else (none of {', '.join(marks)}) and is not replaced; give another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.parent / f".{folder.name}-{kind}-{secrets.token_hex(4)}" for kind in ("new", "old"))
    fresh.mkdir()
    try:
        yield fresh
        readers = fresh.stat().st_mode & 0o666
        for file in (*fresh.rglob("*"), fresh):
            if file.is_file():
                file.chmod(readers)  # safetensors lets the owner alone read
            _sync(file)
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file or a folder."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
