"""An adapter's matrices of one decoder layer: shapes, shards, first values, and folding them in.

Names are those of the layers with ``.lora_A`` (rank, inputs) and ``.lora_B`` (outputs, rank), as in
PEFT; inputs and outputs are in Hugging Face's order.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from nvlm.checkpoint.format.adapter import TARGETS, Adapter, adapter_path
from nvlm.checkpoint.format.architecture import LanguageArchitecture
from nvlm.checkpoint.format.files import read_part, read_tensors
from nvlm.checkpoint.format.manifest import Manifest
from nvlm.checkpoint.format.sharding import shard
from nvlm.checkpoint.parts.language import SPLIT, layer_shapes, layer_to_hf

DOWN, UP = "lora_A", "lora_B"


def adapter_shapes(
    architecture: LanguageArchitecture, adapter: Adapter
) -> dict[str, tuple[int, int]]:
    """Names and shapes of the whole matrices of a layer."""
    layer = layer_shapes(architecture)
    shapes = {}
    for target in adapter.targets:
        outputs, inputs = layer[f"{TARGETS[target]}.weight"]
        shapes[f"{TARGETS[target]}.{DOWN}"] = (adapter.rank, inputs)
        shapes[f"{TARGETS[target]}.{UP}"] = (outputs, adapter.rank)
    return shapes


def adapter_split(name: str) -> int | None:
    """The dimension along which tensor-parallel ranks share matrix ``name``; None: all have it.

    Each goes with its layer: B is split with the layer's outputs, or A with its inputs.
    """
    module, _, matrix = name.rpartition(".")
    split = SPLIT[f"{module}.weight"]
    return split if split == (1 if matrix == DOWN else 0) else None


def fresh_matrices(
    architecture: LanguageArchitecture, adapter: Adapter, layer: int, seed: int
) -> dict[str, Tensor]:
    """What training starts from, in fp32: B is zero, and A drawn as PEFT draws it.

    Each matrix has random numbers of its own, by ``seed`` and its name: no grid changes them.
    """
    matrices = {}
    for name, shape in adapter_shapes(architecture, adapter).items():
        matrix = matrices[name] = torch.zeros(shape)
        if name.endswith(DOWN):
            drawn_by = hashlib.sha256(f"{seed} {layer} {name}".encode()).digest()[:8]
            generator = torch.Generator().manual_seed(int.from_bytes(drawn_by, "little") >> 1)
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)
    return matrices


def read_layer(directory: Path, manifest: Manifest, rank: int, part: str) -> dict[str, Tensor]:
    """Rank ``rank``'s shard of decoder layer ``part`` under Hugging Face's names.

    An adapter of ``manifest`` is folded in: W + alpha / rank * B A in fp32, then cast to what the
    weights are in.
    """
    decoder, adapter, size = manifest.architecture.language, manifest.adapter, manifest.grid.tensor
    assert decoder is not None
    layer = layer_to_hf(read_part(directory, rank, part), decoder, size)
    if adapter is None:
        return layer
    matrices = read_tensors(directory / adapter_path(int(part.rpartition(".")[2])))
    for target in adapter.targets:
        name = TARGETS[target]
        down, up = (
            shard(matrices[f"{name}.{kind}"], adapter_split(f"{name}.{kind}"), rank, size).float()
            for kind in (DOWN, UP)
        )
        weight = layer[f"{name}.weight"]
        layer[f"{name}.weight"] = (weight.float() + adapter.scaling * (up @ down)).to(weight.dtype)
    return layer
