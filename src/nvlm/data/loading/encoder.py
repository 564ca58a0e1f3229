"""From Energon's samples to batches: conversation, tiles, token ids, packing.

Importing this module imports megatron.energon, which takes two seconds.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
from megatron.energon import (
    Sample,
    SampleDecoder,
    SkipSample,
    TaskEncoder,
    edataclass,
    stateless,
)
from megatron.energon.source_info import SourceInfo
from PIL import Image

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.data.loading.batch import Batch, EncodedSample, collate
from nvlm.data.loading.conversations import conversation_of, images_of
from nvlm.data.loading.shortfall import Shortfall
from nvlm.errors import UserError
from nvlm.model.prompts import Conversation, Template
from nvlm.model.tiling import Tiling, tile_count, tile_image
from nvlm.model.tokens import EncodedConversation, encode_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nvlm.data.loading.params import LoaderParams

# Samples among which packing chooses: more would fill rows better, but hold more tiles in memory.
PACKING_BUFFER = 64
# What Pillow raises, by format and damage; a shard can also hold what preparation refuses.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# So many unusable samples in a row mean a wrong parameter or damaged data, not an odd sample.
MAX_CONSECUTIVE_SKIPPED = 1000
# Far more, since evaluation pictures may lie together: a dataset of nothing else would never end.
MAX_CONSECUTIVE_EXCLUDED = 100_000


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

    A sample that does not fit gets fewer tiles an image, down to one. If that is still too long it
    is skipped, never cut: cutting through an image would leave visual tokens without their tile. An
    image that cannot be decoded is skipped. Each of these is a Shortfall, which the sample carries
    along, or the next one where it is left out: an encoder may live in a process that reads.
    """

    decoder = JsonDecoder()

    def __init__(
        self,
        params: LoaderParams,
        tokenizer: PreTrainedTokenizerFast,
        architecture: Architecture,
        excluded: frozenset[str] = frozenset(),
    ) -> None:
        assert architecture.vision is not None and architecture.language is not None
        self.params = params
        self.tokenizer = tokenizer
        self.excluded = excluded  # DATASET/KEY
        self._excluded = 0  # of them, in a row
        self.vision = architecture.vision
        self.family = architecture.language.family
        self._left_out: list[Shortfall] = []  # since the last sample

    @stateless  # type: ignore[untyped-decorator]
    def encode_sample(self, sample: Sample) -> Row:
        """Render and tokenise the conversation, tile the images."""
        if self.excluded and _key(sample) in self.excluded:
            self._excluded += 1
            if self._excluded >= MAX_CONSECUTIVE_EXCLUDED:
                raise UserError(
                    f"{self._excluded} samples in a row, the last one {_key(sample)}, show "
                    "pictures of evaluation sets: take the dataset out of the blend, or set "
                    "data.overlap.leave_out=false"
                )
            raise SkipSample
        self._excluded = 0
        # Seeded by the sample's place in the stream, which Energon restores: the choice of an
        # answer survives a restart without a random state of its own.
        rng = np.random.default_rng([self.params.seed, self.current_sample_index])
        images = self._decoded(sample)
        template = cast(Template, self.params.template)
        size = images[0].size if images else None
        turns = conversation_of(sample, rng, template, size)
        key = _key(sample)
        encoded, tiling, needed = self._fitting(key, [image.size for image in images], turns)
        tiles = [tile_image(image, self.vision.image_size, tiling) for image in images]
        shortfalls, self._left_out = tuple(self._left_out), []
        if needed > len(encoded):
            shortfalls += (Shortfall(key=key, kind="fewer tiles", tokens=needed),)
        side = self.vision.image_size
        none = np.zeros((0, side, side, 3), dtype=np.uint8)
        joined = tiles[0] if len(tiles) == 1 else np.concatenate([none, *tiles])
        row = EncodedSample(key=key, conversation=encoded, tiles=joined, shortfalls=shortfalls)
        return Row.derive_from(sample, samples=[row])

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

    def _decoded(self, sample: Sample) -> list[Image.Image]:
        """The images of ``sample``; one that cannot be decoded leaves the sample out."""
        images: list[Image.Image] = []
        try:
            images += [Image.open(io.BytesIO(image)) for image in images_of(sample)]
            for image in images:
                image.load()
        except UNDECODABLE as error:
            key = _key(sample)
            self._skip(
                Shortfall(key=key, kind="unreadable", tokens=0),
                f"the image of {key} cannot be decoded: {error}",
            )
        return images

    def _fitting(
        self, key: str, sizes: Sequence[tuple[int, int]], turns: Conversation
    ) -> tuple[EncodedConversation, Tiling, int]:
        """``turns`` over images of ``sizes``, each with as many tiles as the row has room for.

        And the tokens that ``key``, this sample, would have with all its tiles.
        """
        needed = 0
        for max_tiles in range(self.params.max_tiles if sizes else 1, 0, -1):
            tiling = Tiling(max_tiles=max_tiles, thumbnail=self.params.thumbnail)
            encoded = encode_conversation(
                turns,
                self.tokenizer,
                template=cast(Template, self.params.template),
                family=self.family,
                tiles_per_image=[
                    tile_count(width, height, self.vision.image_size, tiling)
                    for width, height in sizes
                ],
                tokens_per_tile=self.vision.tokens_per_tile,
                tile_tags=self.params.tile_tags,
            )
            needed = needed or len(encoded)
            if len(encoded) <= self.params.sequence_length:
                return encoded, tiling, needed
        self._skip(
            Shortfall(key=key, kind="too long", tokens=needed),
            f"data.sequence_length = {self.params.sequence_length} is too short: with a tile an "
            f"image {key} needs {len(encoded)} tokens",
        )

    def _skip(self, shortfall: Shortfall, reason: str) -> NoReturn:
        """Leave the sample out, unless nothing but such samples comes."""
        self._left_out.append(shortfall)
        if len(self._left_out) >= MAX_CONSECUTIVE_SKIPPED:
            raise UserError(f"{MAX_CONSECUTIVE_SKIPPED} samples in a row are unusable: {reason}")
        raise SkipSample


def _key(sample: Sample) -> str:
    """The sample's name: that of its dataset's directory, and its key there."""
    (source, *_) = cast(tuple[SourceInfo, ...], sample.__sources__)
    return f"{source.dataset_path.name}/{sample.__key__}"


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
