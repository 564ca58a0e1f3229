"""From questions to what the model reads: token ids and tiles, one by one and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers import PreTrainedTokenizerFast

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.data.loading.batch import EncodedSample
from nvlm.errors import UserError
from nvlm.evaluate.answering.ask import BLANK, conversation, images, max_tiles_each
from nvlm.evaluate.params import AskParams, GenerateParams
from nvlm.evaluate.question import Question
from nvlm.model.tiling import Tiling, tile_grid, tile_image
from nvlm.model.tokens import TEXT, EncodedConversation, encode_conversation

IMAGES_KEPT = 8  # last ones decoded: questions of one image follow one another
_ORIENTATION = 0x0112  # EXIF tag
_ON_ITS_SIDE = range(5, 9)  # its values that swap width and height


class Prompter:
    """Turns questions into what the model reads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        architecture: Architecture,
        params: GenerateParams,
        ask: AskParams,
        *,
        blank: bool = False,
    ) -> None:
        """With ``blank`` every image is an even grey one of the same size."""
        assert architecture.vision is not None and architecture.language is not None
        self.tokenizer = tokenizer
        self.vision = architecture.vision
        self.language = architecture.language
        self.params = params
        self.ask = ask
        self.blank = blank
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._tiles = lru_cache(IMAGES_KEPT)(self._read_tiles)

    def grids(self, question: Question) -> tuple[tuple[int, int], ...]:
        """Columns and rows of tiles of each image, without decoding them."""
        shown = images(question, self.ask)
        most = max_tiles_each(self.params, len(shown))
        sizes = [self._size(path) for path in shown]
        return tuple(tile_grid(*size, self.vision.image_size, most) for size in sizes)

    def length(self, question: Question) -> int:
        """Tokens of the prompt, without decoding images.

        Raises UserError if prompt and answer would not fit the decoder.
        """
        counts = [columns * rows for columns, rows in self.grids(question)]
        tiles = [count + (self.params.thumbnail and count > 1) for count in counts]
        length = len(self._encode(question, tiles))
        if length + self.ask.max_new_tokens > self.language.max_positions:
            raise UserError(
                f"question {question.id!r}: a prompt of {length} tokens and an answer of "
                f"{self.ask.max_new_tokens} exceed the decoder's {self.language.max_positions} "
                "positions: lower eval.generate.max_tiles"
            )
        return length

    def encode(self, question: Question) -> EncodedSample:
        """Token ids of the prompt and the images' tiles."""
        shown = images(question, self.ask)
        tiles = [self._tiles(path, self._tiling(len(shown)), self.blank) for path in shown]
        encoded = self._encode(question, [len(of_image) for of_image in tiles])
        return EncodedSample(
            key=str(question.id), conversation=encoded, tiles=np.concatenate(tiles)
        )

    def _size(self, path: Path) -> tuple[int, int]:
        """Width and height, upright; kept, since benchmarks ask several questions an image."""
        if path not in self._sizes:
            with _open_image(path) as image:
                width, height = image.size
                turned = _orientation(image, path) in _ON_ITS_SIDE
                self._sizes[path] = (height, width) if turned else (width, height)
        return self._sizes[path]

    def _read_tiles(self, path: Path, tiling: Tiling, blank: bool) -> NDArray[np.uint8]:
        with _open_image(path) as image:
            try:
                shown = _upright(image, path)
                if blank:
                    shown = Image.new("RGB", shown.size, (BLANK,) * 3)
                return tile_image(shown, self.vision.image_size, tiling)
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{path} can't be decoded: {error}") from error

    def _tiling(self, shown: int) -> Tiling:
        most = max_tiles_each(self.params, shown)
        return Tiling(max_tiles=most, thumbnail=self.params.thumbnail)

    def _encode(self, question: Question, tiles: Sequence[int]) -> EncodedConversation:
        return encode_conversation(
            conversation(question, self.ask),
            self.tokenizer,
            template="chatml",
            family=self.language.family,
            tiles_per_image=tiles,
            tokens_per_tile=self.vision.tokens_per_tile,
            tile_tags=self.params.tile_tags,
            generation=True,
        )


def _upright(image: Image.Image, path: Path) -> Image.Image:
    """``image`` turned as its EXIF says, and then RGB, as images that are trained on are stored."""
    if _orientation(image, path) == 1:
        return image
    return ImageOps.exif_transpose(image).convert("RGB")


def _orientation(image: Image.Image, path: Path) -> int:
    """EXIF's number for how ``image`` is still turned, 1 if it isn't."""
    # Pillow turns TIFF files itself. Asking a PNG for EXIF decodes it: only one with the chunk is.
    if image.format == "TIFF" or (image.format == "PNG" and b"eXIf" not in path.read_bytes()):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1)) or 1
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} can't be decoded: {error}") from error


def _open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} can't be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts of one batch, padded on the left: B rows, S positions, N tiles in row order."""

    input_ids: torch.Tensor  # int64 (B, S)
    attention_mask: torch.Tensor  # int64 (B, S), 1 where a token is
    visual_index: torch.Tensor  # int64 (B, S), into the row's own visual tokens; TEXT elsewhere
    tiles: torch.Tensor  # uint8 (N, 3, H, W)
    tiles_per_row: torch.Tensor  # int64 (B,)


def left_pad(samples: Sequence[EncodedSample]) -> PromptBatch:
    """Prompts end together, so that all answers begin at the same position."""
    shape = (len(samples), max(len(sample.conversation) for sample in samples))
    input_ids = np.zeros(shape, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    visual_index = np.full(shape, TEXT, dtype=np.int64)
    for row, sample in enumerate(samples):
        start = shape[1] - len(sample.conversation)
        input_ids[row, start:] = sample.conversation.input_ids
        attention_mask[row, start:] = 1
        visual_index[row, start:] = sample.conversation.visual_index
    tiles = np.concatenate([sample.tiles for sample in samples]).transpose(0, 3, 1, 2)
    return PromptBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        visual_index=torch.from_numpy(visual_index),
        tiles=torch.from_numpy(np.ascontiguousarray(tiles)),
        tiles_per_row=torch.tensor([len(sample.tiles) for sample in samples]),
    )
