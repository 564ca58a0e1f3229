"""A tensor and its equal shards over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvlm.errors import UserError

# Integers as wide as an element of so many bytes.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def shard(tensor: Tensor, dimension: int | None, rank: int, size: int) -> Tensor:
    """Rank ``rank``'s view of ``tensor``: one of ``size`` equal slices, or all if None."""
    if dimension is None:
        return tensor
    length = tensor.shape[dimension] // size
    return tensor.narrow(dimension, rank * length, length)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether shapes, dtypes and bits agree: a NaN equals itself, and -0.0 is not 0.0."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    return torch.equal(as_bits(first), as_bits(second))


def as_bits(tensor: Tensor) -> Tensor:
    """The elements of ``tensor`` in row-major order, their bits taken for integers."""
    return tensor.reshape(-1).view(BITS[tensor.element_size()])


def join(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces along the first dimension as one tensor; a single one is returned as it is."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def merge(shards: Sequence[Tensor], dimension: int | None, name: str) -> Tensor:
    """The tensor whose shards these are; replicated ones (None) have to be equal.

    Raises UserError naming tensor ``name`` if they are not.
    """
    if dimension is not None:
        return torch.cat(list(shards), dimension)
    if not all(same_bits(shards[0], other) for other in shards[1:]):
        raise UserError(f"{name} should be the same on every tensor-parallel rank, and is not")
    return shards[0]


def reshard(
    shards: Sequence[Tensor], dimension: int | None, rank: int, size: int, name: str
) -> Tensor:
    """Rank ``rank`` of ``size``'s shard, out of the shards of another number of ranks.

    Only what overlaps is touched. Raises UserError naming tensor ``name`` if a replicated one
    (None) differs between the ranks.
    """
    if dimension is None:
        return merge(shards, None, name)
    length = shards[0].shape[dimension]
    own = length * len(shards) // size
    pieces = []
    for index, tensor in enumerate(shards):
        start = max(rank * own - index * length, 0)
        end = min((rank + 1) * own - index * length, length)
        if start < end:
            pieces.append(tensor.narrow(dimension, start, end - start))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dimension)
