"""Data parallelism of what is trained: FSDP2, with fp32 master weights where computing in bf16.

Frozen modules are left alone: they take no gradient, no optimizer state, and no gather.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from nvlm.model.nvlm import NVLM
from nvlm.parallel.mesh import Mesh


def apply_data_parallel(
    model: NVLM, mesh: Mesh, compute: torch.dtype, *, keep_gathered: bool
) -> None:
    """Shard what ``model`` trains (requires a gradient) over the data-parallel ranks, in place.

    Parameters stay in the dtype they have (fp32 masters); they are gathered in ``compute``, and
    gradients are reduced in fp32. Gradients are summed, not averaged: the loss is divided by the
    global number of answer tokens already.

    With ``keep_gathered`` what was gathered for a step's first micro-batch stays until its last
    backward pass: one all-gather a unit and step, where each micro-batch has two otherwise.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for unit in _units(model):
        fully_shard(
            unit,
            mesh=mesh.fully_sharded,
            mp_policy=policy,
            reshard_after_forward=not keep_gathered,
        )
    # The root groups what is left, and is what the pipeline schedule asks to reduce gradients.
    fully_shard(model, mesh=mesh.fully_sharded, mp_policy=policy, ignored_params=frozen)
    for module in _sharded(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def accumulate(model: NVLM, *, last: bool, keep_gathered: bool) -> None:
    """Tell FSDP2 whether the next micro-batch is a step's ``last``.

    Its backward pass alone reduces gradients and, with ``keep_gathered``, gives up what was
    gathered. (Under a pipeline the schedule does both.)
    """
    for module in _sharded(model):
        module.set_requires_gradient_sync(last, recurse=False)
        module.set_reshard_after_backward(last or not keep_gathered, recurse=False)


def _sharded(model: NVLM) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _units(model: NVLM) -> list[nn.Module]:
    """What is gathered together, of what is trained: a layer, projector, embedding, head."""
    decoder = model.language_model
    ends = [decoder.model.embed_tokens, decoder.lm_head]
    if None not in ends and ends[0].weight is ends[1].weight:
        ends = []  # tied: of the root, which stays gathered from the one to the other
    modules = [model.vision_projection, *ends]
    units = [module for module in (*modules, *decoder.model.layers) if module is not None]
    return [unit for unit in units if all(p.requires_grad for p in unit.parameters())]
