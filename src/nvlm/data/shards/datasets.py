"""What configuration says about one training dataset."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.data.packaged.composed import PACKAGED
from nvlm.data.published.layouts import Layout
from nvlm.model.prompts import PROMPTS

DIRECTORY = "records"  # a directory laid out by the user, see nvlm.data.published.directory
PUBLISHED = "published"  # a directory with the publisher's own files, which a layout explains


@dataclass(frozen=True, kw_only=True)
class DatasetParams:
    """One dataset of conf/data."""

    source: str  # one of the two above, or a name of nvlm.data.packaged.composed.PACKAGED
    # Path that the stage waits for: the manifest of a fetched source (nvlm.data.published.sources),
    # or the directory itself that a person has laid out.
    requires: str
    samples: int | None  # at most so many records are read; null = all
    samples_per_shard: int
    max_skipped: float  # fail when a larger share of the records cannot be used, 0 to 1
    images: str = ""  # likewise, where its pictures lie; "" = there too
    seed: int = 0  # of packaged sources; a directory is read in its own order
    layout: Layout | None = None
    task: str = ""  # list of prompts (nvlm.model.prompts) that the loader draws from
    workers: int = 0  # processes that write shards; 0 = this one itself

    def __post_init__(self) -> None:
        known = (*PACKAGED, DIRECTORY, PUBLISHED)
        if self.source not in known:
            raise ValueError(f"source: {self.source!r} should be one of {', '.join(known)}")
        if self.source in PACKAGED and self.samples is None:
            raise ValueError("samples: a packaged source needs a number")
        if (self.source == PUBLISHED) != (self.layout is not None):
            raise ValueError("layout: needed for the source 'published', and for no other")
        if self.task and self.task not in PROMPTS:
            raise ValueError(f"task: {self.task!r} should be one of {', '.join(PROMPTS)}")
        if self.samples_per_shard < 1 or not 0 <= self.max_skipped <= 1 or self.workers < 0:
            raise ValueError("samples_per_shard: from 1; max_skipped: from 0 to 1; workers: from 0")
