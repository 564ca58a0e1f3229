"""Greedy generation on the whole grid, pipeline x data x tensor, by the model that is trained.

transformers' ``generate`` wants the whole decoder in one process. Here each stage keeps the keys
and values of its own layers; a step costs a passage through the stages, one after the other, with
one token a row: this is for a few questions on the way, not for a benchmark. Every forward pass
goes through the model's own modules, so that FSDP2 gathers what it shards; therefore all
data-parallel ranks make the same number of steps.

Shapes: B prompts, S positions of the longest, Q positions read in a step, N tiles, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache

from nvlm.model.nvlm import NVLM, features_by_row
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.tensor import encode_shared


@contextmanager
def observed(model: NVLM) -> Iterator[None]:
    """Within, ``model`` answers without dropout, graph or compiling; afterwards it is as before.

    The root of FSDP2 keeps its parameters gathered after a forward pass, until a backward pass that
    doesn't come here: the optimizer, and who saves the model, would find other tensors than theirs.
    Compiled layers would be compiled again for each length of the cache.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    split = model.split is not None and model.split.active
    if model.split is not None:
        model.split.active = False  # one token is not shared out
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if model.split is not None:
            model.split.active = split
        for module in training:
            module.training = True
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


@torch.no_grad()
def generate_on_grid(
    model: NVLM,
    mesh: Mesh,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    visual_index: Tensor,
    tiles: Tensor,
    tiles_per_row: Tensor,
    tile_chunk: int,
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> Tensor:
    """The most likely continuation (B, new) of left-padded prompts, on every rank of the replica.

    ``input_ids``, ``attention_mask`` (1 where a token is), ``visual_index``: int64 (B, S); uint8
    ``tiles`` (N, 3, height, width) in row order, at most ``tile_chunk`` of them encoded at once;
    ``tiles_per_row`` (B,). A row that is done, by a token of ``stop_ids``, is filled up with the
    first of them. Replicas may have different prompts, each at least one; all stop together.
    """
    seen = attention_mask  # (B, positions in the cache after this step)
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    images: dict[str, Tensor] = {}
    if mesh.is_first:
        features = encode_shared(model, tiles, mesh.tensor.get_group(), tile_chunk)
        by_row = features_by_row(features, tiles_per_row)
        images = {"visual_index": visual_index, "features": by_row}
    cache = DynamicCache(config=model.language_model.config)
    stop = torch.tensor(stop_ids, device=input_ids.device)
    done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    inputs, generated = input_ids, []
    for _ in range(max_new_tokens):
        hidden = _through_stages(
            model, mesh, inputs, position_ids=positions, attention_mask=seen, cache=cache, **images
        )
        token = _next_token(model, mesh, hidden[:, -1]).where(~done, stop[0])
        generated.append(token)
        done |= torch.isin(token, stop)
        if _all_done(done, mesh):
            break
        inputs, images = token[:, None], {}
        seen = torch.cat([seen, torch.ones_like(inputs)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.stack(generated, dim=1)


def most_likely(logits: Tensor, vocabulary: int, mesh: DeviceMesh) -> Tensor:
    """Ids (B,) of the largest ``logits`` (B, rows this rank holds) over the ranks of ``mesh``.

    Rows beyond the true ``vocabulary`` are padding and can't be chosen. Of equals the first one is
    taken, as in transformers.
    """
    first = mesh.get_local_rank() * logits.shape[-1]
    rows = first + torch.arange(logits.shape[-1], device=logits.device)
    value, place = logits.float().masked_fill(rows >= vocabulary, -torch.inf).max(-1)
    best = torch.stack([value.double(), rows[place].double()])  # (2, B), ids being exact in it
    if mesh.size() == 1:
        return best[1].long()
    of_ranks = best.new_empty(mesh.size() * 2, best.shape[1])
    dist.all_gather_single(of_ranks, best, group=mesh.get_group())
    values, ids = of_ranks.view(mesh.size(), 2, -1).unbind(1)  # (ranks, B) each
    return ids.gather(0, values.argmax(0, keepdim=True))[0].long()


def _through_stages(
    model: NVLM, mesh: Mesh, inputs: Tensor, *, position_ids: Tensor, **others: Any
) -> Tensor:
    """Hidden states (B, Q, H) of this stage; the first reads ``inputs`` (B, Q), token ids.

    ``position_ids`` (B, Q) and ``others`` are what ``NVLM.forward`` takes.
    """
    group, stage = mesh.pipeline.get_group(), mesh.pipeline_rank
    if not mesh.is_first:
        language = model.architecture.language
        assert language is not None
        # fp32 between stages holds bf16 exactly. FSDP2 casts what its root is given; its
        # parameters, masters in fp32, don't say what it computes in.
        received = torch.empty(*position_ids.shape, language.hidden_size, device=mesh.device)
        dist.recv(received, group=group, group_src=stage - 1)
        inputs = received.to(next(model.language_model.parameters()).dtype)
    hidden: Tensor = model(inputs, position_ids=position_ids, **others)
    if not mesh.is_last:
        dist.send(hidden.float().contiguous(), group=group, group_dst=stage + 1)
    return hidden


def _next_token(model: NVLM, mesh: Mesh, hidden: Tensor) -> Tensor:
    """Ids (B,) after ``hidden`` (B, H) of the last stage, told to every stage."""
    if mesh.is_last:
        logits = model.language_model.lm_head(hidden)  # (B, rows this rank holds)
        token = most_likely(logits, model.vocabulary, mesh.tensor)
    else:
        token = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    if mesh.pipeline.size() > 1:
        last = mesh.pipeline.size() - 1
        dist.broadcast(token, group=mesh.pipeline.get_group(), group_src=last)
    return token


def _all_done(done: Tensor, mesh: Mesh) -> bool:
    """Whether every row of every replica is done."""
    flag = done.all().int()
    if mesh.data.size() > 1:
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=mesh.data.get_group())
    return bool(flag)
