"""AdamW, its learning-rate schedule, and the gradient norm over the whole grid."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from nvlm.parallel.mesh import Mesh
from nvlm.train.params import TrainParams


def build_optimizer(model: nn.Module, params: TrainParams) -> AdamW:
    """AdamW over the trainable parameters; matrices decay, biases and norms don't.

    Parameters of different meshes are in groups of their own: PyTorch updates a group at once.
    """
    groups: dict[tuple[bool, tuple[str, ...]], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            mesh = parameter.device_mesh.mesh_dim_names if isinstance(parameter, DTensor) else None
            key = (parameter.ndim > 1, mesh or ())
            groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": params.weight_decay if decays else 0.0}
        for (decays, _), parameters in groups.items()
    ]
    beta1, beta2 = params.betas
    return AdamW(settings, lr=params.lr, betas=(beta1, beta2), fused=True)


def learning_rate(step: int, params: TrainParams) -> float:
    """Learning rate of ``step`` (from 1): linear warmup, then a cosine down to ``min_lr``."""
    if step <= params.warmup_steps:
        return params.lr * step / params.warmup_steps
    progress = (step - params.warmup_steps) / (params.steps - params.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return params.min_lr + (params.lr - params.min_lr) * cosine


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    largest: float,
    mesh: Mesh,
    *,
    repeated: nn.Parameter | None = None,
) -> Tensor:
    """Scale all gradients down to a global norm of ``largest``; return the norm before that.

    The norm is that of the one model which the grid holds in pieces: what is sharded over data or
    tensor ranks is added over them, stages over the pipeline, and what is whole is counted once.
    ``repeated`` is scaled, and not counted: another stage does that.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    counted = [g for g in gradients if repeated is None or g is not repeated.grad]
    groups = {"shard": mesh.whole["shard"].get_group(), "tensor": mesh.tensor.get_group()}
    # Rows: sharded over data or not; columns: sharded over tensor or not.
    squares = torch.zeros(2, 2, dtype=torch.float64, device=mesh.device)
    for gradient in counted:
        over = _sharded_over(gradient)
        place = int("shard" in over), int("tensor" in over)
        squares[place] += torch.linalg.vector_norm(_local(gradient), dtype=torch.float64).square()
    dist.all_reduce(over_data := squares[1].clone(), group=groups["shard"])
    by_tensor = squares[0] + over_data
    dist.all_reduce(over_tensor := by_tensor[1].clone(), group=groups["tensor"])
    total = by_tensor[0] + over_tensor
    dist.all_reduce(total, group=mesh.pipeline.get_group())
    norm = total.sqrt().float()
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        _local(gradient).mul_(scale)
    return norm


def _sharded_over(tensor: Tensor) -> set[str]:
    """Names of the mesh dimensions over which ``tensor`` is sharded."""
    if not isinstance(tensor, DTensor):
        return set()
    names = tensor.device_mesh.mesh_dim_names or ()
    return {
        name
        for name, placement in zip(names, tensor.placements, strict=True)
        if not placement.is_replicate()
    }


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
