"""Labelled tiles that the vision stand-in is trained on, all from training splits.

A tile is what the model will meet: an easy-VQA picture, one digit of a strip, or a whole strip
squeezed into one tile, as thumbnails and the single tile of pretraining are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.data.packaged import digits, easy_vqa
from nvlm.data.packaged.easy_vqa import COLOURS, SHAPES
from nvlm.model.tiling import Tiling, tile_image

MAX_DIGITS = 4
WHOLE = Tiling(max_tiles=1, thumbnail=False)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Pictures of one coloured shape each."""

    tiles: NDArray[np.uint8]  # (N, size, size, 3)
    colours: NDArray[np.int64]  # (N,), positions in COLOURS
    shapes: NDArray[np.int64]  # (N,), positions in SHAPES


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Strips of digits, each in one tile."""

    tiles: NDArray[np.uint8]  # (N, size, size, 3)
    columns: NDArray[np.int64]  # (N, columns of visual tokens), the digit shown there
    counts: NDArray[np.int64]  # (N,), digits on the strip


def load_shapes(split: easy_vqa.Split, image_size: int) -> Shapes:
    """Every described picture of ``split``, resized to one tile."""
    described = easy_vqa.descriptions(split)
    return Shapes(
        tiles=np.concatenate(
            [tile_image(easy_vqa.image(split, image), image_size, WHOLE) for image in described]
        ),
        colours=np.array([COLOURS.index(shown.colour) for shown in described.values()]),
        shapes=np.array([SHAPES.index(shown.shape) for shown in described.values()]),
    )


def draw_numbers(
    rng: np.random.Generator,
    scans: digits.Scans,
    counts: NDArray[np.int64],
    image_size: int,
    columns: int,
) -> Numbers:
    """Strips of ``counts`` digits of ``scans``; a token column shows the digit at its centre."""
    tiles, labels = [], []
    for count in counts:
        strip = digits.strip(rng, scans, int(count))
        tiles.append(tile_image(strip.image, image_size, WHOLE))
        centres = (np.arange(columns) + 0.5) / columns * count
        labels.append([int(strip.text[int(centre)]) for centre in centres])
    return Numbers(tiles=np.concatenate(tiles), columns=np.array(labels), counts=counts)
