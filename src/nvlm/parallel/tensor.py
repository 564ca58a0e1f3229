"""The tensor-parallel plan: PyTorch's styles laid over transformers' module names.

Megatron's layout: queries, keys, values, gate and up split by output (column), attention output
and down by input (row), embedding and head by vocabulary. A layer costs two all-reduces forward and
two backward, or as many pairs of reduce-scatter and all-gather (``nvlm.parallel.sequence``).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    parallelize_module,
)
from torch.nn import functional

from nvlm.errors import UserError
from nvlm.model.language import tie_head
from nvlm.model.nvlm import NVLM
from nvlm.parallel.sequence import RowwisePartial, RowwiseSplit, SequenceSplit


def apply_tensor_parallel(model: NVLM, mesh: DeviceMesh, *, gather_logits: bool = False) -> None:
    """Turn the projector's and the decoder's linear layers into DTensors over ``mesh``, in place.

    With ``gather_logits`` the head returns the logits of the whole padded vocabulary rather than
    this rank's share. Raises UserError if the decoder does not divide.
    """
    language = model.architecture.language
    assert language is not None
    size = mesh.size()
    if language.query_groups % size:
        raise UserError(
            f"tensor parallel {size} does not divide the decoder's {language.query_groups} query "
            "groups: choose a divisor in conf/"
        )
    if size == 1:
        return
    split = SequenceSplit(mesh)
    plan: dict[str, ParallelStyle] = {
        "model.layers.*.self_attn.o_proj": RowwiseSplit(split),
        "model.layers.*.mlp.down_proj": RowwiseSplit(split),
    }
    for column in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        plan[f"model.layers.*.{column}"] = ColwiseParallel()
    for column in ("mlp.gate_proj", "mlp.up_proj"):
        plan[f"model.layers.*.{column}"] = ColwiseParallel()
    if model.stage.is_first:
        plan["model.embed_tokens"] = VocabularyParallel()
        projector: nn.Module | None = model.vision_projection
        assert projector is not None
        parallelize_module(
            projector, mesh, {"linear_1": ColwiseParallel(), "linear_2": RowwisePartial()}
        )
    if model.stage.is_last:
        logits = Replicate() if gather_logits else Shard(-1)
        plan["lm_head"] = ColwiseParallel(output_layouts=logits)
    parallelize_module(model.language_model, mesh, plan)
    tie_head(model.language_model, language, model.stage)
    for layer in model.language_model.model.layers:
        split.enter(layer.self_attn)
        split.enter(layer.mlp)
    model.split = split


class VocabularyParallel(ParallelStyle):
    """An embedding whose rows, and their gradients, are split over the ranks.

    PyTorch's RowwiseParallel computes the gradient of the whole vocabulary on every rank (4.6 GiB
    for Qwen2-72B in fp32) and scatters it, once a micro-batch.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Embedding)
        rows = distribute_tensor(module.weight, device_mesh, [Shard(0)])
        module.weight = nn.Parameter(rows)
        module.forward = partial(_look_up, module, device_mesh)  # type: ignore[method-assign]
        return module


def _look_up(
    module: nn.Embedding, mesh: DeviceMesh, input_ids: Tensor, *, part: bool = False
) -> Tensor:
    """Embeddings (B, S, H) of ``input_ids`` (B, S), each from the rank that holds its row.

    With ``part`` this rank's part of them, zeros where another rank holds the row: ``NVLM.embed``
    has them summed together with the projector's.
    """
    weight = module.weight
    assert isinstance(weight, DTensor)
    held = weight.to_local()  # (rows, H)
    places = input_ids - mesh.get_local_rank() * len(held)
    elsewhere = (places < 0) | (places >= len(held))
    found = functional.embedding(places.masked_fill(elsewhere, 0), held)
    own = found.masked_fill(elsewhere[..., None], 0)
    if part:
        return own
    whole = DTensor.from_local(own, mesh, [Partial()], run_check=False).full_tensor()
    assert isinstance(whole, Tensor)
    return whole


def encode_shared(model: NVLM, tiles: Tensor, group: dist.ProcessGroup, chunk: int) -> Tensor:
    """Tower features (N, V, C) of ``tiles`` (N, 3, H, W), shared out over the ranks of ``group``.

    Each rank holds the whole frozen tower and encodes one of equal parts of the tiles, at most
    ``chunk`` at once; the features are gathered. Megatron shards the tower by padded heads instead
    (25 heads as 32 at TP=8) and pays two all-reduces a layer.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    share = -(-max(1, tiles.shape[0]) // size)
    padding = tiles.new_zeros(share * size - tiles.shape[0], *tiles.shape[1:])
    mine = torch.cat([tiles, padding])[rank * share : (rank + 1) * share]
    features = torch.cat([model.encode_tiles(part) for part in mine.split(chunk)]).contiguous()
    if size == 1:
        return features[: tiles.shape[0]]
    gathered = features.new_empty(share * size, *features.shape[1:])
    dist.all_gather_single(gathered, features, group=group)
    return gathered[: tiles.shape[0]]
