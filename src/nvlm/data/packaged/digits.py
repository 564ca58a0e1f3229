"""scikit-learn's scans of handwritten digits, and strips of several of them to read.

1,797 scans of 8x8 pixels, 17 levels (0 = paper, 16 = ink). Every fifth scan is held out for the
tests, before anything is composed of them: a strip holds scans of one split only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "test"]

INK = 16  # the highest level of a scan
CELL = 48  # pixels: height of a strip, and its width a digit, so that n digits make n square tiles
# Glyph sides in pixels. Below CELL, so that position varies and no digit touches its neighbour.
SMALLEST_GLYPH, LARGEST_GLYPH = 36, 46


@dataclass(frozen=True, kw_only=True)
class Scans:
    """The scans of one split."""

    images: NDArray[np.uint8]  # (N, 8, 8), 0..INK
    labels: NDArray[np.int64]  # (N,), 0..9
    indices: NDArray[np.int64]  # (N,), positions in scikit-learn's published order


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Digits side by side in one RGB picture."""

    image: Image.Image  # CELL high, CELL x digits wide
    text: str  # the digits from left to right, without spaces
    indices: tuple[int, ...]  # of the scans used


def is_held_out(index: int) -> bool:
    """Whether scan ``index`` belongs to the tests."""
    return index % 5 == 4


@cache
def scans(split: Split) -> Scans:
    """The scans of ``split``: 1,438 for training, 359 held out."""
    from sklearn.datasets import load_digits

    published = load_digits()
    held_out = np.array([is_held_out(index) for index in range(len(published.target))])
    chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
    return Scans(
        images=published.images[chosen].astype(np.uint8),
        labels=published.target[chosen].astype(np.int64),
        indices=chosen.astype(np.int64),
    )


def strip(rng: np.random.Generator, source: Scans, digits: int) -> Strip:
    """Compose ``digits`` random scans of ``source``: size, place and intensity vary a little."""
    positions = rng.integers(len(source.labels), size=digits)
    canvas = Image.new("L", (CELL * digits, CELL))
    for cell, position in enumerate(positions):
        glyph = _glyph(rng, source.images[position])
        slack = CELL - glyph.width
        left, top = (int(value) for value in rng.integers(slack + 1, size=2))
        canvas.paste(glyph, (CELL * cell + left, top))
    return Strip(
        image=canvas.convert("RGB"),
        text="".join(str(source.labels[position]) for position in positions),
        indices=tuple(int(source.indices[position]) for position in positions),
    )


def _glyph(rng: np.random.Generator, scan: NDArray[np.uint8]) -> Image.Image:
    """One scan (8, 8), enlarged to a random side and inked with a random strength."""
    side = int(rng.integers(SMALLEST_GLYPH, LARGEST_GLYPH + 1))
    brightness = rng.uniform(0.7, 1.0) * 255 / INK
    pixels = np.round(scan * brightness).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
