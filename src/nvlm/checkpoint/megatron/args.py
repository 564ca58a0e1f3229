"""Megatron's ``args``, which travel in each of its files, and this project's architecture.

``--use-checkpoint-args`` takes them over the command line (megatron/training/checkpointing.py,
``load_args_from_checkpoint``), so that what they leave out or say wrongly is what gets trained:
upstream's converters store ``rotary_base`` 10000 and dropouts of 0.1 whatever the model, float32
for bfloat16 weights, and one pipeline stage after a split.
"""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nvlm.checkpoint.format.architecture import (
    LanguageArchitecture,
    RopeScaling,
    VisionArchitecture,
)
from nvlm.checkpoint.format.layout import Grid
from nvlm.checkpoint.format.manifest import Manifest, Source
from nvlm.checkpoint.huggingface.convert import read_source
from nvlm.errors import UserError

ITERATION = 1  # Megatron's loader knows neither 0 nor "release" for a fresh start
UNTIED = "untie_embeddings_and_output_weights"
# Of Megatron-core's rotary embedding, which takes the factor alone from args
# (RotaryEmbedding._apply_scaling): Llama 3.1's values.
MEGATRON_SCALING: dict[str, Any] = {
    "low_frequency_factor": 1.0,
    "high_frequency_factor": 4.0,
    "original_positions": 8192,
}
# What Megatron has no name for: kept in args.nvlm, plain values, ignored by Megatron.
OWN = "nvlm"
# InternViT's, where a file of Megatron's own does not say: the head size of the 6B and of the 300M
# (which has no QK norm), their norms' epsilon.
VISION_HEAD_SIZE = 128
VISION_HEAD_SIZE_300M = 64
VISION_EPSILON = 1e-6


def to_args(manifest: Manifest) -> Namespace:
    """The ``args`` of ``manifest``'s files: what a loader needs to build the same model."""
    own: dict[str, Any] = {"sources": [dataclasses.asdict(source) for source in manifest.sources]}
    grid, tower = manifest.grid, manifest.architecture.vision
    if grid.layers_per_stage:
        own["layers_per_stage"] = list(grid.layers_per_stage)
    if tower is not None:
        own["vision"] = dataclasses.asdict(tower)
    args = Namespace(
        iteration=ITERATION,
        consumed_train_samples=0,
        consumed_valid_samples=0,
        tensor_model_parallel_size=grid.tensor,
        pipeline_model_parallel_size=grid.pipeline,
        virtual_pipeline_model_parallel_size=None,
        bf16=manifest.dtype == "bfloat16",
        fp16=manifest.dtype == "float16",
        params_dtype=getattr(torch, manifest.dtype),
        nvlm=own,
    )
    if manifest.architecture.language is not None:
        vars(args).update(language_args(manifest.architecture.language))
        assert manifest.vocabulary is not None
        args.vocab_size = manifest.vocabulary.true
        args.padded_vocab_size = manifest.vocabulary.padded
        vars(args).update(_uneven_stages(grid))
    return args


def language_from_args(
    args: Mapping[str, Any], path: Path, *, layers: int, qkv_bias: bool, vocabulary: int
) -> LanguageArchitecture:
    """The decoder that ``args`` of the file ``path`` describe.

    Raises UserError for a trait that NVLM's decoders don't have, or a value that is missing.
    """
    for name, right in (
        ("normalization", "RMSNorm"),
        ("position_embedding_type", "rope"),
        ("swiglu", True),
        ("add_bias_linear", False),
    ):
        if args.get(name) != right:
            raise UserError(
                f"{path}: args.{name} is {args.get(name)!r}, and only {right!r} is supported"
            )
    if type(args.get(UNTIED)) is not bool:
        raise UserError(f"{path}: args.{UNTIED} is {args.get(UNTIED)!r}, not true or false")
    if args.get("num_layers") != layers:
        raise UserError(
            f"{path}: args.num_layers is {args.get('num_layers')!r}, and the stages hold {layers}: "
            "a stage is missing, or the split has lost layers"
        )
    # Megatron-LM of 2026 keeps --norm-epsilon under its configuration's name.
    args = {"norm_epsilon": args.get("layernorm_epsilon"), **args}
    heads, hidden = _number(args, path, "num_attention_heads"), _number(args, path, "hidden_size")
    grouped = args.get("group_query_attention")
    if hidden % heads or args.get("kv_channels", hidden // heads) != hidden // heads:
        raise UserError(f"{path}: heads of {args.get('kv_channels')!r} channels are not supported")
    return LanguageArchitecture(
        family="qwen2" if qkv_bias else "llama",
        hidden_size=int(hidden),
        layers=layers,
        heads=int(heads),
        query_groups=int(_number(args, path, "num_query_groups") if grouped else heads),
        ffn_hidden_size=int(_number(args, path, "ffn_hidden_size")),
        norm_epsilon=float(_number(args, path, "norm_epsilon")),
        rope_theta=float(_number(args, path, "rotary_base")),
        vocabulary=vocabulary,
        max_positions=int(_number(args, path, "max_position_embeddings")),
        rope_scaling=_rope_scaling(args, path),
        tied_embeddings=not args[UNTIED],
    )


def _rope_scaling(args: Mapping[str, Any], path: Path) -> RopeScaling | None:
    if not args.get("use_rope_scaling"):
        return None
    factor = float(_number({"rope_scaling_factor": 8.0, **args}, path, "rope_scaling_factor"))
    return RopeScaling(factor=factor, **MEGATRON_SCALING)


def vision_from_args(
    args: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    layers: int,
    tensor: int,
    heads: int | None,
) -> VisionArchitecture:
    """The tower of a file whose tensors have ``shapes`` (names relative to ``vision_model.``).

    Megatron's ``args`` don't describe it: unless ``heads`` says how many, they are as wide as the
    decoder's, or as InternViT's if the shards with their dummy heads are of that width. Its norms,
    biases and QK norm follow from what is there. Raises UserError if neither can be.
    """
    hidden = shapes["class_token"][-1]
    patch = shapes["conv1.weight"][-1]
    side = math.isqrt(shapes["position_embeddings.weight"][0] - 1)
    own = _own(args).get("vision")
    own = own if isinstance(own, dict) else {}
    width = shapes["decoder.layers.0.self_attention.linear_proj.weight"][1] * tensor
    attention = "decoder.layers.0.self_attention."
    qk_norm = f"{attention}q_layernorm.weight" in shapes
    # A decoder's head size tells the 6B's; with the 300M's half as wide heads, both would divide.
    sizes = (args.get("kv_channels"), VISION_HEAD_SIZE) if qk_norm else (VISION_HEAD_SIZE_300M,)
    heads = heads or own.get("heads") or _vision_heads(sizes, hidden, width, tensor)
    return VisionArchitecture(
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        ffn_hidden_size=shapes["decoder.layers.0.mlp.linear_fc1.bias"][0] * tensor,
        image_size=side * patch,
        patch_size=patch,
        norm_epsilon=own.get("norm_epsilon", VISION_EPSILON),
        norm_type="layer_norm" if "decoder.layers.0.input_layernorm.bias" in shapes else "rms_norm",
        qkv_bias=f"{attention}linear_qkv.bias" in shapes,
        qk_norm=qk_norm,
    )


def _vision_heads(sizes: Sequence[Any], hidden: int, width: int, tensor: int) -> int:
    """Heads of one of ``sizes`` that take ``width`` with dummy heads for ``tensor`` ranks."""
    for size in sizes:
        if isinstance(size, int) and size > 0 and hidden % size == 0:
            heads = hidden // size
            if -(-heads // tensor) * tensor * size == width:
                return heads
    raise UserError(
        f"{hidden} channels of the tower, {width} with dummy heads for {tensor} ranks, are no "
        f"heads of {' or '.join(str(size) for size in sizes if size)}: give --vision-heads"
    )


def sources_from_args(
    args: Mapping[str, Any], parts: Sequence[str], directory: Path, iteration: int
) -> tuple[Source, ...]:
    """Where the halves came from: as an export of ours noted it, as the download did, or the
    directory itself."""
    known = _own(args).get("sources")
    if known:
        try:
            return tuple(Source(**source) for source in known)
        except TypeError as error:
            raise UserError(f"{directory}: args.{OWN}.sources is altered ({error})") from error
    if (directory / "source.json").is_file():
        return tuple(read_source(directory, part) for part in parts)
    note = f"iteration {iteration}"
    return tuple(Source(part=part, repo=directory.name, revision=note) for part in parts)


def _own(args: Mapping[str, Any]) -> dict[str, Any]:
    own = args.get(OWN)
    return own if isinstance(own, dict) else {}


def language_args(decoder: LanguageArchitecture) -> dict[str, Any]:
    """What ``args`` say of ``decoder``; UserError for what Megatron-core cannot be told."""
    scaling = decoder.rope_scaling
    if scaling is not None and scaling != RopeScaling(factor=scaling.factor, **MEGATRON_SCALING):
        raise UserError(
            f"rotary frequencies are scaled by {scaling}, and Megatron-core has but the factor to "
            "choose: export for Hugging Face instead"
        )
    return {
        "num_layers": decoder.layers,
        "hidden_size": decoder.hidden_size,
        "ffn_hidden_size": decoder.ffn_hidden_size,
        "num_attention_heads": decoder.heads,
        "group_query_attention": True,
        "num_query_groups": decoder.query_groups,
        "kv_channels": decoder.head_size,
        "seq_length": decoder.max_positions,
        "max_position_embeddings": decoder.max_positions,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "rotary_base": _whole(decoder.rope_theta),
        "rotary_percent": 1.0,
        "use_rope_scaling": scaling is not None,
        "rope_scaling_factor": 8.0 if scaling is None else scaling.factor,
        "rotary_interleaved": False,
        "normalization": "RMSNorm",
        "norm_epsilon": decoder.norm_epsilon,
        "apply_layernorm_1p": False,
        "swiglu": True,
        "squared_relu": False,
        "add_bias_linear": False,
        "add_qkv_bias": decoder.qkv_bias,
        UNTIED: not decoder.tied_embeddings,
        "apply_query_key_layer_scaling": False,
        # The fine-tuning scripts' 0, which the checkpoint's value would override.
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def _uneven_stages(grid: Grid) -> dict[str, int]:
    """Megatron's options for a first or last stage of another size, where they can say it."""
    first, *middle, last = (
        (*grid.layers_per_stage, 0) if grid.pipeline == 1 else grid.layers_per_stage
    )
    if grid.pipeline == 1 or len(set(grid.layers_per_stage)) == 1 or len(set(middle)) > 1:
        return {}
    return {
        "decoder_first_pipeline_num_layers": first,
        "decoder_last_pipeline_num_layers": last,
    }


def _whole(value: float) -> int | float:
    """Megatron's ``--rotary-base`` is an integer."""
    return int(value) if value == int(value) else value


def _number(args: Mapping[str, Any], path: Path, name: str) -> int | float:
    value = args.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{path}: args.{name} is {value!r}, not a number above 0")
    return value
