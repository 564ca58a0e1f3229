"""How the decoder runs in training: attention kernel, dropout, recomputation, compiling.

All of it is transformers' and PyTorch's own; the vision tower and the projector stay as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nvlm.model.attention import VARLEN
from nvlm.model.language import Decoder
from nvlm.train.params import TrainParams


def prepare_decoder(decoder: Decoder, params: TrainParams, device: torch.device) -> None:
    """Switch ``decoder`` to training as ``params`` say, in place; before FSDP2 wraps its layers."""
    if uses_varlen(params, device):
        decoder.set_attn_implementation(VARLEN)
    decoder.train()
    for number, layer in enumerate(decoder.model.layers):
        layer.self_attn.attention_dropout = params.attention_dropout
        if params.hidden_dropout:
            for branch in (layer.self_attn, layer.mlp):
                branch.register_forward_hook(partial(_drop, params.hidden_dropout))
        if params.compile:
            layer.forward = torch.compile(layer.forward)
        # Round the compiled layer: within it the partitioner would save a mesh of devices for the
        # backward pass, and fail. FSDP2's hooks stay outside, so that nothing is gathered twice.
        if params.recompute_every and number % params.recompute_every == 0:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def uses_varlen(params: TrainParams, device: torch.device) -> bool:
    """Whether packed rows go through PyTorch's flash kernel, which takes half precision alone."""
    packed = params.data.packing and params.dtype != "float32" and not params.attention_dropout
    return packed and device.type == "cuda"


def _drop(share: float, module: nn.Module, _inputs: Any, output: Any) -> Any:
    """Drop some of what a branch adds to the residual: Megatron's place of the hidden dropout.

    The ranks of a tensor-parallel group hold the same sum and the same random state.
    """
    if isinstance(output, Tensor):
        return functional.dropout(output, share, module.training)
    return functional.dropout(output[0], share, module.training), *output[1:]
