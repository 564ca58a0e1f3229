"""A look at what training will read: counts, histograms and a contact sheet of encoded samples.

Everything is drawn from batches that the training loader itself makes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from nvlm.atomic import write_bytes
from nvlm.data.loading.batch import PADDING_SEGMENT, Batch
from nvlm.data.loading.shortfall import dataset_of
from nvlm.data.loading.tally import Tally
from nvlm.model.prompts import tile_tags
from nvlm.model.tokens import IGNORED, TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The sheet, in pixels.
COLUMNS, TILE, TEXT_LINE, MARGIN, LINES, LETTERS_A_LINE = 2, 72, 12, 8, 6, 96


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample taken out of a row again."""

    key: str  # DATASET/KEY
    tiles: NDArray[np.uint8]  # (tiles, 3, H, W)
    tokens: int
    prompt_ids: list[int]  # text only
    answer_ids: list[int]  # what is trained


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the histograms show, a list entry a sample, of ``padding`` a row; and the report."""

    tiles: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    answer_tokens: list[int] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)  # share of a row that is padding
    tally: Tally = field(default_factory=Tally)
    prompts: dict[str, list[int]] = field(default_factory=dict)  # ids of one, by dataset


def samples_of(batch: Batch, tokens_per_tile: int) -> Iterator[Sample]:
    """The samples of ``batch``, row by row."""
    first_tile = 0
    for row in range(len(batch.input_ids)):
        segments = batch.segment_ids[row].numpy()
        for segment in range(1, int(segments.max()) + 1):
            where = segments == segment
            ids = batch.input_ids[row].numpy()[where]
            labels = batch.labels[row].numpy()[where]
            is_text = batch.visual_index[row].numpy()[where] == TEXT
            tiles = int((~is_text).sum()) // tokens_per_tile
            trained = np.flatnonzero(labels != IGNORED)
            prompt = is_text.copy()
            prompt[trained + 1] = False  # a label is that of the position before
            yield Sample(
                key=batch.keys[row][segment - 1],
                tiles=batch.tiles[first_tile : first_tile + tiles].numpy(),
                tokens=len(ids),
                prompt_ids=ids[prompt].tolist(),
                answer_ids=labels[trained].tolist(),
            )
            first_tile += tiles


def inspect(
    loader: Any, batches: int, tokens_per_tile: int, shown: int
) -> tuple[Statistics, list[Sample]]:
    """Statistics of the first ``batches`` batches, and the first ``shown`` samples."""
    statistics = Statistics()
    samples: list[Sample] = []
    for batch in tqdm(islice(loader, batches), total=batches, unit="batch", disable=None):
        padding = (batch.segment_ids == PADDING_SEGMENT).float().mean(dim=1)
        statistics.padding.extend(padding.tolist())
        statistics.tally.add(batch)
        for sample in samples_of(batch, tokens_per_tile):
            statistics.tiles.append(len(sample.tiles))
            statistics.tokens.append(sample.tokens)
            statistics.answer_tokens.append(len(sample.answer_ids))
            statistics.prompts.setdefault(dataset_of(sample.key), sample.prompt_ids)
            if len(samples) < shown:
                samples.append(sample)
    return statistics, samples


def draw_histograms(statistics: Statistics, path: Path) -> None:
    """Four histograms as a PNG file, with the mean of each."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 2).flat
    titles = [
        ("tiles", "tiles a sample, thumbnail included"),
        ("tokens", "tokens a sample, visual ones included"),
        ("answer_tokens", "tokens of an answer"),
        ("padding", "share of padding in a row"),
    ]
    for axis, (name, title) in zip(axes, titles, strict=True):
        values = getattr(statistics, name)
        whole = name == "tiles"
        bins = np.arange(min(values), max(values) + 2) - 0.5 if whole else 30
        axis.hist(values, bins=bins, color="tab:blue", rwidth=0.8 if whole else None)
        axis.set_title(f"{title} (mean {np.mean(values):.3g})", fontsize=10)
    figure.suptitle(f"{len(statistics.tokens)} samples in {len(statistics.padding)} rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # no version: the same bytes everywhere


def draw_contact_sheet(
    samples: list[Sample], tokenizer: PreTrainedTokenizerFast, family: str, path: Path
) -> None:
    """The tiles of ``samples`` under their tags, each with its prompt and answer, as a PNG file."""
    width = 7 * (TILE + 4) + 2 * MARGIN
    height = TILE + TEXT_LINE * (LINES + 3) + 2 * MARGIN
    rows = -(-len(samples) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, sample in enumerate(samples):
        left, top = number % COLUMNS * width + MARGIN, number // COLUMNS * height + MARGIN
        tags = tile_tags(family, len(sample.tiles)) if len(sample.tiles) else []
        for place, (tile, tag) in enumerate(zip(sample.tiles, tags, strict=True)):
            x = left + place * (TILE + 4)
            draw.text((x, top), tag.strip("<>").replace("global_", ""), fill="gray", font_size=9)
            pixels = Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0)))
            sheet.paste(pixels.resize((TILE, TILE)), (x, top + TEXT_LINE))
        y = top + TEXT_LINE + TILE + 4
        for ids, colour in ((sample.prompt_ids, "black"), (sample.answer_ids, "blue")):
            for line in _wrapped(str(tokenizer.decode(ids)))[: LINES - 1]:
                draw.text((left, y), line, fill=colour, font_size=10)
                y += TEXT_LINE
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _wrapped(text: str) -> list[str]:
    flat = text.replace("\n", " | ")
    return [flat[at : at + LETTERS_A_LINE] for at in range(0, len(flat), LETTERS_A_LINE)]
