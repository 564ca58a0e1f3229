"""Floating-point operations of a training step, and what a device can do of them.

Model FLOPs in the sense of PaLM (arXiv 2204.02311, appendix B) and Megatron-LM (arXiv 2104.04473,
section 5.1): those that the step's mathematics needs, a multiplication with an addition being two.
What an implementation computes besides is not counted: activation checkpointing and attention's
own recomputation, masked scores, the padded rows of vocabulary and tiles. Neither are norms,
activations and softmax, which no matrix product does. For utilization, a row's padding counts like
Megatron-LM's: the model does compute it.

    decoder layer, a token       4 h (h + g d) + 6 h f         q and o, k and v; gate, up and down
    decoder layer, a seen pair   4 h                           q k^T and the sum over v
    head, an answer's token      2 h v                         at the labelled positions alone
    projector, a visual token    2 c f + 2 f h
    tower layer, a token         8 e^2 + 4 e i                 q, k, v and o; both of the MLP
    tower layer, a pair          4 e
    patch embedding, a patch     6 p^2 e

h: decoder hidden size, g d: channels of its keys, f: its FFN size, v: its vocabulary; c: channels
of a visual token, e and i: hidden and FFN size of the tower, p: side of a patch in pixels. A row
of S tokens has S (S + 1) / 2 pairs where each sees itself and what is before it; rows of several
samples have fewer, which is not counted, and half of PaLM's S^2.

Backward, a matrix product costs once more for the gradient of its input and once more for that of
its weight: twice where the weight is trained, once where it is frozen and the gradient flows
through, as through the whole decoder when only the projector is trained. Attention has no weight
and always costs twice. The tower is never trained and has no backward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)

# Dense bf16 operations a second, by a fragment of CUDA's name of the device; the first that fits
# holds. NVIDIA's data sheets of A100 (2021), H100 (2023), H200 (2024) and HGX B200 (2024), halved
# where they give figures with sparsity.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second of ``device``; None where they are not known.

    A slice of a card (MIG) has a part of the card's, which its name does not tell.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name:
        return None
    return next((peak for fragment, peak in PEAK_FLOPS.items() if fragment in name), None)


def step_flops(
    architecture: Architecture,
    *,
    trainable: Collection[str],
    lengths: Sequence[int],
    tiles: int,
    answers: int,
) -> float:
    """FLOPs of forward and backward of rows of ``lengths`` tokens, of padding where it counts.

    ``trainable``: "vision_projection", "language_model"; ``tiles`` of all rows, ``answers``: their
    labelled positions. The optimizer's own work, a few operations a parameter, is not counted.
    """
    assert architecture.vision and architecture.language
    language = architecture.language
    tokens = sum(lengths)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    decoder_trained = "language_model" in trainable
    projector_trained = "vision_projection" in trainable
    through_decoder = 3 if decoder_trained else 2
    visual_tokens = tiles * architecture.vision.tokens_per_tile
    return float(
        through_decoder * decoder_flops(language, tokens)
        + 3 * attention_flops(language, pairs)
        + through_decoder * head_flops(language, answers)
        + (3 if projector_trained else 1) * projector_flops(architecture, visual_tokens)
        + tower_flops(architecture.vision, tiles)
    )


def decoder_flops(language: LanguageArchitecture, tokens: int) -> int:
    """Forward FLOPs of the weights of all decoder layers on ``tokens`` positions."""
    hidden, keys = language.hidden_size, language.query_groups * language.head_size
    attention = 4 * hidden * (hidden + keys)
    mlp = 6 * hidden * language.ffn_hidden_size
    return language.layers * (attention + mlp) * tokens


def attention_flops(language: LanguageArchitecture, pairs: int) -> int:
    """Forward FLOPs of all decoder layers for ``pairs`` of a query and a key that it sees."""
    return language.layers * 4 * language.hidden_size * pairs


def head_flops(language: LanguageArchitecture, answers: int) -> int:
    """Forward FLOPs of the logits of ``answers`` positions."""
    return 2 * language.hidden_size * language.vocabulary * answers


def projector_flops(architecture: Architecture, visual_tokens: int) -> int:
    """Forward FLOPs of the projector on ``visual_tokens``."""
    assert architecture.vision and architecture.language
    features, language = architecture.vision.feature_size, architecture.language
    return 2 * language.ffn_hidden_size * (features + language.hidden_size) * visual_tokens


def tower_flops(vision: VisionArchitecture, tiles: int) -> int:
    """Forward FLOPs of the vision tower on ``tiles``."""
    hidden, tokens = vision.hidden_size, vision.patches + 1  # the class token
    weights = 8 * hidden**2 + 4 * hidden * vision.ffn_hidden_size
    layers = vision.layers * (weights * tokens + 4 * hidden * tokens**2)
    embedding = 2 * 3 * vision.patch_size**2 * hidden * vision.patches
    return tiles * (layers + embedding)
