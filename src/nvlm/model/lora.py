"""Low-rank adaptation of the decoder's linear layers, whole or split over tensor-parallel ranks.

The layer's own weight is frozen; two small matrices beside it are trained, as parameters ``lora_A``
and ``lora_B`` of the same module, so that no name of the decoder changes. PEFT has such layers for
Megatron's linears and transformers' own tensor parallelism, which bring collectives of their own.
Here what the matrices add is this rank's part of what the layer gives, and goes through the layer's
own collectives, with or without sequence parallelism: a layer split by output has A whole and its
rows of B, one split by input its columns of A and B whole. Where a matrix is whole, each rank has
a part of its gradient: ``nvlm.parallel.sequence.reduce_shared`` sums them, once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.nn import functional

from nvlm.checkpoint.format.adapter import TARGETS, Adapter
from nvlm.checkpoint.format.sharding import shard
from nvlm.checkpoint.parts.adapter import DOWN, UP, adapter_split
from nvlm.model.nvlm import NVLM


def add_adapter(
    model: NVLM,
    mesh: DeviceMesh,
    adapter: Adapter,
    matrices: Callable[[int], Mapping[str, Tensor]],
    *,
    dropout: float = 0.0,
) -> None:
    """Adapt the decoder of ``model``, in place, after it was split over the ranks of ``mesh``.

    ``matrices`` gives those of a layer, numbered through all stages, whole; they keep their dtype
    and require a gradient. ``dropout``: of what A reads, in training.
    """
    model.adapter = adapter
    for number, layer in enumerate(model.language_model.model.layers):
        whole = matrices(model.stage.first + number)
        for target in adapter.targets:
            linear = layer.get_submodule(TARGETS[target])
            assert isinstance(linear, nn.Linear)
            for kind in (DOWN, UP):
                name = f"{TARGETS[target]}.{kind}"
                own = _own(whole[name], adapter_split(name), mesh, linear.weight.device)
                linear.register_parameter(kind, nn.Parameter(own))
            linear.forward = partial(_adapted, linear, adapter.scaling, dropout)  # type: ignore[method-assign]


def _own(whole: Tensor, split: int | None, mesh: DeviceMesh, device: torch.device) -> Tensor:
    """This rank's share of a matrix."""
    if split is None or mesh.size() == 1:
        return whole.to(device)
    own = shard(whole, split, mesh.get_local_rank(), mesh.size()).contiguous().to(device)
    return DTensor.from_local(
        own, mesh, [Shard(split)], run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _adapted(linear: nn.Linear, scaling: float, dropout: float, inputs: Tensor) -> Tensor:
    """W x + b + scaling B A x; of a split layer this rank's part of it, as a DTensor."""
    output = functional.linear(inputs, linear.weight, linear.bias)
    if isinstance(inputs, DTensor):
        (placement,) = inputs.placements
        # What is whole gets from each rank a part of its gradient.
        back = Partial() if placement.is_replicate() else placement
        inputs = inputs.to_local(grad_placements=[back])
    dropped = functional.dropout(inputs, dropout, linear.training)
    down, up = (_local(linear.get_parameter(kind)) for kind in (DOWN, UP))
    added = scaling * functional.linear(functional.linear(dropped, down), up)
    if isinstance(output, DTensor):
        added = DTensor.from_local(added, output.device_mesh, output.placements, run_check=False)
    return output + added


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
