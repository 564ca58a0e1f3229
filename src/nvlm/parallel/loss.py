"""Cross-entropy at the answer tokens, over a vocabulary split over tensor-parallel ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional

from nvlm.model.tokens import IGNORED


def answer_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    *,
    vocabulary: int,
    mesh: DeviceMesh,
    turn_weighting: str,
) -> Tensor:
    """Weighted sum of the cross-entropy of ``hidden`` (B, S, H) against ``labels`` (B, S), fp32.

    ``labels`` are shifted already. ``head`` reads the answers' positions alone: mostly a small
    share of a row, whose logits would otherwise be the largest tensor of the step. To be called,
    and differentiated, inside PyTorch's ``loss_parallel()`` where ``mesh`` splits the vocabulary.
    """
    flat = labels.flatten()
    places = flat.ne(IGNORED).nonzero().squeeze(1)
    if not len(
        places
    ):  # nothing to learn here, but the other ranks wait for this one's collectives
        places = places.new_zeros(1)
    logits = head(hidden.flatten(0, 1)[places])  # (A, rows this rank holds)
    losses = token_losses(logits, flat[places], vocabulary, mesh)
    return (losses * turn_weights(labels, turn_weighting).flatten()[places]).sum()


def token_losses(logits: Tensor, labels: Tensor, vocabulary: int, mesh: DeviceMesh) -> Tensor:
    """Cross-entropy (A,) in fp32 of this rank's ``logits`` (A, rows it holds); IGNORED gives 0.

    Rows beyond the true ``vocabulary`` take no probability (Megatron lets them: its losses are a
    little too high).
    """
    rows = logits.shape[-1]
    true_rows = max(0, min(rows, vocabulary - mesh.get_local_rank() * rows))
    logits = logits.float()
    if true_rows < rows:
        padding = torch.arange(rows, device=logits.device) >= true_rows
        logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
    if mesh.size() == 1:
        return functional.cross_entropy(logits, labels, reduction="none")
    split = DTensor.from_local(logits, mesh, [Shard(1)], run_check=False)
    target = DTensor.from_local(labels, mesh, [Replicate()], run_check=False)
    whole = functional.cross_entropy(split, target, reduction="none")
    assert isinstance(whole, DTensor)
    return whole.to_local()


def turn_weights(labels: Tensor, weighting: str) -> Tensor:
    """What each position of ``labels`` (B, S) counts in the loss: fp32 (B, S), 0 where IGNORED.

    "token": 1, so that long answers weigh as much as they are long. "square_root": 1 / sqrt(tokens
    of the turn), between that and the same weight for each answer (InternVL 2.5, section 3.3). A
    turn is a run of labels: a prompt lies between two of them, also between packed samples.
    """
    answered = labels.ne(IGNORED)
    if weighting == "token":
        return answered.float()
    starts = answered.clone()
    starts[:, 1:] &= ~answered[:, :-1]
    turn = starts.flatten().cumsum(0)  # (B * S,), from 1
    tokens = torch.bincount(turn[answered.flatten()], minlength=1)
    weights = tokens[turn.clamp(max=len(tokens) - 1)].clamp(min=1).rsqrt().view_as(labels)
    return weights * answered
