"""Where a rank's tensors lie in the whole ones: what a ``torch_dist`` checkpoint is made of.

As Megatron-core's ``sharded_state_dict``: ranks hold equal blocks along one dimension, and of the
decoder's gate and up (``apply_swiglu_sharded_factory``) all ranks' gates come before all ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm.checkpoint.format.layout import LANGUAGE

# Ends of Megatron's names, and the dimension along which ranks share such a tensor out.
SPLIT = {
    "word_embeddings.weight": 0,
    "output_layer.weight": 0,
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "q_layernorm.weight": 0,
    "k_layernorm.weight": 0,
    "linear_proj.weight": 1,
    "linear_fc1.weight": 0,
    "linear_fc1.bias": 0,
    "linear_fc2.weight": 1,
}
GATE_AND_UP = "mlp.linear_fc1.weight"  # of the decoder


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of a rank's tensor, from ``first_row`` on, and their place in the whole one."""

    first_row: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def whole_shape(name: str, shape: Sequence[int], size: int) -> tuple[int, ...]:
    """The shape of the tensor that each of ``size`` ranks holds ``shape`` of.

    ``name``: of a combined file (``names.with_prefix``), here and below.
    """
    split = _split(name)
    return tuple(n * size if axis == split else n for axis, n in enumerate(shape))


def rank_shape(name: str, whole: Sequence[int], size: int) -> tuple[int, ...]:
    """The shape of each of ``size`` ranks' share of a tensor. Raises ValueError for a remainder."""
    split = _split(name)
    if split is not None and (split >= len(whole) or whole[split] % size):
        raise ValueError(f"{name} of shape {list(whole)} does not divide by {size}")
    return tuple(n // size if axis == split else n for axis, n in enumerate(whole))


def blocks(name: str, shape: Sequence[int], rank: int, size: int) -> list[Block]:
    """Where the tensor of ``shape`` that rank ``rank`` of ``size`` holds lies in the whole one."""
    split, start = _split(name), [0] * len(shape)
    if split is not None:
        start[split] = rank * shape[split]
    if not (name.startswith(f"{LANGUAGE}.") and name.endswith(GATE_AND_UP)):
        return [Block(first_row=0, offsets=tuple(start), sizes=tuple(shape))]
    rows = shape[0] // 2  # the gate's, and the up's
    return [
        Block(
            first_row=half * rows,
            offsets=((half * size + rank) * rows, *start[1:]),
            sizes=(rows, *shape[1:]),
        )
        for half in (0, 1)
    ]


def _split(name: str) -> int | None:
    return SPLIT.get(".".join(name.split(".")[-2:]))
