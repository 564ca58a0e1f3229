"""A stage's parameters and model as flags of Megatron-LM's examples/multimodal/train.py.

The names are those of ``REVISION``; docs/megatron.md has the table. What of a stage Megatron-LM
cannot do is refused: a command that trains something else would be worse than none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.checkpoint.format.published import INTERNVIT_6B, QWEN2_72B, YI_34B
from nvlm.checkpoint.megatron.args import language_args
from nvlm.data.loading.encoder import PACKING_BUFFER
from nvlm.errors import UserError
from nvlm.train.checks import check_sequence
from nvlm.train.params import TrainParams

REVISION = "d98e8a64ddf34856e74b24714e3bedb2f5a39553"
TAG_TOKENS = 5  # of a tile tag, fixed in megatron/core/models/vision/clip_vit_model.py
MOST_TAGGED_TILES = 9  # from the tenth on, upstream's tags have two digits
# Flag -> its value; None where the flag is all there is to say.
Flags = dict[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder whose activation, projector and prompts upstream's example has branches for."""

    architecture: LanguageArchitecture
    language_model_type: str  # examples/multimodal/config.py
    prompt_format: str  # megatron/core/tokenizers/vision


DECODERS = (
    Decoder(architecture=YI_34B, language_model_type="yi-34b", prompt_format="nvlm-yi-34b"),
    Decoder(architecture=QWEN2_72B, language_model_type="qwen2.0_72B", prompt_format="qwen2p0"),
)
# Of language_args: what train.py computes itself, or has no flag for since it is the default.
NOT_A_FLAG = ("seq_length", "add_position_embedding", "add_bias_linear", "rope_scaling_factor")


def decoder_of(architecture: LanguageArchitecture) -> Decoder:
    """Upstream's names of ``architecture``; UserError where its example has none."""
    for decoder in DECODERS:
        if decoder.architecture == architecture:
            return decoder
    raise UserError(
        f"Megatron-LM's examples/multimodal/config.py has no decoder of {architecture.layers} "
        f"layers of {architecture.hidden_size} channels with NVLM's projector, but the 34B's and "
        "the 72B's: train it with src/train.py, or take scale=full"
    )


def check_supported(params: TrainParams, where: str) -> None:
    """Raise UserError for a parameter (of section ``where``) that Megatron-LM cannot follow."""
    data = params.data
    for name, value, wrong, reason in (
        ("lora", params.lora, params.lora is not None, "it trains no adapters: say null"),
        (
            "trainable",
            params.trainable,
            "vision_projection" not in params.trainable,
            "its example always trains the projector: name vision_projection",
        ),
        (
            "turn_weighting",
            params.turn_weighting,
            params.turn_weighting != "token",
            "its --use-loss-scaling divides within a micro-batch, ours over the step: say token",
        ),
        (
            "dtype",
            params.dtype,
            params.dtype != "bfloat16",
            "its example reaches the model through a wrapper that only 16 bits have: say bfloat16",
        ),
        (
            "data.template",
            data.template,
            data.template != "chatml",
            "it has no other template than ChatML: say chatml",
        ),
        (
            "data.packing",
            data.packing,
            data.packing and (params.micro_batch > 1 or data.tile_tags or params.sequence_parallel),
            "it packs one row at a time, without tile tags and without sequence parallelism: say "
            "false",
        ),
        (
            "micro_batch",
            params.micro_batch,
            params.micro_batch > 1 and (data.tile_tags or params.sequence_parallel),
            "it tags the tiles and splits the sequence of one row at a time: say 1, or turn off "
            "data.tile_tags and sequence_parallel",
        ),
        (
            "data.max_tiles",
            data.max_tiles,
            data.tile_tags and data.max_tiles > MOST_TAGGED_TILES,
            f"its tags have two digits then: say {MOST_TAGGED_TILES} at most",
        ),
    ):
        if wrong:
            raise UserError(f"{where}.{name}: {value} cannot be had of Megatron-LM: {reason}")


def stage_flags(params: TrainParams, architecture: Architecture, padded: int) -> Flags:
    """All flags but the paths', of parameters that ``check_supported`` has passed.

    ``padded``: rows of the embedding in the checkpoint.
    """
    assert architecture.vision is not None and architecture.language is not None
    tiles = check_sequence(params.data, architecture)
    return {
        **_parallel(params, architecture.language),
        **_optimization(params),
        **_decoder(architecture.language, padded),
        **_vision(params, architecture.vision, tiles),
        **_data(params),
        **_run(params),
    }


def _parallel(params: TrainParams, decoder: LanguageArchitecture) -> Flags:
    grid = params.grid
    if decoder.layers % grid.pipeline:
        raise UserError(
            f"grid.pipeline: {grid.pipeline} does not divide the decoder's {decoder.layers} "
            "layers, and Megatron-LM asks for equal stages"
        )
    flags: Flags = {
        "--tensor-model-parallel-size": str(grid.tensor),
        "--pipeline-model-parallel-size": str(grid.pipeline),
    }
    if params.sequence_parallel and grid.tensor > 1:
        flags["--sequence-parallel"] = None
    if grid.shard > 1:
        flags["--use-distributed-optimizer"] = None
        if grid.replicate > 1:
            flags["--num-distributed-optimizer-instances"] = str(grid.replicate)
    if params.recompute_every:
        layers = math.ceil(decoder.layers // grid.pipeline / params.recompute_every)
        every = params.recompute_every == 1
        flags |= {
            "--recompute-granularity": "full",
            "--recompute-method": "uniform" if every else "block",
            "--recompute-num-layers": "1" if every else str(layers),
        }
    return flags


def _optimization(params: TrainParams) -> Flags:
    flags: Flags = {
        "--micro-batch-size": str(params.micro_batch),
        "--global-batch-size": str(params.global_batch),
        "--train-iters": str(params.steps),
        "--lr": str(params.lr),
        "--min-lr": str(params.min_lr),
        "--lr-decay-style": "cosine",
        "--lr-decay-iters": str(params.steps),
        "--lr-warmup-iters": str(params.warmup_steps),
        "--optimizer": "adam",
        "--adam-beta1": str(params.betas[0]),
        "--adam-beta2": str(params.betas[1]),
        "--weight-decay": str(params.weight_decay),
        "--clip-grad": str(params.clip_grad),
        "--attention-dropout": str(params.attention_dropout),
        "--hidden-dropout": str(params.hidden_dropout),
        "--calculate-per-token-loss": None,
        "--bf16": None,
        "--freeze-ViT": None,
    }
    if "language_model" not in params.trainable:
        flags["--freeze-LM"] = None
    return flags


def _decoder(architecture: LanguageArchitecture, padded: int) -> Flags:
    args: dict[str, Any] = language_args(architecture)
    flags: Flags = {
        f"--{name.replace('_', '-')}": None if value is True else str(value)
        for name, value in args.items()
        if value is not False and name not in NOT_A_FLAG and not name.endswith("_dropout")
    }
    if args["use_rope_scaling"]:
        flags["--rope-scaling-factor"] = str(args["rope_scaling_factor"])
    return {
        **flags,
        "--disable-bias-linear": None,
        "--padded-vocab-size": str(padded),
        "--language-model-type": decoder_of(architecture).language_model_type,
        "--use-te": None,
    }


def _vision(params: TrainParams, tower: VisionArchitecture, tiles: int) -> Flags:
    if tower != INTERNVIT_6B:
        raise UserError(
            "Megatron-LM's examples/multimodal/config.py has but InternViT-6B of NVLM's towers, "
            f"and none of {tower.layers} layers: train it with src/train.py"
        )
    data = params.data
    tokens = tower.tokens_per_tile + (TAG_TOKENS if data.tile_tags else 0)
    flags: Flags = {
        "--vision-model-type": "internvit",
        "--disable-vision-class-token": None,
        "--pixel-shuffle": None,
        "--img-h": str(tower.image_size),
        "--img-w": str(tower.image_size),
        "--patch-dim": str(tower.patch_size),
        "--seq-length": str(tokens),
        "--max-num-tiles": str(data.max_tiles),
    }
    if data.max_tiles > 1:
        flags["--use-tiling"] = None
    if tiles > data.max_tiles:
        flags["--use-thumbnail"] = None
    if data.tile_tags:
        flags["--use-tile-tags"] = None
    return flags


def _data(params: TrainParams) -> Flags:
    length = params.data.sequence_length
    flags: Flags = {
        "--dataloader-type": "external",
        "--decoder-seq-length": str(length),
        "--num-workers": str(params.data.workers),
        "--image-tag-type": "nvlm",
        "--eval-iters": "0",
    }
    if params.data.packing:
        flags |= {"--packing-buffer-size": str(PACKING_BUFFER), "--packing-seq-length": str(length)}
    return flags


def _run(params: TrainParams) -> Flags:
    flags: Flags = {
        "--seed": str(params.seed),
        "--log-interval": str(params.log_every),
        "--save-interval": str(params.snapshot_every),
        "--ckpt-format": "torch",
    }
    if params.deterministic:
        flags["--deterministic-mode"] = None
    return flags
