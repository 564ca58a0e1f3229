"""Cross-entropy over a vocabulary that is split over tensor-parallel ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional


def token_losses(logits: Tensor, labels: Tensor, vocabulary: int, mesh: DeviceMesh) -> Tensor:
    """Cross-entropy (B, S) in fp32 of this rank's ``logits`` (B, S, rows it holds).

    ``labels`` (B, S) are shifted already; positions with IGNORED (-100) give 0. Rows beyond the
    true ``vocabulary`` take no probability (Megatron lets them: its losses are a little too high).
    To be called, and differentiated, inside PyTorch's ``loss_parallel()``.
    """
    rows = logits.shape[-1]
    true_rows = max(0, min(rows, vocabulary - mesh.get_local_rank() * rows))
    logits = logits.float()
    if true_rows < rows:
        padding = torch.arange(rows, device=logits.device) >= true_rows
        logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
    flat = logits.flatten(0, 1)
    if mesh.size() == 1:
        losses = functional.cross_entropy(flat, labels.flatten(), reduction="none")
    else:
        split = DTensor.from_local(flat, mesh, [Shard(1)], run_check=False)
        target = DTensor.from_local(labels.flatten(), mesh, [Replicate()], run_check=False)
        whole = functional.cross_entropy(split, target, reduction="none")
        assert isinstance(whole, DTensor)
        losses = whole.to_local()
    return losses.view_as(labels)
