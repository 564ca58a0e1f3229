"""A tensor and its equal shards over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvlm.errors import UserError


def shard(tensor: Tensor, dimension: int | None, rank: int, size: int) -> Tensor:
    """Rank ``rank``'s view of ``tensor``: one of ``size`` equal slices, or all if None."""
    if dimension is None:
        return tensor
    length = tensor.shape[dimension] // size
    return tensor.narrow(dimension, rank * length, length)


def merge(shards: Sequence[Tensor], dimension: int | None, name: str) -> Tensor:
    """The tensor whose shards these are; replicated ones (None) have to be equal.

    Raises UserError naming tensor ``name`` if they are not.
    """
    if dimension is not None:
        return torch.cat(list(shards), dimension)
    if not all(torch.equal(shards[0], other) for other in shards[1:]):
        raise UserError(f"{name} should be the same on every tensor-parallel rank, and is not")
    return shards[0]
