"""The records of a dataset, whatever its source."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from nvlm.data.packaged.composed import PACKAGED
from nvlm.data.published.directory import ANNOTATIONS, read_records
from nvlm.data.published.layouts import annotation_files, read_layout
from nvlm.data.records import Records
from nvlm.data.shards.datasets import DIRECTORY, PUBLISHED, DatasetParams
from nvlm.fetch.manifest import directory_of, why_missing


def records(params: DatasetParams) -> Records:
    """At most ``params.samples`` records; those of a directory are read in its own order."""
    if params.source == PUBLISHED:
        assert params.layout is not None
        images = directory_of(params.images or params.requires)
        return read_layout(params.layout, directory_of(params.requires), images, params.samples)
    if params.source == DIRECTORY:
        return islice(read_records(directory_of(params.requires)), params.samples)
    return islice(PACKAGED[params.source](np.random.default_rng(params.seed)), params.samples)


def reason_missing(params: DatasetParams) -> str:
    """Why the dataset can't be had, as its source's manifest says; "" if it is there."""
    if params.source in (PUBLISHED, DIRECTORY):
        return why_missing(params.requires, params.images)
    return ""


def annotation_paths(params: DatasetParams) -> list[Path]:
    """The files whose change would change the records; none for packaged sources."""
    directory = directory_of(params.requires)
    if params.source == PUBLISHED:
        assert params.layout is not None
        joined = [directory / join.file for join in params.layout.join.values()]
        excluded = [directory / file for file in params.layout.exclude.values()]
        return [*annotation_files(params.layout, directory), *joined, *excluded]
    return [directory / ANNOTATIONS] if params.source == DIRECTORY else []
