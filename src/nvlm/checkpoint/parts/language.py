"""Decoder layers: Hugging Face's tensors and Megatron-core's, whole or one rank's.

H: hidden size, D: head size, G: query groups, Q: query heads a group, F: FFN size, V: vocabulary;
of the whole model, or divided by the tensor-parallel size where a shard is meant.

Layout after Megatron-LM's ``tools/checkpoint/loader_llama_mistral.py`` (removed upstream) and
``saver_base.py``. There is no rotary permutation: both sides rotate halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from nvlm.checkpoint.format.architecture import LanguageArchitecture
from nvlm.checkpoint.format.sharding import join, shard

# Dimension along which a tensor of a layer is split; the norms are whole on every rank.
SPLIT = {
    "self_attn.q_proj.weight": 0,
    "self_attn.k_proj.weight": 0,
    "self_attn.v_proj.weight": 0,
    "self_attn.q_proj.bias": 0,
    "self_attn.k_proj.bias": 0,
    "self_attn.v_proj.bias": 0,
    "self_attn.o_proj.weight": 1,
    "mlp.gate_proj.weight": 0,
    "mlp.up_proj.weight": 0,
    "mlp.down_proj.weight": 1,
}
# Tensors that are the same on both sides but for their name (Hugging Face, Megatron-core).
RENAMED = {
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def layer_shapes(architecture: LanguageArchitecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole Hugging Face layer, relative to ``model.layers.N.``."""
    hidden, ffn = architecture.hidden_size, architecture.ffn_hidden_size
    queries = architecture.heads * architecture.head_size
    keys = architecture.query_groups * architecture.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if architecture.qkv_bias:
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    return shapes


def slice_layer(
    layer: Mapping[str, Tensor], architecture: LanguageArchitecture, rank: int, size: int
) -> dict[str, Tensor]:
    """A whole Hugging Face layer to rank ``rank``'s shard of it, as views.

    Whole query groups go to a rank: their number and F have to divide by ``size``
    (``layout.check_tensor_parallel``).
    """
    return {
        name: shard(layer[name], SPLIT.get(name), rank, size) for name in layer_shapes(architecture)
    }


def layer_to_core(
    layer: Mapping[str, Tensor], architecture: LanguageArchitecture, size: int
) -> dict[str, Tensor]:
    """A Hugging Face layer's shard (one of ``size``) under Megatron-core names.

    Rows of ``linear_qkv``, query group by query group: the group's query heads, key, value.
    ``linear_fc1`` is gate over up, of this rank.
    """
    return {
        name: join(pieces) for name, pieces in layer_to_pieces(layer, architecture, size).items()
    }


def layer_to_pieces(
    layer: Mapping[str, Tensor], architecture: LanguageArchitecture, size: int
) -> dict[str, list[Tensor]]:
    """What ``layer_to_core`` joins, as views along the first dimension: nothing is copied."""
    core = {new: [layer[old]] for old, new in RENAMED.items()}
    for kind in ("weight", "bias") if architecture.qkv_bias else ("weight",):
        q, k, v = (layer[f"self_attn.{name}_proj.{kind}"] for name in "qkv")
        core[f"self_attention.linear_qkv.{kind}"] = _interleave(q, k, v, architecture, size)
    core["mlp.linear_fc1.weight"] = [layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]]
    return core


def layer_to_hf(
    core: Mapping[str, Tensor], architecture: LanguageArchitecture, size: int
) -> dict[str, Tensor]:
    """The inverse of ``layer_to_core``: a Megatron-core shard under Hugging Face names."""
    layer = {old: core[new] for old, new in RENAMED.items()}
    for kind in ("weight", "bias") if architecture.qkv_bias else ("weight",):
        rows = _separate(core[f"self_attention.linear_qkv.{kind}"], architecture, size)
        for name, tensor in zip("qkv", rows, strict=True):
            layer[f"self_attn.{name}_proj.{kind}"] = tensor
    gate, up = core["mlp.linear_fc1.weight"].chunk(2)
    layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"] = gate, up
    return layer


def vocabulary_shard(weight: Tensor, padded: int, rank: int, size: int) -> Tensor:
    """Rank ``rank``'s rows (padded / size, H) of an embedding or head (V, H) padded to ``padded``.

    Added rows repeat the last one, as Megatron-LM's saver does.
    """
    rows = padded // size
    return join(vocabulary_rows([weight], rank * rows, (rank + 1) * rows))


def vocabulary_rows(shards: Sequence[Tensor], start: int, end: int) -> list[Tensor]:
    """Rows ``start`` to ``end`` of the table in ``shards``, its last row repeated beyond its end.

    Views to be joined; only the shards that overlap are touched.
    """
    pieces, first = [], 0
    for table in shards:
        own = table[max(start - first, 0) : max(end - first, 0)]
        if own.shape[0]:
            pieces.append(own)
        first += table.shape[0]
    if end > first:
        pieces.append(shards[-1][-1:].expand(end - max(start, first), -1))
    return pieces


def _interleave(
    q: Tensor, k: Tensor, v: Tensor, architecture: LanguageArchitecture, size: int
) -> list[Tensor]:
    """q (G Q D, ...), k and v (G D, ...) to the pieces of (G (Q + 2) D, ...), group by group."""
    groups = architecture.query_groups // size
    by_group = zip(*(tensor.chunk(groups) for tensor in (q, k, v)), strict=True)
    return [piece for group in by_group for piece in group]


def _separate(
    qkv: Tensor, architecture: LanguageArchitecture, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(G (Q + 2) D, ...) to q (G Q D, ...), k and v (G D, ...)."""
    groups, rest = architecture.query_groups // size, qkv.shape[1:]
    head = architecture.head_size
    queries = architecture.heads // architecture.query_groups * head
    q, k, v = qkv.reshape(groups, -1, *rest).split([queries, head, head], dim=1)
    return q.reshape(-1, *rest), k.reshape(-1, *rest), v.reshape(-1, *rest)
