"""Grids against a table worked by hand, tiles against pictures whose every tile is known."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from nvlm.model.tiling import Tiling, tile_grid, tile_image

# The aspect ratios of section 4.1 of the paper, columns:rows, at most six tiles.
PAPER_RATIOS = [
    *[(1, rows) for rows in range(1, 7)],
    *[(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 1), (5, 1), (6, 1)],
]


@pytest.mark.parametrize(
    ("width", "height", "max_tiles", "grid"),
    [
        (448, 448, 6, (1, 1)),  # 2x2 is as close, but needs more than 2 tiles' area
        (1000, 1000, 6, (2, 2)),  # 1,000,000 pixels > half of 2x2 tiles = 401,408
        (633, 634, 6, (1, 1)),  # 401,322 pixels: just not; 1:1 is closest to 0.998
        (634, 634, 6, (2, 2)),  # 401,956 pixels: just
        (640, 480, 6, (3, 2)),  # 1.333 is 0.167 from 3:2 and 0.333 from 1:1
        (640, 480, 4, (1, 1)),  # no 3:2 with four tiles; 2:1 is 0.667 away
        (480, 640, 6, (2, 3)),
        (1920, 1080, 6, (2, 1)),  # 1.778 is 0.222 from 2:1, 0.278 from 3:2
        (560, 448, 6, (1, 1)),  # 1.25 is halfway between 1:1 and 3:2; the picture is small
        (1250, 1000, 6, (3, 2)),  # halfway again, and more pixels than three tiles
        (700, 560, 6, (1, 1)),  # 392,000 pixels: below half of 2x2, below half of 3x2
        (800, 640, 6, (2, 2)),  # 512,000 pixels: above half of 2x2, below half of 3x2 (602,112)
        (10_000, 100, 6, (6, 1)),
        (100, 10_000, 6, (1, 6)),
        (10_000, 100, 1, (1, 1)),
        (2016, 448, 12, (5, 1)),  # 4.5 is halfway between 4:1 and 5:1; 903,168 > half of 5 tiles
        (900, 200, 12, (4, 1)),  # halfway with few pixels: the first of the two
    ],
)
def test_grid(width, height, max_tiles, grid):
    assert tile_grid(width, height, 448, max_tiles) == grid


@pytest.mark.parametrize(("columns", "rows"), PAPER_RATIOS)
def test_each_ratio_of_the_paper_is_a_grid(columns, rows):
    assert tile_grid(columns * 448, rows * 448, 448, 6) == (columns, rows)


def test_no_other_grid_is_ever_chosen():
    grids = {
        tile_grid(width, height, 448, 6)
        for width in range(100, 4000, 130)
        for height in range(100, 4000, 130)
    }
    assert grids == set(PAPER_RATIOS)


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_strips_of_digits_have_a_tile_a_digit(digits):
    assert tile_grid(48 * digits, 48, 48, 6) == (digits, 1)


def checkerboard(columns, rows, size):
    """A picture in which each tile has one colour of its own, and those colours (tiles, 3)."""
    colours = np.array(
        [[10 + 40 * tile, 200 - 30 * tile, 7 * tile] for tile in range(columns * rows)], np.uint8
    )
    grid = colours.reshape(rows, columns, 3)
    return Image.fromarray(grid.repeat(size, axis=0).repeat(size, axis=1)), colours


@pytest.mark.parametrize(("columns", "rows"), [(3, 2), (2, 3), (5, 1), (2, 2)])
def test_tiles_go_row_by_row_and_the_thumbnail_comes_last(columns, rows):
    image, colours = checkerboard(columns, rows, 32)
    tiles = tile_image(image, 32, Tiling(max_tiles=6, thumbnail=True))
    assert tiles.shape == (columns * rows + 1, 32, 32, 3)
    assert tiles.dtype == np.uint8
    for tile, colour in zip(tiles[:-1], colours, strict=True):
        assert (tile == colour).all()
    thumbnail = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (tiles[-1] == thumbnail).all()


def test_thumbnail_is_optional_and_a_single_tile_has_none():
    image, _ = checkerboard(2, 1, 32)
    assert len(tile_image(image, 32, Tiling(max_tiles=6, thumbnail=False))) == 2
    assert len(tile_image(image, 32, Tiling(max_tiles=1, thumbnail=True))) == 1
    square, _ = checkerboard(1, 1, 32)
    assert len(tile_image(square, 32, Tiling(max_tiles=6, thumbnail=True))) == 1


@pytest.mark.parametrize("mode", ["P", "1"])
def test_palette_images_are_resized_before_conversion(mode):
    # Nearest neighbour invents no colour; bicubic on RGB would.
    noise = np.random.default_rng(0).integers(0, 2, (37, 41), dtype=np.uint8) * 255
    image = Image.fromarray(noise).convert(mode)
    tiles = tile_image(image, 32, Tiling(max_tiles=1, thumbnail=False))
    assert set(np.unique(tiles)) == {0, 255}
    converted_first = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert len(np.unique(np.asarray(converted_first))) > 2


def test_grayscale_and_alpha_become_rgb():
    for mode in ("L", "LA", "RGBA", "CMYK", "I;16"):
        image = Image.new(mode, (60, 50))
        assert tile_image(image, 32, Tiling(max_tiles=1, thumbnail=False)).shape == (1, 32, 32, 3)


def test_no_tiles_is_refused():
    with pytest.raises(ValueError, match="max_tiles"):
        Tiling(max_tiles=0, thumbnail=True)


def internvl_tiles(image, size, columns, rows):
    """InternVL's published procedure: one resize, a crop and a bicubic resize per tile (Pillow)."""
    grid = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    boxes = [(c * size, r * size) for r in range(rows) for c in range(columns)]
    tiles = [grid.crop((left, top, left + size, top + size)) for left, top in boxes]
    if len(tiles) > 1:
        tiles.append(image)
    return np.stack([np.asarray(t.resize((size, size), Image.Resampling.BICUBIC)) for t in tiles])


@pytest.mark.parametrize("picture", ["photo", "noise", "stripes"])
@pytest.mark.parametrize(
    ("width", "height"), [(300, 225), (512, 384), (1024, 768), (700, 1500), (90, 800), (1344, 896)]
)
def test_pixels_are_within_one_level_of_internvl(picture, width, height):
    if picture == "photo":
        image = Image.fromarray(load_sample_image("china.jpg")).resize((width, height))
    elif picture == "noise":
        pixels = np.random.default_rng(0).integers(0, 2, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels * 255)
    else:
        ramp = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3)
        image = Image.fromarray(((ramp * 7919) // 64 % 256).astype(np.uint8))
    columns, rows = tile_grid(width, height, 224, 6)
    tiles = tile_image(image, 224, Tiling(max_tiles=6, thumbnail=True))
    expected = internvl_tiles(image, 224, columns, rows)
    difference = np.abs(tiles.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05
