"""There and back again: conversions that have to return every tensor, bit by bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nvlm.checkpoint.format.layout import LANGUAGE, VISION
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.checkpoint.relayout.reshard import reshard
from nvlm.checkpoint.verify.compare import Comparison, compare, compare_with_source

SHARD_BYTES = 5 << 30


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """What a round trip returned."""

    tensors: int
    different: int
    first: str | None  # the first difference, told by name


def pipeline_round_trip(checkpoint: Path, stages: int) -> RoundTrip:
    """``checkpoint`` in ``stages`` pipeline stages, and back."""
    manifest = read_manifest(checkpoint)
    with _scratch(checkpoint) as scratch:
        reshard(checkpoint, scratch / "there", pipeline=stages)
        reshard(scratch / "there", scratch / "back", pipeline=manifest.grid.pipeline)
        return _summary(compare(checkpoint, scratch / "back"))


def tensor_round_trip(checkpoint: Path, size: int) -> RoundTrip:
    """``checkpoint`` on ``size`` tensor-parallel ranks, and back: every file is rewritten."""
    manifest = read_manifest(checkpoint)
    with _scratch(checkpoint) as scratch:
        reshard(checkpoint, scratch / "there", tensor=size)
        reshard(scratch / "there", scratch / "back", tensor=manifest.grid.tensor)
        return _summary(compare(checkpoint, scratch / "back"))


def hugging_face_round_trip(checkpoint: Path, vision: Path, language: Path) -> RoundTrip:
    """The export of ``checkpoint`` against the repos that its halves were converted from."""
    architecture = read_manifest(checkpoint).architecture
    with _scratch(checkpoint) as scratch:
        export_hf(checkpoint, scratch / "hf", shard_bytes=SHARD_BYTES)
        halves = ((VISION, vision), (LANGUAGE, language))
        return _summary(
            comparison
            for half, source in halves
            for comparison in compare_with_source(scratch / "hf", source, half, architecture)
        )


@contextmanager
def _scratch(checkpoint: Path) -> Iterator[Path]:
    """A directory beside ``checkpoint``, on its file system so that links are possible."""
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix=".round-trip-") as name:
        yield Path(name)


def _summary(comparisons: Iterable[Comparison]) -> RoundTrip:
    tensors, different, first = 0, 0, None
    for comparison in comparisons:
        tensors += 1
        if comparison.difference is not None:
            different += 1
            first = first or f"{comparison.name}: {comparison.difference}"
    return RoundTrip(tensors=tensors, different=different, first=first)
