"""Sequence parallelism: between attention and MLP each tensor rank holds its part of every row.

What tensor parallelism leaves whole on all ranks, residual stream and norms, is split along the
sequence (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2). An all-reduce after a block
becomes a reduce-scatter after it and an all-gather before the next, of the same cost together;
norms, what autograd keeps of them, and what pipeline stages send are divided by the tensor ranks.

It can be switched: a model that answers questions on the way reads one token at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import RowwiseParallel

from nvlm.checkpoint.parts.adapter import DOWN, UP, adapter_split
from nvlm.model.nvlm import NVLM

SEQUENCE = 1  # dimension of hidden states (B, S, H)
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


class SequenceSplit:
    """How hidden states lie between the blocks of one model over the ranks of ``mesh``."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.active = False

    @property
    def between(self) -> Placement:
        """Of hidden states between blocks."""
        return Shard(SEQUENCE) if self.active else Replicate()

    def whole(self, hidden: Tensor) -> DTensor:
        """A rank's part of hidden states as one DTensor, whole on every rank."""
        local = DTensor.from_local(hidden, self.mesh, [self.between], run_check=False)
        return local.redistribute(placements=[Replicate()])

    def gathered(self, hidden: Tensor) -> Tensor:
        """The same as a plain tensor, for whoever reads any position; its gradient is whole."""
        return self.whole(hidden).to_local() if self.active else hidden

    def summed(self, part: Tensor) -> Tensor:
        """A rank's part of the sum that hidden states are, summed and laid out as they lie."""
        sums = DTensor.from_local(part, self.mesh, [Partial()], run_check=False)
        return sums.redistribute(placements=[self.between]).to_local()

    def enter(self, block: nn.Module) -> None:
        """Give ``block`` its input whole, as one DTensor: the gradients of its two or three readers
        are summed before they are reduced."""
        block.register_forward_pre_hook(partial(_enter, self), with_kwargs=True)


class RowwiseSplit(RowwiseParallel):
    """A linear layer split by input, whose output goes where ``split`` says."""

    def __init__(self, split: SequenceSplit) -> None:
        super().__init__()
        self.split = split

    def _prepare_output_fn(  # type: ignore[override]
        self, _layouts: Any, _local: bool, _module: nn.Module, outputs: DTensor, _mesh: DeviceMesh
    ) -> Tensor:
        return outputs.redistribute(placements=[self.split.between], async_op=True).to_local()


class RowwisePartial(RowwiseParallel):
    """A linear layer split by input, whose output stays a rank's part of the sum."""

    @staticmethod
    def _prepare_output_fn(
        _layouts: Any, _local: bool, _module: nn.Module, outputs: DTensor, _mesh: DeviceMesh
    ) -> Tensor:
        return outputs.to_local(grad_placements=[Replicate()])


def reduce_shared(model: NVLM, mesh: DeviceMesh) -> None:
    """Sum the gradients of what the tensor ranks of ``mesh`` all hold and each have a part of the
    gradient of; one collective a step.

    Norms, which have seen a rank's part of the sequence where it is split; and the matrices of an
    adapter that are not split with their layer (``nvlm.model.lora``).
    """
    gradients = [_local(gradient) for gradient in _shared_gradients(model)]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=mesh.get_group())
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _shared_gradients(model: NVLM) -> Iterable[Tensor]:
    split = model.split is not None and model.split.active
    for name, parameter in model.language_model.named_parameters():
        parts = name.split(".")
        if parts[-1] in {DOWN, UP}:
            shared = adapter_split(".".join(parts[-3:])) is None
        else:
            shared = split and parts[-2] in NORMS
        if shared and parameter.grad is not None:
            yield parameter.grad


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _enter(
    split: SequenceSplit, _block: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if inputs:
        return (split.whole(inputs[0]), *inputs[1:]), options
    return inputs, options | {"hidden_states": split.whole(options["hidden_states"])}
