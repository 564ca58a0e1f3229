"""Which parts make up a checkpoint, and how a grid of ranks shares them out.

A part is one safetensors file of one tensor-parallel rank: an embedding, a head, the projector, or
one layer. Tensor parallelism decides what a part holds; the pipeline only decides who reads it, so
that a change of pipeline stages moves no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.errors import UserError

VISION = "vision_model"
PROJECTION = "vision_projection"
LANGUAGE = "language_model"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The ranks that a checkpoint is laid out for."""

    tensor: int
    pipeline: int
    layers_per_stage: tuple[int, ...]  # decoder layers; empty where there is no decoder

    def __post_init__(self) -> None:
        if self.tensor < 1 or self.pipeline < 1:
            raise UserError(
                f"a grid of tensor {self.tensor} x pipeline {self.pipeline} is empty: both sizes "
                "have to be 1 or more"
            )
        if self.layers_per_stage and len(self.layers_per_stage) != self.pipeline:
            raise UserError(
                f"pipeline {self.pipeline} has {len(self.layers_per_stage)} layer counts "
                f"{list(self.layers_per_stage)}: give one a stage"
            )
        if any(layers < 1 for layers in self.layers_per_stage):
            raise UserError(
                f"pipeline stages of {list(self.layers_per_stage)} layers: each stage needs one"
            )


def even_grid(architecture: Architecture, *, tensor: int, pipeline: int) -> Grid:
    """The grid whose pipeline stages hold equally many decoder layers.

    Raises UserError if ``architecture`` does not divide by ``tensor`` and ``pipeline``.
    """
    check_tensor_parallel(architecture, tensor)
    if architecture.language is None:
        return Grid(tensor=tensor, pipeline=1, layers_per_stage=())
    layers = architecture.language.layers
    if pipeline < 1 or layers % pipeline:
        raise UserError(
            f"{layers} decoder layers do not divide into {pipeline} pipeline stages: choose a "
            f"divisor of {layers}"
        )
    return Grid(tensor=tensor, pipeline=pipeline, layers_per_stage=(layers // pipeline,) * pipeline)


def pipeline_grid(
    architecture: Architecture,
    *,
    tensor: int,
    pipeline: int | None,
    layers_per_stage: Sequence[int] | None,
) -> Grid:
    """The grid of ``pipeline`` stages (None: as many as counts), even or of given layer counts.

    Raises UserError if the counts are not one a stage, or do not sum to the decoder's layers.
    """
    if layers_per_stage is None:
        return even_grid(architecture, tensor=tensor, pipeline=1 if pipeline is None else pipeline)
    check_tensor_parallel(architecture, tensor)
    counts = tuple(layers_per_stage)
    layers = architecture.language.layers if architecture.language else 0
    if sum(counts) != layers:
        raise UserError(
            f"stages of {list(counts)} layers hold {sum(counts)}, and the decoder has {layers}: "
            "give one count a stage that sum to it"
        )
    stages = len(counts) if pipeline is None else pipeline
    return Grid(tensor=tensor, pipeline=stages, layers_per_stage=counts)


def check_tensor_parallel(architecture: Architecture, tensor: int) -> None:
    """Raise UserError unless ``tensor`` ranks can share ``architecture`` out evenly.

    The tower's heads need not divide: dummy heads fill them up (25 heads become 32 at 8 ranks).
    """
    if tensor < 1:
        raise UserError(f"tensor parallel {tensor} should be 1 or more")
    sizes: dict[str, int] = {}
    if architecture.vision is not None:
        sizes["vision FFN channels"] = architecture.vision.ffn_hidden_size
    if architecture.language is not None:
        sizes["query groups"] = architecture.language.query_groups
        sizes["decoder FFN channels"] = architecture.language.ffn_hidden_size
    for name, size in sizes.items():
        if size % tensor:
            raise UserError(
                f"tensor parallel {tensor} does not divide the {size} {name}: choose a divisor"
            )


def padded_rows(vocabulary: int, *, multiple: int, tensor: int) -> int:
    """Rows of the padded vocabulary: the next multiple of ``multiple * tensor``.

    As Megatron-LM's ``--make-vocab-size-divisible-by``: Qwen2's 152,064 rows become 152,576 for a
    multiple of 128 on 8 ranks.
    """
    if multiple < 1:
        raise UserError(f"make_vocabulary_divisible_by {multiple} should be 1 or more")
    step = multiple * tensor
    return -(-vocabulary // step) * step


def layer_part(half: str, layer: int) -> str:
    """The part of layer ``layer`` of ``half``: "language_model.layer.017"."""
    return f"{half}.layer.{layer:03d}"


def part_names(architecture: Architecture) -> list[str]:
    """Every part that each tensor-parallel rank of a checkpoint of ``architecture`` has."""
    names = []
    if architecture.vision is not None:
        names += _vision_parts(architecture.vision)
    if architecture.vision is not None and architecture.language is not None:
        names.append(PROJECTION)
    if architecture.language is not None:
        names += _language_parts(architecture.language)
    return names


def part_path(tensor_rank: int, part: str) -> str:
    """Where ``part`` of a rank lies in the checkpoint: "tp03/vision_projection.safetensors"."""
    return f"tp{tensor_rank:02d}/{part}.safetensors"


def _vision_parts(architecture: VisionArchitecture) -> list[str]:
    layers = [layer_part(VISION, layer) for layer in range(architecture.layers)]
    return [f"{VISION}.embedding", *layers]


def _language_parts(architecture: LanguageArchitecture) -> list[str]:
    layers = [layer_part(LANGUAGE, layer) for layer in range(architecture.layers)]
    return [f"{LANGUAGE}.embedding", *layers, f"{LANGUAGE}.head"]
