"""How many samples came by, and how many of them lost tiles or were left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from nvlm.data.loading.batch import Batch
from nvlm.data.loading.shortfall import dataset_of

KEYS_SHOWN = 3  # samples that a sentence names


@dataclass(kw_only=True)
class Tally:
    """Samples and shortfalls of a stretch of the stream, by dataset."""

    kept: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)  # by kind
    longest: Counter[str] = field(default_factory=Counter)  # tokens, of those that fell short
    keys: list[str] = field(default_factory=list)  # of the first ones

    def add(self, batch: Batch) -> None:
        """Count the samples of ``batch``, and what was left out on the way to them."""
        self.kept.update(dataset_of(key) for row in batch.keys for key in row)
        for shortfall in batch.shortfalls:
            dataset = dataset_of(shortfall.key)
            self.kinds.setdefault(shortfall.kind, Counter())[dataset] += 1
            self.longest[dataset] = max(self.longest[dataset], shortfall.tokens)
            if len(self.keys) < KEYS_SHOWN:
                self.keys.append(shortfall.key)

    def count(self, kind: str, dataset: str | None = None) -> int:
        """Shortfalls of ``kind``, of one dataset or of all."""
        counts = self.kinds.get(kind, Counter())
        return counts.total() if dataset is None else counts[dataset]

    def left_out(self, dataset: str | None = None) -> int:
        """Samples that no row holds."""
        return self.count("too long", dataset) + self.count("unreadable", dataset)

    def read(self, dataset: str | None = None) -> int:
        """Samples that came out of the shards, left out or not."""
        kept = self.kept.total() if dataset is None else self.kept[dataset]
        return kept + self.left_out(dataset)

    @property
    def length_for_all(self) -> int:
        """The ``sequence_length`` that would have held every sample whole; 0 where that in use did.

        Of samples that came by: a longer one may come yet.
        """
        return max(self.longest.values(), default=0)

    def shares(self) -> dict[str, float]:
        """Of the samples that were read."""
        read = max(self.read(), 1)
        return {"lost_tiles": self.count("fewer tiles") / read, "left_out": self.left_out() / read}

    def sentence(self, sequence_length: int) -> str:
        """What fell short, of which datasets, and what would help; empty where nothing did."""
        if not self.kinds:
            return ""
        by_dataset: Counter[str] = sum(self.kinds.values(), Counter())
        datasets = ", ".join(f"{name} {count:,}" for name, count in by_dataset.most_common())
        told = (
            f"{self.count('fewer tiles'):,} of {self.read():,} samples lost tiles, "
            f"{self.left_out():,} were left out ({self.count('too long'):,} too long, "
            f"{self.count('unreadable'):,} unreadable): {datasets}, such as {', '.join(self.keys)}"
        )
        if not self.length_for_all:
            return told
        return (
            f"{told}; data.sequence_length {self.length_for_all:,} in place of {sequence_length:,} "
            "would hold each of them whole"
        )
