"""Many files at a time: two workers compute, hash and write them.

The disk begins with a file when it is written, and works while the next ones are computed: the one
pass of fsync before a checkpoint is published finds little left to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from nvlm.checkpoint.format.files import FileEntry, write_part
from nvlm.checkpoint.format.tasks import Result, run_tasks

# What is to be written: tensor-parallel rank, part, and how its tensors are made.
Job = tuple[int, str, Callable[[], Mapping[str, Tensor | Sequence[Tensor]]]]


def write_files(
    tasks: Iterable[Callable[[], tuple[Path, Result]]], total: int, description: str
) -> Iterator[Result]:
    """Run ``tasks``, each of which writes the file that it returns.

    Yields their other results in order. Shows progress against ``total`` bytes.
    """
    with tqdm(total=total, unit="B", unit_scale=True, desc=description, disable=None) as progress:
        for path, result in run_tasks(partial(_write, task) for task in tasks):
            progress.update(path.stat().st_size)
            yield result


def write_parts(
    directory: Path, jobs: Iterable[Job], total: int, description: str
) -> dict[str, FileEntry]:
    """Write the parts that ``jobs`` make into ``directory``; their manifest entries by path."""

    def task(
        rank: int, part: str, tensors: Callable[[], Mapping[str, Tensor | Sequence[Tensor]]]
    ) -> _Task:
        def run() -> tuple[Path, tuple[str, FileEntry]]:
            name, entry = write_part(directory, rank, part, tensors())
            return directory / name, (name, entry)

        return run

    tasks = (task(*job) for job in jobs)
    return dict(write_files(tasks, total, description))


_Task = Callable[[], tuple[Path, tuple[str, FileEntry]]]


def _write(task: Callable[[], tuple[Path, Result]]) -> tuple[Path, Result]:
    path, result = task()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Linux begins to write dirty pages out when told that they won't be needed. (An fsync here
        # would wait for a commit of the file system's journal, file by file.)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return path, result
