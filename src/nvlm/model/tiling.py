"""Dynamic high resolution: an image becomes 1 to 6 square tiles and a thumbnail (section 4.2).

Grid choice and pixels follow InternVL's published ``dynamic_preprocess``, which NVLM uses at
training and at inference. Pillow spends most of an image's time in resizing; PyTorch's own uint8
bicubic is several times faster, and used as far as no value then differs by more than 1 of 255.
Decoding JPEG at a reduced size is faster still, but differs by tens of levels: it is not used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# From this reduction in the second pass on PyTorch does both, see _resize.
BOTH_PASSES_REDUCTION = 3


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How many tiles an image may have."""

    max_tiles: int  # without the thumbnail; 1 = the whole image in one tile
    thumbnail: bool  # add the whole image as a last tile wherever there are several

    def __post_init__(self) -> None:
        if self.max_tiles < 1:
            raise ValueError(f"max_tiles: at least 1, not {self.max_tiles}")


def tile_grid(width: int, height: int, image_size: int, max_tiles: int) -> tuple[int, int]:
    """The (columns, rows) of an image of ``width`` x ``height`` pixels.

    The grid of 1 to ``max_tiles`` tiles whose aspect ratio is closest to the image's. Of equally
    close grids a larger one wins when the image has more than half of the grid's pixels.
    """
    aspect_ratio = width / height
    best, smallest_difference = (1, 1), float("inf")
    for columns, rows in _candidate_grids(max_tiles):
        difference = abs(aspect_ratio - columns / rows)
        grid_area = image_size * image_size * columns * rows
        if difference < smallest_difference:
            best, smallest_difference = (columns, rows), difference
        elif difference == smallest_difference and width * height > 0.5 * grid_area:
            best = (columns, rows)
    return best


def tile_count(width: int, height: int, image_size: int, tiling: Tiling) -> int:
    """How many tiles ``tile_image`` makes of such an image, thumbnail included."""
    columns, rows = tile_grid(width, height, image_size, tiling.max_tiles)
    return columns * rows + (tiling.thumbnail and columns * rows > 1)


def tile_image(image: Image.Image, image_size: int, tiling: Tiling) -> NDArray[np.uint8]:
    """Cut ``image`` into uint8 RGB tiles (tiles, image_size, image_size, 3).

    Tiles go row by row, the thumbnail comes last. The image is resized (bicubic) in its own mode
    and then converted to RGB, as InternVL does: palette and 1-bit images are thereby resized by
    nearest neighbour, and converting first would change their pixels.
    """
    columns, rows = tile_grid(*image.size, image_size, tiling.max_tiles)
    pixels = _resize(image, columns * image_size, rows * image_size)
    count = tile_count(*image.size, image_size, tiling)
    # Channel by channel, as PyTorch resizes and the model reads; only the view has them last.
    tiles = np.empty((count, 3, image_size, image_size), dtype=np.uint8)
    planes = pixels.transpose(2, 0, 1).reshape(3, rows, image_size, columns, image_size)
    grid = tiles[: columns * rows].reshape(rows, columns, 3, image_size, image_size)
    grid[:] = planes.transpose(1, 3, 0, 2, 4)
    if count > columns * rows:
        tiles[-1] = _resize(image, image_size, image_size).transpose(2, 0, 1)
    return tiles.transpose(0, 2, 3, 1)


def _resize(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """RGB pixels (height, width, 3) of the resized image, each within 1 of Pillow's bicubic.

    Both libraries resize along one side, round to uint8, and then along the other; PyTorch's
    weights have 16 bits to Pillow's 22, so either pass can be off by 1. The two together can be off
    by 2, unless the second one's weights are small. So Pillow does the first pass, in the order in
    which it would do both, and PyTorch the second, or both where the second one shrinks much.
    Other modes than RGB are left to Pillow alone: converting them first would change them.
    """
    if image.mode != "RGB":
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.convert("RGB"))
    # Pillow 13 does the columns first where they shrink by far more pixels than the rows: found by
    # trying, and held by tests.
    columns_first = image.height > max(height, height + 2 * (image.width - width))
    between = (image.width, height) if columns_first else (width, image.height)
    reduction = image.width / width if columns_first else image.height / height
    if reduction < BOTH_PASSES_REDUCTION:
        image = image.resize(between, Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return _torch_resize(
        _torch_resize(pixels, *between) if columns_first else pixels, width, height
    )


def _torch_resize(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """``pixels`` (H, W, 3) at the size (height, width, 3), by PyTorch's uint8 kernel."""
    # Scoring reads this package without ever tiling an image, and starts faster without torch.
    import torch

    with warnings.catch_warnings():
        # That Pillow's pixels cannot be written to; nothing writes to them.
        warnings.simplefilter("ignore", UserWarning)
        read = torch.from_numpy(pixels)
    resized = torch.nn.functional.interpolate(
        read.permute(2, 0, 1)[None],
        size=(height, width),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    return resized[0].permute(1, 2, 0).numpy()


@cache
def _candidate_grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of at most ``max_tiles`` tiles, those with fewer tiles first."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
