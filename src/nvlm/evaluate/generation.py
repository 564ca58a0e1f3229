"""Batched greedy answers: questions of similar length together, the longest first.

The longest batch comes first so that one too large for memory shows at once, and the time left on
the progress bar only ever shrinks. What is held in memory doesn't grow with the benchmark: images
are opened for their size first, and decoded a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from nvlm.checkpoint.architecture import Architecture
from nvlm.data.batch import EncodedSample
from nvlm.errors import UserError
from nvlm.evaluate.ask import conversation
from nvlm.evaluate.params import AskParams, GenerateParams
from nvlm.evaluate.question import Question
from nvlm.model.nvlm import NVLM
from nvlm.model.prompts import END
from nvlm.model.tiling import Tiling, tile_grid, tile_image
from nvlm.model.tokens import TEXT, EncodedConversation, encode_conversation


class Prompter:
    """Turns questions into what the model reads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        architecture: Architecture,
        params: GenerateParams,
        ask: AskParams,
    ) -> None:
        assert architecture.vision is not None and architecture.language is not None
        self.tokenizer = tokenizer
        self.vision = architecture.vision
        self.language = architecture.language
        self.params = params
        self.ask = ask
        self.tiling = Tiling(max_tiles=params.max_tiles, thumbnail=params.thumbnail)

    def length(self, question: Question) -> int:
        """Tokens of the prompt, without decoding the image.

        Raises UserError if prompt and answer would not fit the decoder.
        """
        with _open_image(question) as image:
            columns, rows = tile_grid(*image.size, self.vision.image_size, self.tiling.max_tiles)
        tiles = columns * rows + (self.tiling.thumbnail and columns * rows > 1)
        length = len(self._encode(question, tiles))
        if length + self.ask.max_new_tokens > self.language.max_positions:
            raise UserError(
                f"question {question.id!r}: a prompt of {length} tokens and an answer of "
                f"{self.ask.max_new_tokens} exceed the decoder's {self.language.max_positions} "
                "positions: lower eval.generate.max_tiles"
            )
        return length

    def encode(self, question: Question) -> EncodedSample:
        """Token ids of the prompt and the image's tiles."""
        with _open_image(question) as image:
            try:
                tiles = tile_image(image, self.vision.image_size, self.tiling)
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{question.image} can't be decoded: {error}") from error
        return EncodedSample(conversation=self._encode(question, len(tiles)), tiles=tiles)

    def _encode(self, question: Question, tiles: int) -> EncodedConversation:
        return encode_conversation(
            conversation(question, self.ask),
            self.tokenizer,
            template="chatml",
            family=self.language.family,
            tiles_per_image=[tiles],
            tokens_per_tile=self.vision.tokens_per_tile,
            tile_tags=self.params.tile_tags,
            generation=True,
        )


def _open_image(question: Question) -> Image.Image:
    try:
        return Image.open(question.image)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{question.image} can't be read: {error}") from error


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


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places in ``lengths``, in batches of neighbours by length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def generate_answers(
    model: NVLM, prompter: Prompter, questions: Sequence[Question], *, progress: bool
) -> list[str]:
    """The model's answers in the order of ``questions``.

    Every rank of the model's tensor-parallel group calls this with the same questions.
    """
    device = next(model.parameters()).device
    stop_ids = stop_tokens(prompter.tokenizer)
    lengths = [
        prompter.length(question)
        for question in tqdm(questions, "prompts", disable=None if progress else True, delay=2)
    ]
    answers = [""] * len(questions)
    with tqdm(
        total=len(questions), desc="answers", unit="question", disable=None if progress else True
    ) as bar:
        for places in batches_by_length(lengths, prompter.params.batch_size):
            batch = left_pad([prompter.encode(questions[place]) for place in places])
            generated = model.generate(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                visual_index=batch.visual_index.to(device),
                tiles=batch.tiles.to(device),
                tiles_per_row=batch.tiles_per_row,
                max_new_tokens=prompter.ask.max_new_tokens,
                stop_ids=stop_ids,
            )
            for place, ids in zip(places, generated.tolist(), strict=True):
                answers[place] = decode(prompter.tokenizer, ids, stop_ids)
            bar.update(len(places))
    return answers


def stop_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """ChatML's end of turn, and the tokenizer's own end of text where that is another token."""
    end = tokenizer.get_added_vocab()[END]
    eos = tokenizer.eos_token_id
    return [end] if eos is None or eos == end else [end, eos]


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """The text of ``ids`` up to the first stop token, without white space at its ends."""
    length = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return str(tokenizer.decode(list(ids[:length]), skip_special_tokens=True)).strip()
