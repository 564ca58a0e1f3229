"""The vision tower: InternViT's own tensors, Megatron-core's, and transformers' names for them.

Hugging Face names are those of OpenGVLab's repos. C: hidden size, A: heads, D: head size (C = A D),
F: FFN size, P: patches.

Heads are shared out whole. Where ``size`` ranks do not divide them, dummy heads of zeros fill up:
25 heads become 26, 28 and 32 at 2, 4 and 8 ranks, as Megatron-LM's InternViT has them. (Upstream's
``internvit_converter.py`` knows 1 and 8 ranks only, and lets a stray ``norm1.bias`` overwrite the
norm's weight; here the names are a closed set.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from nvlm.checkpoint.format.architecture import VisionArchitecture
from nvlm.checkpoint.format.files import read_part
from nvlm.checkpoint.format.layout import VISION, layer_part
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.format.sharding import join, merge, shard
from nvlm.errors import UserError

# Tensors of a layer that are only renamed: Hugging Face's name, Megatron-core's, split dimension.
Plain = tuple[tuple[str, str, int | None], ...]
PLAIN: Plain = (
    ("norm1.weight", "input_layernorm.weight", None),
    ("norm2.weight", "pre_mlp_layernorm.weight", None),
    ("ls1", "ls1", None),
    ("ls2", "ls2", None),
    ("attn.proj.bias", "self_attention.linear_proj.bias", None),
    ("mlp.fc1.weight", "mlp.linear_fc1.weight", 0),
    ("mlp.fc1.bias", "mlp.linear_fc1.bias", 0),
    ("mlp.fc2.weight", "mlp.linear_fc2.weight", 1),
    ("mlp.fc2.bias", "mlp.linear_fc2.bias", None),
)
# Of a tower with LayerNorm.
NORM_BIASES: Plain = (
    ("norm1.bias", "input_layernorm.bias", None),
    ("norm2.bias", "pre_mlp_layernorm.bias", None),
)
# The same tensors, and the attention's, as transformers' InternVLVisionModel names them.
TRANSFORMERS = {
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "attn.proj.weight": "attention.projection_layer.weight",
    "attn.proj.bias": "attention.projection_layer.bias",
    "attn.q_norm.weight": "attention.q_norm.weight",
    "attn.k_norm.weight": "attention.k_norm.weight",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
# The embedding: Hugging Face's name, Megatron-core's, transformers'.
EMBEDDING = (
    ("class_embedding", "class_token", "cls_token"),
    ("patch_embedding.weight", "conv1.weight", "patch_embeddings.projection.weight"),
    ("patch_embedding.bias", "conv1.bias", "patch_embeddings.projection.bias"),
    ("position_embedding", "position_embeddings.weight", "position_embeddings"),
)


def layer_shapes(architecture: VisionArchitecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Hugging Face layer, relative to ``encoder.layers.N.``."""
    hidden, ffn = architecture.hidden_size, architecture.ffn_hidden_size
    shapes: dict[str, tuple[int, ...]] = {"attn.qkv.weight": (3 * hidden, hidden)}
    if architecture.qkv_bias:
        shapes["attn.qkv.bias"] = (3 * hidden,)
    if architecture.qk_norm:
        shapes |= {f"attn.{name}_norm.weight": (hidden,) for name in "qk"}
    if architecture.norm_type == "layer_norm":
        shapes |= {"norm1.bias": (hidden,), "norm2.bias": (hidden,)}
    return shapes | {
        "attn.proj.weight": (hidden, hidden),
        "attn.proj.bias": (hidden,),
        "mlp.fc1.weight": (ffn, hidden),
        "mlp.fc1.bias": (ffn,),
        "mlp.fc2.weight": (hidden, ffn),
        "mlp.fc2.bias": (hidden,),
        "norm1.weight": (hidden,),
        "norm2.weight": (hidden,),
        "ls1": (hidden,),
        "ls2": (hidden,),
    }


def embedding_shapes(architecture: VisionArchitecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Hugging Face's embedding, relative to ``embeddings.``."""
    hidden, patch = architecture.hidden_size, architecture.patch_size
    return {
        "class_embedding": (1, 1, hidden),
        "patch_embedding.weight": (hidden, 3, patch, patch),
        "patch_embedding.bias": (hidden,),
        "position_embedding": (1, architecture.patches + 1, hidden),
    }


def layer_to_core(
    layer: Mapping[str, Tensor], architecture: VisionArchitecture, rank: int, size: int
) -> dict[str, Tensor]:
    """A whole Hugging Face layer to rank ``rank``'s shard under Megatron-core names.

    Rows of ``linear_qkv``, head by head: query, key, value; dummy heads last, all zeros, as are
    their entries of its bias and the QK norms and their columns of ``linear_proj``.
    """
    return {
        name: join(pieces)
        for name, pieces in layer_to_pieces(layer, architecture, rank, size).items()
    }


def layer_to_pieces(
    layer: Mapping[str, Tensor], architecture: VisionArchitecture, rank: int, size: int
) -> dict[str, list[Tensor]]:
    """What ``layer_to_core`` joins, along the first dimension: views, and zeros of dummy heads."""
    heads, head = architecture.heads, architecture.head_size
    count = -(-heads // size)  # on every rank
    start, end = min(rank * count, heads), min((rank + 1) * count, heads)
    dummies = (count - (end - start)) * head  # channels
    core = {new: [shard(layer[old], split, rank, size)] for old, new, split in _plain(architecture)}
    for kind in _qkv_kinds(architecture):
        qkv = layer[f"attn.qkv.{kind}"].unflatten(0, (3, heads, head))
        rows = [qkv[third, index] for index in range(start, end) for third in range(3)]
        zeros = qkv.new_zeros(3 * dummies, *qkv.shape[3:])
        core[f"self_attention.linear_qkv.{kind}"] = [*rows, zeros]
    for name in _normed(architecture):
        norm = layer[f"attn.{name}_norm.weight"]
        own = norm[start * head : end * head]
        core[f"self_attention.{name}_layernorm.weight"] = [own, norm.new_zeros(dummies)]
    columns = layer["attn.proj.weight"][:, start * head : end * head]
    core["self_attention.linear_proj.weight"] = [
        functional.pad(columns, (0, dummies)) if dummies else columns
    ]
    return core


def layer_to_hf(
    shards: Sequence[Mapping[str, Tensor]], architecture: VisionArchitecture
) -> dict[str, Tensor]:
    """The inverse of ``layer_to_core``: the shards of all ranks to a whole Hugging Face layer.

    Dummy heads are dropped.
    """
    hidden, heads, head = architecture.hidden_size, architecture.heads, architecture.head_size
    layer = {
        old: merge([core[new] for core in shards], split, f"{VISION} {new}")
        for old, new, split in _plain(architecture)
    }
    for kind in _qkv_kinds(architecture):
        qkv = torch.cat([core[f"self_attention.linear_qkv.{kind}"] for core in shards])
        by_head = qkv.unflatten(0, (-1, 3, head))[:heads]
        layer[f"attn.qkv.{kind}"] = by_head.transpose(0, 1).flatten(0, 2)
    for name in _normed(architecture):
        norm = torch.cat([core[f"self_attention.{name}_layernorm.weight"] for core in shards])
        layer[f"attn.{name}_norm.weight"] = norm[:hidden]
    projection = torch.cat([core["self_attention.linear_proj.weight"] for core in shards], dim=1)
    layer["attn.proj.weight"] = projection[:, :hidden]
    return layer


def add_dummy_heads(
    layer: Mapping[str, Tensor], architecture: VisionArchitecture, dummies: int
) -> dict[str, Tensor]:
    """A whole Hugging Face layer with ``dummies`` more heads, all zeros, as NVLM-D's repo has it.

    25 heads and 7 dummies of InternViT-6B: ``attn.qkv.weight`` (12288, 3200), queries, keys and
    values in thirds; QK norms (4096); ``attn.proj.weight`` (3200, 4096).
    """
    extra = dummies * architecture.head_size
    padded = dict(layer)
    for kind in _qkv_kinds(architecture):
        thirds = layer[f"attn.qkv.{kind}"].unflatten(0, (3, -1))  # (3, C, ...)
        below = (0, 0) * (thirds.ndim - 2) + (0, extra)
        padded[f"attn.qkv.{kind}"] = functional.pad(thirds, below).flatten(0, 1)
    for name in _last_by_head(architecture):
        padded[name] = functional.pad(layer[name], (0, extra))
    return padded


def drop_dummy_heads(
    layer: Mapping[str, Tensor], architecture: VisionArchitecture, dummies: int
) -> dict[str, Tensor]:
    """The inverse of ``add_dummy_heads``. Raises UserError if a dummy head is not of zeros."""
    if not dummies:
        return dict(layer)
    hidden = architecture.hidden_size
    whole, rest = dict(layer), []
    for kind in _qkv_kinds(architecture):
        thirds = layer[f"attn.qkv.{kind}"].unflatten(0, (3, -1))
        whole[f"attn.qkv.{kind}"] = thirds[:, :hidden].flatten(0, 1)
        rest.append(thirds[:, hidden:])
    for name in _last_by_head(architecture):
        whole[name] = layer[name][..., :hidden]
        rest.append(layer[name][..., hidden:])
    if any(tensor.any() for tensor in rest):
        raise UserError(f"the last {dummies} heads of the vision tower should be zeros: refused")
    return whole


def embedding_to_core(embedding: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's embedding under Megatron-core names; every rank has all of it."""
    core = {new: embedding[old] for old, new, _ in EMBEDDING}
    core["position_embeddings.weight"] = core["position_embeddings.weight"][0]  # (1 + P, C)
    return core


def embedding_to_hf(core: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``embedding_to_core``."""
    embedding = {old: core[new] for old, new, _ in EMBEDDING}
    embedding["position_embedding"] = embedding["position_embedding"][None]
    return embedding


def read_vision_tower(checkpoint: Path) -> dict[str, Tensor]:
    """The whole tower under the names of transformers' InternVLVisionModel, without dummy heads.

    Merged from the files of all tensor-parallel ranks. Raises UserError if the checkpoint is
    damaged or has no tower.
    """
    manifest = read_manifest(checkpoint)
    architecture, ranks = manifest.architecture.vision, range(manifest.grid.tensor)
    if architecture is None:
        raise UserError(f"{checkpoint} has no vision tower: combine it with one")
    embedding = embedding_to_hf(read_part(checkpoint, 0, f"{VISION}.embedding"))
    state = {f"embeddings.{name}": embedding[old] for old, _, name in EMBEDDING}
    for index in range(architecture.layers):
        shards = [read_part(checkpoint, rank, layer_part(VISION, index)) for rank in ranks]
        layer = to_transformers(layer_to_hf(shards, architecture))
        state |= {f"encoder.layer.{index}.{name}": tensor for name, tensor in layer.items()}
    return state


def to_transformers(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole layer from OpenGVLab's names to transformers', which keeps q, k and v apart."""
    native = {new: layer[old] for old, new in TRANSFORMERS.items() if old in layer}
    for kind in ("weight", "bias"):
        if f"attn.qkv.{kind}" in layer:
            for name, tensor in zip("qkv", layer[f"attn.qkv.{kind}"].chunk(3), strict=True):
                native[f"attention.{name}_proj.{kind}"] = tensor
    return native


def _plain(architecture: VisionArchitecture) -> Plain:
    return PLAIN + (NORM_BIASES if architecture.norm_type == "layer_norm" else ())


def _qkv_kinds(architecture: VisionArchitecture) -> tuple[str, ...]:
    return ("weight", "bias") if architecture.qkv_bias else ("weight",)


def _normed(architecture: VisionArchitecture) -> str:
    """Which of queries and keys have a norm."""
    return "qk" if architecture.qk_norm else ""


def _last_by_head(architecture: VisionArchitecture) -> list[str]:
    """Tensors whose last dimension holds the channels of all heads."""
    return [*(f"attn.{name}_norm.weight" for name in _normed(architecture)), "attn.proj.weight"]
