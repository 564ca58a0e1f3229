"""Parameters of a training stage's data."""

from __future__ import annotations

from dataclasses import dataclass

from nvlm.model.prompts import TEMPLATES
from nvlm.model.tiling import Tiling


@dataclass(frozen=True, kw_only=True)
class LoaderParams:
    """What a training stage reads, and how it becomes rows of tokens."""

    blend: dict[str, float]  # dataset -> weight; a sample is drawn in proportion to the weights
    sequence_length: int  # tokens a row, visual ones included
    packing: bool  # several samples a row; otherwise one and padding
    template: str  # chatml or plain
    max_tiles: int  # without the thumbnail
    thumbnail: bool  # a last tile of the whole image, where there are several
    tile_tags: bool  # a text tag before each tile
    workers: int  # processes that read; 0 = the training process itself
    shuffle_buffer: int  # samples among which the next one is drawn
    seed: int

    def __post_init__(self) -> None:
        if not self.blend or min(self.blend.values()) <= 0:
            raise ValueError("blend: at least one dataset, each with a weight above 0")
        if self.template not in TEMPLATES:
            raise ValueError(f"template: {self.template!r} should be one of {list(TEMPLATES)}")
        if self.sequence_length < 2:
            raise ValueError(f"sequence_length: at least 2, not {self.sequence_length}")
        if self.workers < 0:
            raise ValueError(f"workers: {self.workers} should be 0 or more")
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer: {self.shuffle_buffer} should be 1 or more")
        Tiling(max_tiles=self.max_tiles, thumbnail=self.thumbnail)
