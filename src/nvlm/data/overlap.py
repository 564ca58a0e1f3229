"""Evaluation pictures among training pictures, found by content, whatever they are called.

Two pictures are the same file if their bytes are, and alike if their fingerprints differ in few
bits: 256 signs of differences between neighbours of the picture shrunk to 17 x 16 grey pixels
("dHash", Krawetz 2013), which other sizes, compressions and small edits hardly change. A picture
without structure, a page or a wall, has few of these bits and would be like any other: it is
compared by its bytes alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from nvlm.data.shards.images import EXTENSIONS

SIDE = 16  # of the shrunken picture
LEAST_STRUCTURE = 32  # bits of 256
COMPARED_AT_ONCE = 2**24  # distances

Fingerprint = NDArray[np.uint64]  # (4,)


@dataclass(frozen=True, kw_only=True)
class OverlapParams:
    """``data.overlap``."""

    distance: int  # two pictures are alike when at most so many of 256 bits differ
    leave_out: bool  # training samples that show an evaluation picture

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= 64:
            raise ValueError(f"distance: from 0 to 64 of 256 bits, not {self.distance}")


@dataclass(frozen=True, kw_only=True)
class EvaluationPictures:
    """What training pictures are compared with."""

    tasks: list[str]  # of each picture
    digests: dict[bytes, frozenset[str]]  # SHA-256 of a file -> the tasks that have it
    places: NDArray[np.int64]  # (E,), in tasks, of those that have structure
    fingerprints: NDArray[np.uint64]  # (E, 4)


@dataclass(kw_only=True)
class Overlap:
    """What of a training set is in evaluation sets."""

    pictures: int = 0
    # Pictures by evaluation set, of which several may have one.
    same_file: Counter[str] = field(default_factory=Counter)
    alike: Counter[str] = field(default_factory=Counter)  # besides those
    samples: list[str] = field(default_factory=list)  # keys of samples that show one

    def __iadd__(self, other: Overlap) -> Overlap:
        self.pictures += other.pictures
        self.same_file += other.same_file
        self.alike += other.alike
        self.samples += other.samples
        return self


def overlap_workers() -> ProcessPoolExecutor:
    """As many processes as there are cores: decoding is what takes time."""
    return ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))


def read_evaluation(root: Path, pool: Executor) -> EvaluationPictures:
    """The pictures of all prepared evaluation sets in ``root``."""
    paths = [
        path
        for task in sorted(root.iterdir())
        for path in sorted((task / "images").rglob("*"))
        if path.is_file()
    ]
    described = pool.map(_describe_file, paths, chunksize=64)
    found = list(tqdm(described, "evaluation", len(paths), disable=None, delay=2))
    tasks = [path.relative_to(root).parts[0] for path in paths]
    kept = [place for place, (_, mark) in enumerate(found) if mark is not None]
    marks = [mark for _, mark in found if mark is not None]
    digests: dict[bytes, frozenset[str]] = {}
    for task, (digest, _) in zip(tasks, found, strict=True):
        digests[digest] = digests.get(digest, frozenset()) | {task}
    return EvaluationPictures(
        tasks=tasks,
        digests=digests,
        places=np.array(kept, dtype=np.int64),
        fingerprints=np.array(marks, dtype=np.uint64).reshape(-1, 4),
    )


def find_overlap(
    directory: Path, evaluation: EvaluationPictures, distance: int, pool: Executor
) -> Overlap:
    """Compare every picture of the prepared training set in ``directory`` with ``evaluation``."""
    shards = sorted(directory.glob("shard-*.tar"))
    total = Overlap()
    compare = partial(_of_shard, evaluation=evaluation, distance=distance)
    for found in tqdm(pool.map(compare, shards), directory.name, len(shards), disable=None):
        total += found
    return total


def fingerprint(data: bytes) -> Fingerprint | None:
    """The 256 bits of the encoded picture ``data``; None if it has no structure or is no picture.

    A large JPEG is decoded at a part of its size. Of 540 copies of blurred noise, shrunk to
    a third and compressed again, none differed in more than 9 bits; of unlike ones none in less
    than 108.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("L", (8 * SIDE, 8 * SIDE))
            small = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    pixels = np.asarray(small, dtype=np.int16)
    bits = pixels[:, 1:] > pixels[:, :-1]
    return np.packbits(bits).view(np.uint64) if bits.sum() >= LEAST_STRUCTURE else None


def _describe_file(path: Path) -> tuple[bytes, Fingerprint | None]:
    data = path.read_bytes()
    return hashlib.sha256(data).digest(), fingerprint(data)


def _of_shard(shard: Path, evaluation: EvaluationPictures, distance: int) -> Overlap:
    found = Overlap()
    pending: list[tuple[str, Fingerprint]] = []
    at_once = max(1, COMPARED_AT_ONCE // max(1, len(evaluation.fingerprints)))
    for key, data in _pictures(shard):
        found.pictures += 1
        if tasks := evaluation.digests.get(hashlib.sha256(data).digest()):
            found.same_file.update(tasks)
            found.samples.append(key)
        elif (mark := fingerprint(data)) is not None:
            pending.append((key, mark))
        if len(pending) >= at_once:
            _compare(pending, evaluation, distance, found)
            pending.clear()
    _compare(pending, evaluation, distance, found)
    found.samples = sorted(set(found.samples))
    return found


def _compare(
    pending: Sequence[tuple[str, Fingerprint]],
    evaluation: EvaluationPictures,
    distance: int,
    found: Overlap,
) -> None:
    """Add to ``found`` those of ``pending`` that are like an evaluation picture."""
    if not pending or not len(evaluation.fingerprints):
        return
    marks = np.stack([mark for _, mark in pending])
    distances = np.zeros((len(marks), len(evaluation.fingerprints)), dtype=np.int16)
    for word in range(marks.shape[1]):
        differing = marks[:, word, None] ^ evaluation.fingerprints[None, :, word]
        distances += np.bitwise_count(differing)
    for (key, _), row in zip(pending, distances <= distance, strict=True):
        if row.any():
            found.alike.update({evaluation.tasks[place] for place in evaluation.places[row]})
            found.samples.append(key)


def _pictures(shard: Path) -> Iterator[tuple[str, bytes]]:
    """Sample's key and bytes of each picture of a shard."""
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            key, _, part = member.name.partition(".")
            if part.rpartition(".")[2] in EXTENSIONS:
                extracted = tar.extractfile(member)
                assert extracted is not None
                yield key, extracted.read()
