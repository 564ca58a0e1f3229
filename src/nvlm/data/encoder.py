"""From Energon's samples to batches: conversation, tiles, token ids, packing.

Importing this module imports megatron.energon, which takes two seconds.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from megatron.energon import (
    CaptioningSample,
    MultiChoiceVQASample,
    Sample,
    SampleDecoder,
    SkipSample,
    TaskEncoder,
    VQASample,
    edataclass,
    stateless,
)
from PIL import Image

from nvlm.checkpoint.architecture import Architecture
from nvlm.data.batch import Batch, EncodedSample, collate
from nvlm.errors import UserError
from nvlm.model.prompts import (
    DESCRIBE,
    IMAGE,
    LETTERS,
    SYSTEM,
    Conversation,
    Template,
    Turn,
    multiple_choice,
)
from nvlm.model.tiling import Tiling, tile_image
from nvlm.model.tokens import encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nvlm.data.loader import LoaderParams

# Samples among which packing chooses: more would fill rows better, but hold more tiles in memory.
PACKING_BUFFER = 64
# So many samples in a row that do not fit mean a wrong sequence length, not an odd sample.
MAX_CONSECUTIVE_TOO_LONG = 1000


class JsonDecoder(SampleDecoder):
    """Decodes the JSON parts of a stored sample, and nothing else.

    Energon's own decoder would convert images to RGB before they are resized, where tiling does so
    after, and would unpickle parts that are called ``.pkl``.
    """

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Replace the bytes of each JSON part by what they say."""
        return {part: json.loads(data) if part == "json" else data for part, data in sample.items()}


@edataclass
class Row(Sample):
    """The samples that share a row; Energon restores them through the keys it inherits."""

    samples: list[EncodedSample]


class NVLMEncoder(TaskEncoder[Any, Row, Batch, Batch]):
    """Energon's hooks, from a stored sample to a batch of rows of ``sequence_length`` tokens.

    A sample that does not fit is skipped and counted in ``too_long``, never cut: cutting through
    an image would leave visual tokens without their tile.
    """

    decoder = JsonDecoder()

    def __init__(
        self,
        params: LoaderParams,
        tokenizer: PreTrainedTokenizerFast,
        architecture: Architecture,
    ) -> None:
        assert architecture.vision is not None and architecture.language is not None
        self.params = params
        self.tokenizer = tokenizer
        self.vision = architecture.vision
        self.family = architecture.language.family
        self.tiling = Tiling(max_tiles=params.max_tiles, thumbnail=params.thumbnail)
        self.too_long = 0
        self._consecutive_too_long = 0

    @stateless  # type: ignore[untyped-decorator]
    def encode_sample(self, sample: Sample) -> Row:
        """Tile the image, render and tokenise the conversation."""
        # Seeded by the sample's place in the stream, which Energon restores: the choice of an
        # answer survives a restart without a random state of its own.
        rng = np.random.default_rng([self.params.seed, self.current_sample_index])
        conversation = self._conversation(sample, rng)
        with Image.open(io.BytesIO(sample.image)) as image:
            tiles = tile_image(image, self.vision.image_size, self.tiling)
        encoded = encode_conversation(
            conversation,
            self.tokenizer,
            template=cast(Template, self.params.template),
            family=self.family,
            tiles_per_image=[len(tiles)],
            tokens_per_tile=self.vision.tokens_per_tile,
            tile_tags=self.params.tile_tags,
        )
        self._check_length(len(encoded))
        row = [EncodedSample(conversation=encoded, tiles=tiles)]
        return Row.derive_from(sample, samples=row)

    def select_samples_to_pack(self, samples: list[Row]) -> list[list[Row]]:
        """Share out the buffer over rows, greedily: the longest sample goes where it just fits."""
        return pack(samples, [len(row.samples[0]) for row in samples], self.params.sequence_length)

    @stateless  # type: ignore[untyped-decorator]
    def pack_selected_samples(self, samples: list[Row]) -> Row:
        """One row of ``samples``."""
        return Row.derive_from(
            samples[0], samples=[encoded for row in samples for encoded in row.samples]
        )

    @stateless  # type: ignore[untyped-decorator]
    def batch(self, samples: list[Row]) -> Batch:
        """The rows as tensors."""
        return collate([row.samples for row in samples], self.params.sequence_length)

    def _conversation(self, sample: Sample, rng: np.random.Generator) -> Conversation:
        """The turns of ``sample``; only ChatML has a system turn (the paper's Figures 11, 12)."""
        question, answer = _question_and_answer(sample, rng)
        turns = [
            Turn(role="user", text=f"{IMAGE}\n{_without_image(question)}"),
            Turn(role="assistant", text=answer),
        ]
        if self.params.template == "chatml":
            turns.insert(0, Turn(role="system", text=SYSTEM))
        return turns

    def _check_length(self, length: int) -> None:
        if length <= self.params.sequence_length:
            self._consecutive_too_long = 0
            return
        self.too_long += 1
        self._consecutive_too_long += 1
        if self._consecutive_too_long >= MAX_CONSECUTIVE_TOO_LONG:
            raise UserError(
                f"data.sequence_length: {self.params.sequence_length} tokens hold none of the last "
                f"{MAX_CONSECUTIVE_TOO_LONG} samples: the last one needs {length}"
            )
        raise SkipSample


def pack(samples: Sequence[Any], lengths: Sequence[int], capacity: int) -> list[list[Any]]:
    """Split ``samples`` into lists of at most ``capacity`` in total length (best fit, decreasing).

    A sample goes into the fullest row that has room for it. Rows, and samples in a row, come in the
    order of arrival: in the order of opening, all long samples would share the first batches. Every
    length must be at most ``capacity``.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(samples)), key=lambda index: (-lengths[index], index)):
        fitting = [row for row, free in enumerate(room) if free >= lengths[index]]
        if fitting:
            row = min(fitting, key=lambda row: room[row])
        else:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    in_order = sorted(sorted(row) for row in rows)
    return [[samples[index] for index in row] for row in in_order]


def _question_and_answer(sample: Sample, rng: np.random.Generator) -> tuple[str, str]:
    if isinstance(sample, CaptioningSample):
        return DESCRIBE, sample.caption
    if isinstance(sample, MultiChoiceVQASample):
        question = multiple_choice(sample.context, sample.choices)
        return question, LETTERS[sample.correct_choice_idx]
    if isinstance(sample, VQASample):
        return sample.context, sample.answers[int(rng.integers(len(sample.answers)))]
    raise UserError(f"{type(sample).__name__} cannot be trained on: see nvlm/data/records.py")


def _without_image(question: str) -> str:
    """``question`` without the marks of images: a sample has one image, and it comes first."""
    return question.replace(IMAGE, "").lstrip("\n")
