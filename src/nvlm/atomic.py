"""Outputs that are either complete or absent.

Everything is first written beside its destination, on the same file system, and renamed into place
when it is whole: a crash leaves a hidden temporary entry, never half an output, and a file that DVC
has hard-linked into its cache is never written in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_path(destination: Path) -> Path:
    """The hidden neighbour in which ``destination`` is built (one builder at a time)."""
    return destination.parent / f".{destination.name}.partial"


@contextmanager
def atomic_directory(destination: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``destination`` when the block ends without an error.

    An existing ``destination`` is replaced at the end, and kept if the block fails.
    """
    partial = temporary_path(destination)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    publish_directory(partial, destination)


def publish_directory(partial: Path, destination: Path) -> None:
    """Flush ``partial`` to disk and rename it to ``destination``, replacing what is there.

    What is there is renamed before it is removed: a crash never leaves half of it behind under its
    name.
    """
    for root, _, files in os.walk(partial):
        for name in files:
            _fsync(Path(root) / name)
        _fsync(Path(root))
    retired = destination.parent / f".{destination.name}.retired"
    shutil.rmtree(retired, ignore_errors=True)
    if destination.is_symlink() or destination.is_file():
        destination.unlink()
    elif destination.exists():
        destination.rename(retired)
    partial.rename(destination)
    _fsync(destination.parent)
    shutil.rmtree(retired, ignore_errors=True)


def write_text(destination: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``destination``, creating parents, whole or not at all."""
    write_bytes(destination, text.encode())


def write_bytes(destination: Path, data: bytes) -> None:
    """Write ``data`` to ``destination``, creating parents, whole or not at all."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_path(destination)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(destination)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
