"""The projector: Megatron-core's names and this project's modules', its first values, its shards.

C: channels of a visual token, F: decoder FFN size, H: decoder hidden size; F divided by the
tensor-parallel size in a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.sharding import shard

# Megatron-core's name of each parameter of nvlm.model.vision.Projector.
NAMES = {
    "layer_norm.weight": "encoder.linear_fc1.layer_norm_weight",
    "layer_norm.bias": "encoder.linear_fc1.layer_norm_bias",
    "linear_1.weight": "encoder.linear_fc1.weight",
    "linear_2.weight": "encoder.linear_fc2.weight",
}
SPLIT = {"encoder.linear_fc1.weight": 0, "encoder.linear_fc2.weight": 1}


@dataclass(frozen=True, kw_only=True)
class ProjectorParams:
    """How a fresh projector is drawn."""

    init_std: float  # of the two linear layers
    seed: int

    def __post_init__(self) -> None:
        if self.init_std <= 0:
            raise ValueError(f"init_std: {self.init_std} should be more than 0")


def to_model(core: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Megatron-core shard under the module's names."""
    return {name: core[core_name] for name, core_name in NAMES.items()}


def to_core(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_model``."""
    return {core_name: model[name] for name, core_name in NAMES.items()}


def core_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the whole projector (paper section 4.1)."""
    assert architecture.vision and architecture.language
    features, language = architecture.vision.feature_size, architecture.language
    return {
        "encoder.linear_fc1.layer_norm_weight": (features,),
        "encoder.linear_fc1.layer_norm_bias": (features,),
        "encoder.linear_fc1.weight": (language.ffn_hidden_size, features),
        "encoder.linear_fc2.weight": (language.hidden_size, language.ffn_hidden_size),
    }


def fresh_projector(
    architecture: Architecture, params: ProjectorParams, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A whole projector before training: normal(0, init_std) weights, an identity LayerNorm.

    Each tensor is drawn whole, from a seed of its own: the values do not depend on the grid.
    """
    tensors = {}
    for name, shape in core_shapes(architecture).items():
        tensor = torch.empty(shape, dtype=dtype)
        if name.endswith("layer_norm_weight"):
            tensor.fill_(1.0)
        elif name.endswith("layer_norm_bias"):
            tensor.zero_()
        else:
            digest = hashlib.sha256(f"{params.seed}/{name}".encode()).digest()
            seed = int.from_bytes(digest[:7], "big")
            tensor.normal_(0.0, params.init_std, generator=torch.Generator().manual_seed(seed))
        tensors[name] = tensor
    return tensors


def slice_projector(whole: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
    """Rank ``rank``'s shard of a whole projector under Megatron-core names."""
    return {name: shard(tensor, SPLIT.get(name), rank, size) for name, tensor in whole.items()}
