"""The tower and the pixel shuffle against transformers' own InternVL."""

import torch
from torch import nn
from transformers.models.internvl.modeling_internvl import InternVLModel

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.model.vision import Projector, build_tower, pixel_shuffle, tile_features

INTERNVIT_6B = VisionArchitecture(
    hidden_size=3200,
    layers=45,
    heads=25,
    ffn_hidden_size=12800,
    image_size=448,
    patch_size=14,
    norm_epsilon=1e-6,
)
INTERNVIT_300M = VisionArchitecture(
    hidden_size=1024,
    layers=24,
    heads=16,
    ffn_hidden_size=4096,
    image_size=448,
    patch_size=14,
    norm_epsilon=1e-6,
    norm_type="layer_norm",
    qkv_bias=True,
    qk_norm=False,
)
SMALL = VisionArchitecture(
    hidden_size=24,
    layers=2,
    heads=3,
    ffn_hidden_size=48,
    image_size=24,
    patch_size=6,
    norm_epsilon=1e-6,
)


def test_towers_have_exactly_the_published_parameters():
    published = ((INTERNVIT_6B, 5_536_496_000), (INTERNVIT_300M, 304_012_288))
    for architecture, number in published:
        with torch.device("meta"):
            tower = build_tower(architecture)
        assert sum(parameter.numel() for parameter in tower.parameters()) == number


def test_pixel_shuffle_equals_internvl():
    grid = torch.randn(3, 8, 8, 5)
    expected = InternVLModel.pixel_shuffle(None, grid, scale_factor=0.5)
    assert torch.equal(pixel_shuffle(grid.flatten(1, 2)), expected.flatten(1, 2))


def test_tile_features_drop_the_class_token_and_normalise_as_imagenet():
    torch.manual_seed(0)
    tower = build_tower(SMALL).eval()
    tiles = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    features = tile_features(tower, tiles)
    assert features.shape == (2, SMALL.tokens_per_tile, SMALL.feature_size)
    # Red 255 normalises to (1 - 0.485) / 0.229, by hand.
    red = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    red[:, 0] = 255
    pixels = torch.tensor([2.248908, -2.035714, -1.804444]).view(1, 3, 1, 1).expand(1, 3, 24, 24)
    with torch.no_grad():
        hidden = tower(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(tile_features(tower, red), pixel_shuffle(hidden))


def test_projector_has_the_published_widths_and_no_biases():
    language = LanguageArchitecture(
        family="qwen2",
        hidden_size=8192,
        layers=80,
        heads=64,
        query_groups=8,
        ffn_hidden_size=29568,
        norm_epsilon=1e-6,
        rope_theta=1e6,
        vocabulary=152064,
        max_positions=32768,
    )
    with torch.device("meta"):
        projector = Projector(Architecture(vision=INTERNVIT_6B, language=language))
    assert projector.linear_1.weight.shape == (29568, 12800)
    assert projector.linear_2.weight.shape == (8192, 29568)
    assert not [m for m in projector.modules() if isinstance(m, nn.Linear) and m.bias is not None]
