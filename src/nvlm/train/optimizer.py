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

    Sharded and whole parameters are in groups of their own: PyTorch updates a group at once.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (parameter.ndim > 1, isinstance(parameter, DTensor))
            groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": params.weight_decay if decays else 0.0}
        for (decays, _), parameters in groups.items()
    ]
    beta1, beta2 = params.betas
    return AdamW(settings, lr=params.lr, betas=(beta1, beta2), foreach=True)


def learning_rate(step: int, params: TrainParams) -> float:
    """Learning rate of ``step`` (from 1): linear warmup, then a cosine down to ``min_lr``."""
    if step <= params.warmup_steps:
        return params.lr * step / params.warmup_steps
    progress = (step - params.warmup_steps) / (params.steps - params.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return params.min_lr + (params.lr - params.min_lr) * cosine


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, mesh: Mesh) -> Tensor:
    """Scale all gradients down to a global norm of ``largest``; return the norm before that.

    The norm is that of the one model which the grid holds in pieces: shards are added over the
    tensor-parallel ranks, stages over the pipeline; a whole parameter is counted once.
    """
    with_gradients = [p for p in parameters if p.grad is not None]
    sharded, whole = torch.zeros(2, device=mesh.device).double()
    for parameter in with_gradients:
        gradient = parameter.grad
        assert gradient is not None
        if isinstance(gradient, DTensor):
            sharded += gradient.to_local().double().square().sum()
        else:
            whole += gradient.double().square().sum()
    dist.all_reduce(sharded, group=mesh.tensor.get_group())
    total = sharded + whole
    dist.all_reduce(total, group=mesh.pipeline.get_group())
    norm = total.sqrt().float()
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for parameter in with_gradients:
        gradient = parameter.grad
        assert gradient is not None
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(scale)
    return norm
