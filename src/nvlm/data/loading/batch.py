"""What the loader hands to the model: rows of packed samples, as tensors.

Shapes: B rows, S positions a row, N tiles of H x W pixels in the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvlm.data.loading.shortfall import Shortfall
from nvlm.model.tokens import IGNORED, TEXT, EncodedConversation

PADDING_SEGMENT = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed rows. All tensors but ``tiles`` are int64."""

    input_ids: Tensor  # (B, S)
    position_ids: Tensor  # (B, S), from 0 in each sample; padding goes on with the row's
    segment_ids: Tensor  # (B, S), 1, 2, ... for the samples of a row; 0 = padding
    segment_lengths: Tensor  # (B, K), of the samples of a row, then of its padding, then zeros
    labels: Tensor  # (B, S), the id to predict (already shifted) or IGNORED
    visual_index: Tensor  # (B, S), position among the row's visual tokens, or TEXT
    tiles: Tensor  # (N, 3, H, W) uint8, row by row
    tiles_per_row: Tensor  # (B,)
    lengths: list[int]  # of the rows without their padding
    keys: list[list[str]]  # of the samples in each row, to name them by
    # Of these samples, and of those left out on the way to them.
    shortfalls: list[Shortfall] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``."""
        values: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        tensors = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return Batch(**(values | tensors))


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample and its tiles."""

    key: str  # names the sample: DATASET/KEY
    conversation: EncodedConversation
    tiles: NDArray[np.uint8]  # (tiles, H, W, 3)
    shortfalls: tuple[Shortfall, ...] = ()  # its own, and those of samples left out before it

    def __len__(self) -> int:
        return len(self.conversation)


def collate(rows: Sequence[Sequence[EncodedSample]], length: int) -> Batch:
    """Lay out ``rows``, each a list of samples, as a batch of rows of ``length`` positions.

    Raises ValueError if a row's samples do not fit.
    """
    arrays = {
        "input_ids": np.zeros((len(rows), length), dtype=np.int64),
        # Positions that began anew in the padding would look like another sample.
        "position_ids": np.tile(np.arange(length, dtype=np.int64), (len(rows), 1)),
        "segment_ids": np.full((len(rows), length), PADDING_SEGMENT, dtype=np.int64),
        "labels": np.full((len(rows), length), IGNORED, dtype=np.int64),
        "visual_index": np.full((len(rows), length), TEXT, dtype=np.int64),
    }
    for row, samples in enumerate(rows):
        _fill_row({name: array[row] for name, array in arrays.items()}, samples)
    tiles = np.concatenate([sample.tiles for samples in rows for sample in samples])
    lengths = [sum(map(len, samples)) for samples in rows]
    segments = [
        [*map(len, samples), length - own] for samples, own in zip(rows, lengths, strict=True)
    ]
    longest = max(map(len, segments))
    return Batch(
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        tiles=torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))),
        tiles_per_row=torch.tensor(
            [sum(len(sample.tiles) for sample in samples) for samples in rows], dtype=torch.int64
        ),
        segment_lengths=torch.tensor([own + [0] * (longest - len(own)) for own in segments]),
        lengths=lengths,
        keys=[[sample.key for sample in samples] for samples in rows],
        shortfalls=[note for samples in rows for sample in samples for note in sample.shortfalls],
    )


def _fill_row(row: dict[str, NDArray[np.int64]], samples: Sequence[EncodedSample]) -> None:
    """Write ``samples`` one after the other into the arrays (S,) of one row."""
    start = visual_tokens = 0
    for number, sample in enumerate(samples, start=1):
        place = slice(start, start + len(sample))
        encoded = sample.conversation
        if place.stop > len(row["input_ids"]):
            raise ValueError(f"samples of {place.stop} tokens in a row of {len(row['input_ids'])}")
        is_visual = encoded.visual_index != TEXT
        row["input_ids"][place] = encoded.input_ids
        row["position_ids"][place] = np.arange(len(sample))
        row["segment_ids"][place] = number
        row["labels"][place] = encoded.labels
        row["visual_index"][place] = np.where(is_visual, encoded.visual_index + visual_tokens, TEXT)
        start = place.stop
        visual_tokens += int(is_visual.sum())
