"""How the decoder runs in training: dropout, activation checkpointing, attention kernel, compiling.

All of it is transformers' and PyTorch's own; the vision tower and the projector stay as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from nvlm.errors import UserError
from nvlm.model.language import Decoder
from nvlm.train.params import TrainParams


def prepare_decoder(decoder: Decoder, params: TrainParams) -> None:
    """Switch ``decoder`` to training as ``params`` say, in place; before FSDP2 wraps its layers.

    Raises UserError if the attention kernel that is asked for is not installed.
    """
    try:
        decoder.set_attn_implementation(params.attention)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"attention = {params.attention} cannot be had here ({error}): install it, or choose "
            "sdpa in conf/train"
        ) from None
    decoder.train()
    if params.activation_checkpointing:
        decoder.activation_checkpointing_enable({"use_reentrant": False})
    for layer in decoder.model.layers:
        layer.self_attn.attention_dropout = params.attention_dropout
        if params.hidden_dropout:
            for branch in (layer.self_attn, layer.mlp):
                branch.register_forward_hook(partial(_drop, params.hidden_dropout))
        if params.compile:
            layer.compile()


def _drop(share: float, module: nn.Module, _inputs: Any, output: Any) -> Any:
    """Drop some of what a branch adds to the residual: Megatron's place of the hidden dropout.

    The ranks of a tensor-parallel group hold the same sum and the same random state.
    """
    if isinstance(output, Tensor):
        return functional.dropout(output, share, module.training)
    return functional.dropout(output[0], share, module.training), *output[1:]
