"""The vision stand-in: a small InternViT, trained to tell shapes, colours and digits.

It has InternViT-6B's traits (QK norm over all heads, RMSNorm, layer scale, no QKV bias, a head
count that TP=2 does not divide) and is written in the layout of OpenGVLab's repository, so that
everything after the download meets what it would meet with the real weights. Throwaway heads read
each visual token after pixel shuffle, because that is where NVLM's projector reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import InternVLVisionModel

from nvlm.checkpoint.format.architecture import PIXEL_SHUFFLE, VisionArchitecture
from nvlm.data.packaged import digits
from nvlm.data.packaged.easy_vqa import COLOURS, SHAPES
from nvlm.model.vision import IMAGE_MEAN, IMAGE_STD, build_tower, pixel_shuffle
from nvlm.standin.pictures import MAX_DIGITS, Numbers, Shapes, draw_numbers, load_shapes
from nvlm.standin.training import Optimizer, Training, progress, reproducible

# Shares of a batch: shapes, then single digits; the rest are strips of several in one tile.
SHAPES_SHARE, SINGLES_SHARE = 0.375, 0.25
DIGITS = 10


@dataclass(frozen=True, kw_only=True)
class VisionStandin:
    """Parameters of the stage."""

    build: bool  # False where the real weights are downloaded
    architecture: VisionArchitecture | None = None
    training: Training | None = None

    def __post_init__(self) -> None:
        if self.build and not (self.architecture and self.training):
            raise ValueError("build: needs the sections architecture and training beside it")


class Readout(nn.Module):
    """The throwaway heads: what each visual token (N, V, 4 C) says about the tile."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.sizes = [len(COLOURS), len(SHAPES), DIGITS, MAX_DIGITS]
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, sum(self.sizes))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Logits of colour, shape, digit in the token's column, and digits on the tile."""
        return self.linear(self.norm(features)).split(self.sizes, dim=-1)


def train_vision(architecture: VisionArchitecture, training: Training) -> InternVLVisionModel:
    """Build and train the tower on training pictures only."""
    reproducible(training.seed)
    rng = np.random.default_rng(training.seed)
    tower = build_tower(architecture)
    initialise(tower, architecture)
    readout = Readout(architecture.feature_size)
    optimizer = Optimizer(tower.encoder, [*tower.parameters(), *readout.parameters()], training)
    shapes, scans = load_shapes("train", architecture.image_size), digits.scans("train")
    columns = architecture.image_size // architecture.patch_size // PIXEL_SHUFFLE
    shapes_a_step = round(SHAPES_SHARE * training.batch)
    singles_a_step = round(SINGLES_SHARE * training.batch)
    strips_a_step = training.batch - shapes_a_step - singles_a_step
    for _ in progress(training.steps, "vision stand-in"):
        chosen = rng.integers(len(shapes.tiles), size=shapes_a_step)
        counts = np.concatenate(
            [np.ones(singles_a_step, int), rng.integers(2, MAX_DIGITS + 1, size=strips_a_step)]
        )
        numbers = draw_numbers(rng, scans, counts, architecture.image_size, columns)
        tiles = np.concatenate([shapes.tiles[chosen], numbers.tiles])
        logits = readout(visual_tokens(tower, tiles))
        optimizer.step(readout_loss(logits, shapes, chosen, numbers))
    return tower.eval()


def visual_tokens(tower: InternVLVisionModel, tiles: NDArray[np.uint8]) -> Tensor:
    """Features (N, V, 4 C) of ``tiles`` (N, H, W, 3), with a graph."""
    pixels = torch.from_numpy(tiles).float() / 255
    pixels = (pixels - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    hidden = tower(pixels.permute(0, 3, 1, 2)).last_hidden_state  # (N, 1 + P, C)
    return pixel_shuffle(hidden[:, 1:])


def readout_loss(
    logits: tuple[Tensor, ...], shapes: Shapes, chosen: NDArray[np.int64], numbers: Numbers
) -> Tensor:
    """Cross-entropy of all heads, averaged over visual tokens.

    The first ``len(chosen)`` rows of ``logits`` are the ``chosen`` pictures of shapes.
    """
    colour, shape, digit, count = (head.transpose(1, 2) for head in logits)  # (N, classes, V)
    tokens = colour.shape[2]
    columns = numbers.columns.shape[1]
    at = len(chosen)

    def everywhere(labels: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(labels)[:, None].expand(-1, tokens)

    in_columns = torch.from_numpy(numbers.columns).repeat(1, tokens // columns)
    return (
        cross_entropy(colour[:at], everywhere(shapes.colours[chosen]))
        + cross_entropy(shape[:at], everywhere(shapes.shapes[chosen]))
        + 2 * cross_entropy(digit[at:], in_columns)
        + 0.5 * cross_entropy(count[at:], everywhere(numbers.counts - 1))
    )


@torch.no_grad()
def initialise(tower: InternVLVisionModel, architecture: VisionArchitecture) -> None:
    """Start from what a long training would find first anyway.

    Patch filters are rotated cosines (of a small constant part, else paper and background drown
    the strokes), positions are sines and cosines of row and column, layer scale starts at 1.
    """
    filters = cosine_filters(architecture.patch_size)[: architecture.hidden_size]
    mixing = torch.linalg.qr(torch.randn(architecture.hidden_size, len(filters)))[0]
    projection = tower.embeddings.patch_embeddings.projection
    projection.weight.copy_(0.3 * torch.einsum("hf,fcij->hcij", mixing, filters))
    assert projection.bias is not None
    projection.bias.zero_()
    side = architecture.image_size // architecture.patch_size
    positions = sine_positions(side, architecture.hidden_size)
    tower.embeddings.position_embeddings[0, 1:] = 0.5 * positions
    for layer in tower.encoder.layer:
        for name in ("lambda_1", "lambda_2"):
            layer.get_parameter(name).fill_(1.0)


def cosine_filters(patch_size: int) -> Tensor:
    """Orthonormal filters (3 x patch_size^2, 3, patch_size, patch_size), brightness first.

    The discrete cosine basis in brightness and two colour differences, coarse filters first.
    """
    k, x = torch.arange(patch_size)[:, None], torch.arange(patch_size)[None]
    basis = torch.cos(torch.pi / patch_size * (x + 0.5) * k)
    basis = basis / basis.norm(dim=1, keepdim=True)
    colours = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    order = sorted(
        ((u, v) for u in range(patch_size) for v in range(patch_size)), key=lambda uv: (sum(uv), uv)
    )
    spatial = torch.stack([torch.outer(basis[u], basis[v]) for u, v in order])
    spatial[0] *= 0.2
    return torch.einsum("ac,sij->ascij", colours, spatial).flatten(0, 1)


def sine_positions(side: int, size: int) -> Tensor:
    """Positions (side^2, size) of a square grid, row-major: half the channels for each axis."""
    frequencies = 100.0 ** -(torch.arange(size // 4) / (size // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, size / 2)
    rows = axis[:, None].expand(side, side, -1)
    return torch.cat([rows, axis[None].expand(side, side, -1)], dim=-1).flatten(0, 1)
