"""Many files at a time: workers compute, hash and write them while one more thread flushes.

A file's fsync starts when the file is written: the disk works while the next files are computed,
and the flush before a checkpoint is published finds little left to do.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from nvlm.checkpoint.files import FileEntry, write_part
from nvlm.checkpoint.tasks import Result, run_tasks

AHEAD = 4  # files that may wait for the disk: bounds the dirty pages of slow disks

# What is to be written: tensor-parallel rank, part, and how its tensors are made.
Job = tuple[int, str, Callable[[], Mapping[str, Tensor | Sequence[Tensor]]]]


def write_files(
    tasks: Iterable[Callable[[], tuple[Path, Result]]], total: int, description: str
) -> Iterator[Result]:
    """Run ``tasks``, each of which writes the file that it returns; flush every file to disk.

    Yields their other results in order. Shows progress against ``total`` bytes.
    """
    flushing: deque[Future[None]] = deque()
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc=description, disable=None) as progress,
        ThreadPoolExecutor(1) as flusher,
    ):
        for path, result in run_tasks(tasks):
            flushing.append(flusher.submit(_flush, path))
            if len(flushing) > AHEAD:
                flushing.popleft().result()
            progress.update(path.stat().st_size)
            yield result
        for flushed in flushing:
            flushed.result()


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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
