"""The vision half: InternViT from transformers, pixel shuffle, and the projector of NVLM-D.

Shapes: N tiles, P patches a tile, V = P / 4 visual tokens a tile, C channels of the tower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import InternVLVisionConfig, InternVLVisionModel

from nvlm.checkpoint.format.architecture import PIXEL_SHUFFLE, Architecture, VisionArchitecture

# ImageNet statistics of InternViT's preprocessor_config.json.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def build_tower(architecture: VisionArchitecture) -> InternVLVisionModel:
    """InternViT as transformers has it: 5,536,496,000 parameters at 6B, 304,012,288 at 300M.

    ``use_mean_pooling`` keeps transformers from adding a final LayerNorm that InternViT lacks.
    """
    return InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=architecture.hidden_size,
            num_hidden_layers=architecture.layers,
            num_attention_heads=architecture.heads,
            intermediate_size=architecture.ffn_hidden_size,
            image_size=architecture.image_size,
            patch_size=architecture.patch_size,
            layer_norm_eps=architecture.norm_epsilon,
            norm_type=architecture.norm_type,
            hidden_act="gelu",
            attention_bias=architecture.qkv_bias,
            use_qk_norm=architecture.qk_norm,
            use_mean_pooling=True,
        )
    )


def pixel_shuffle(patches: Tensor) -> Tensor:
    """Put 2x2 neighbouring patches on the channels: (N, P, C) to (N, P / 4, 4 C).

    Version "v2" of InternVL's shuffle: the grid stays row-major, channels are ordered by
    (row parity, column parity, channel).
    """
    count, length, channels = patches.shape
    side = int(length**0.5)
    half = side // PIXEL_SHUFFLE
    grid = patches.view(count, half, PIXEL_SHUFFLE, half, PIXEL_SHUFFLE, channels)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(count, half * half, channels * PIXEL_SHUFFLE**2)


def tile_features(tower: InternVLVisionModel, tiles: Tensor) -> Tensor:
    """Features of ``tiles`` (N, 3, H, W) uint8: (N, V, 4 C), in the tower's dtype.

    The tower is frozen in every stage of the recipe, so no graph is kept.
    """
    weight = tower.embeddings.cls_token
    mean = torch.tensor(IMAGE_MEAN, device=weight.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=weight.device).view(1, 3, 1, 1)
    pixels = (tiles.to(weight.device).float() / 255 - mean) / std
    with torch.no_grad():
        hidden = tower(pixels.to(weight.dtype)).last_hidden_state  # (N, 1 + P, C)
    return pixel_shuffle(hidden[:, 1:])


class Projector(nn.Module):
    """LayerNorm, then a two-layer MLP without biases whose width is the decoder's FFN size.

    12,800 to 20,480 to 7,168 for the 34B, 12,800 to 29,568 to 8,192 for the 72B (section 4.1).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        assert architecture.vision and architecture.language
        features, language = architecture.vision.feature_size, architecture.language
        self.layer_norm = nn.LayerNorm(features)
        self.linear_1 = nn.Linear(features, language.ffn_hidden_size, bias=False)
        self.linear_2 = nn.Linear(language.ffn_hidden_size, language.hidden_size, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(..., 4 C) to (..., decoder hidden size)."""
        return self.linear_2(functional.gelu(self.linear_1(self.layer_norm(features))))
