"""Names and shapes of every tensor that a part of a checkpoint holds, from the architecture alone.

Found by converting tensors without storage, so that there is one home for the layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION
from nvlm.checkpoint.parts import language, projector, vision

Shapes = dict[str, tuple[int, ...]]


def core_shapes(
    architecture: Architecture, part: str, *, size: int, padded: int | None = None
) -> Shapes:
    """What ``part`` holds on each of ``size`` ranks; ``padded`` rows of the vocabulary in all."""
    half, _, kind = part.partition(".")
    if half == PROJECTION:
        whole = _meta(projector.core_shapes(architecture))
        return _shapes(projector.slice_projector(whole, 0, size))
    if half == VISION:
        tower = architecture.vision
        assert tower is not None
        if kind == "embedding":
            return _shapes(vision.embedding_to_core(_meta(vision.embedding_shapes(tower))))
        return _shapes(vision.layer_to_core(_meta(vision.layer_shapes(tower)), tower, 0, size))
    decoder = architecture.language
    assert half == LANGUAGE and decoder is not None and padded is not None
    if kind.startswith("layer"):
        layer = language.slice_layer(_meta(language.layer_shapes(decoder)), decoder, 0, size)
        return _shapes(language.layer_to_core(layer, decoder, size))
    table = (padded // size, decoder.hidden_size)
    if kind == "embedding":
        return {"word_embeddings.weight": table}
    norm: Shapes = {"final_layernorm.weight": (decoder.hidden_size,)}
    return norm if decoder.tied_embeddings else norm | {"output_layer.weight": table}


def _meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
