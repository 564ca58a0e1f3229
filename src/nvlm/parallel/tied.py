"""Tied embeddings on a pipeline: one matrix, of which the first and the last stage have a copy.

The copies start equal, get the same gradient, the sum of both stages', and the same step of AdamW:
they stay equal bit by bit. (Megatron-LM's "embedding group" does the same.) In one stage they are
one parameter, whose gradient autograd sums.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nvlm.model.nvlm import NVLM
from nvlm.parallel.mesh import Mesh


def tied_copy(model: NVLM) -> nn.Parameter | None:
    """This stage's copy of the matrix that both ends share, where they are on two stages."""
    language, stage = model.architecture.language, model.stage
    assert language is not None
    if not language.tied_embeddings or stage.is_first == stage.is_last:
        return None
    decoder = model.language_model
    copy = decoder.model.embed_tokens.weight if stage.is_first else decoder.lm_head.weight
    assert isinstance(copy, nn.Parameter)
    return copy


def sum_tied_gradients(model: NVLM, mesh: Mesh) -> nn.Parameter | None:
    """Give both copies the sum of their gradients; on the last stage, return its copy.

    Ends lie on the same places of the stages' grids, and exchange their shards alone. What is
    returned the gradient norm has to leave out: the first stage counts it.
    """
    copy = tied_copy(model)
    if copy is None or copy.grad is None:
        return None
    gradient = copy.grad
    own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    own.add_(_exchanged(own.contiguous(), mesh))
    return None if mesh.is_first else copy


def _exchanged(own: Tensor, mesh: Mesh) -> Tensor:
    """What the other end holds in place of ``own``."""
    group = mesh.pipeline.get_group()
    peer = mesh.pipeline.size() - 1 if mesh.is_first else 0
    other = torch.empty_like(own)
    transfers = [
        dist.P2POp(dist.isend, own, group=group, group_peer=peer),
        dist.P2POp(dist.irecv, other, group=group, group_peer=peer),
    ]
    for transfer in dist.batch_isend_irecv(transfers):
        transfer.wait()
    return other
