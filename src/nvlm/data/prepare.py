"""One training dataset: from its source to indexed shards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nvlm.atomic import atomic_directory, write_text
from nvlm.data.images import UnreadableImageError, storable
from nvlm.data.records import Content, Record
from nvlm.data.shards import ShardWriter, index_shards, shard_writer
from nvlm.data.sources import DIRECTORY, PACKAGED, records
from nvlm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DatasetParams:
    """One dataset of conf/data."""

    source: str  # a name of nvlm.data.sources, or "records": a directory laid out by the user
    requires: str  # path that the stage waits for; the directory itself for "records"
    samples: int | None  # at most so many records are read; null = all
    samples_per_shard: int
    max_skipped: int  # fail when more images than this are unreadable
    seed: int = 0  # of packaged sources; a directory is read in its own order

    def __post_init__(self) -> None:
        if self.source not in (*PACKAGED, DIRECTORY):
            known = ", ".join([*PACKAGED, DIRECTORY])
            raise ValueError(f"source: {self.source!r} should be one of {known}")
        if self.source != DIRECTORY and self.samples is None:
            raise ValueError("samples: a packaged source needs a number")
        if self.samples_per_shard < 1 or self.max_skipped < 0:
            raise ValueError("samples_per_shard: from 1; max_skipped: from 0")


def prepare_dataset(params: DatasetParams, out: Path, metrics: Path) -> None:
    """Write the shards and index of one dataset to ``out``, and what was counted to ``metrics``.

    An image that cannot be read is left out, named on stderr and counted. Raises UserError, and
    leaves nothing behind, if there are more than ``max_skipped`` of them or no sample at all.
    """
    stream = records(params.source, Path(params.requires), params.samples, params.seed)
    with atomic_directory(out) as partial:
        with shard_writer(partial, params.samples_per_shard) as writer:
            content, skipped = _write(
                tqdm(stream, total=params.samples, disable=None), writer, params
            )
        index_shards(partial, content)
    counts = {"samples": writer.samples, "shards": writer.shards, "skipped": skipped}
    write_text(metrics, json.dumps(counts, indent=2) + "\n")


def _write(
    stream: Iterable[Record], writer: ShardWriter, params: DatasetParams
) -> tuple[type[Content], int]:
    """Write ``stream``; return its one type of content and the number of unreadable images."""
    content: type[Content] | None = None
    skipped = 0
    for position, record in enumerate(stream):
        content = content or type(record.content)
        if type(record.content) is not content:
            raise UserError(
                f"{params.requires}: record {position} is a {type(record.content).__name__}, those "
                f"before it are of type {content.__name__}: make it two datasets"
            )
        try:
            image, extension = storable(record.image)
        except UnreadableImageError as error:
            skipped += 1
            name = record.provenance.source
            print(f"skipped record {position} ({name}): {error}", file=sys.stderr)
            if skipped > params.max_skipped:
                raise UserError(
                    f"{params.requires}: more than {params.max_skipped} unreadable images, the "
                    f"last one is {name}: mend them or raise max_skipped"
                ) from error
            continue
        writer.write(f"{position:09d}", image, extension, record.annotation())
    if content is None or not writer.samples:
        raise UserError(f"{params.requires}: the source {params.source} gave no readable sample")
    return content, skipped
