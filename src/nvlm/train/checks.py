"""What is wrong with a run, found before any rank starts: no torch, no tokenizer, no tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.errors import UserError

if TYPE_CHECKING:
    from nvlm.data.loading.params import LoaderParams
    from nvlm.train.params import TrainParams


def check_run(params: TrainParams, checkpoint: Path) -> None:
    """Raise UserError if ``checkpoint`` and ``params`` don't go together.

    The checkpoint has both halves and is laid out for the grid, and a row of tokens holds all tiles
    of one image. (That data ranks divide the global batch, TrainParams itself sees to.)
    """
    manifest = read_manifest(checkpoint)
    if manifest.vocabulary is None or manifest.architecture.vision is None:
        raise UserError(f"{checkpoint} is half a model: combine it first")
    if manifest.adapter is not None:
        raise UserError(
            f"{checkpoint} has an adapter that is not folded in, and training goes on from whole "
            f"weights: python -m nvlm.checkpoint merge {checkpoint} OUT"
        )
    laid_out, grid = manifest.grid, params.grid
    if (laid_out.tensor, laid_out.pipeline) != (grid.tensor, grid.pipeline):
        raise UserError(
            f"{checkpoint} is laid out for tensor {laid_out.tensor} x pipeline {laid_out.pipeline},"
            f" and grid asks for {grid.tensor} x {grid.pipeline}: change the layout, or the grid"
        )
    check_sequence(params.data, manifest.architecture)
    if params.sequence_parallel and params.data.sequence_length % grid.tensor:
        raise UserError(
            f"data.sequence_length: {params.data.sequence_length} should be a multiple of the "
            f"{grid.tensor} tensor ranks that share it, or sequence_parallel be false"
        )


def check_sequence(data: LoaderParams, architecture: Architecture) -> int:
    """The most tiles that one image has; UserError if ``data.sequence_length`` can't hold them."""
    assert architecture.vision is not None
    tiles = data.max_tiles + (data.thumbnail and data.max_tiles > 1)
    a_tile = architecture.vision.tokens_per_tile
    tags = tiles if data.tile_tags else 0  # each of them is one token or more
    needed = tiles * a_tile + tags
    if data.sequence_length < needed:
        tagged = f" and {tags} tags" if tags else ""
        raise UserError(
            f"data.sequence_length: {data.sequence_length} tokens cannot hold the tiles of one "
            f"image ({tiles} of {a_tile} tokens{tagged}): make it more than {needed}, the text "
            "comes on top, or lower data.max_tiles"
        )
    return tiles
