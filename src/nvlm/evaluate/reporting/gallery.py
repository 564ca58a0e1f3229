"""A sheet of examples to look at: image with its tiles, question, answer, references, verdict.

PNG without metadata, drawn with Pillow's own font: the same answers give the same bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

from PIL import Image, ImageDraw, ImageFont, ImageOps

from nvlm.atomic import write_bytes
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.question import Question
from nvlm.evaluate.verdict import Verdict

EXAMPLES = 8  # of each kind
COLUMNS = 4
CARD_WIDTH, CARD_HEIGHT, MARGIN = 280, 318, 10  # pixels
IMAGE_HEIGHT = 150
TILE_EDGE = "#00a0ff"
FONT_SIZE, LINE_HEIGHT, LINE_LENGTH = 13, 16, 38  # pixels, pixels, characters
COLOURS = {"right": "#1a7f37", "wrong": "#b42318", "unparsable": "#8a5a00"}


def kind_of(verdict: Verdict, best: float) -> str:
    """Right, wrong or unparsable; right is at least half of ``best``, for graded scores."""
    if verdict.unparsable:
        return "unparsable"
    return "right" if verdict.score > 0 and verdict.score >= best / 2 else "wrong"


def write_gallery(
    path: Path,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    verdicts: Sequence[Verdict],
) -> None:
    """Draw up to ``EXAMPLES`` of each kind, spread evenly over the questions, to ``path``."""
    best = max(1.0, *(verdict.score for verdict in verdicts))
    kinds = [kind_of(verdict, best) for verdict in verdicts]
    chosen = [
        place
        for kind in COLOURS
        for place in _spread([place for place, other in enumerate(kinds) if other == kind])
    ]
    rows = -(-len(chosen) // COLUMNS)
    size = (COLUMNS * CARD_WIDTH + MARGIN, rows * CARD_HEIGHT + MARGIN)
    sheet = Image.new("RGB", size, "white")
    for position, place in enumerate(chosen):
        row, column = divmod(position, COLUMNS)
        card = _card(questions[place], answers[place], verdicts[place], kinds[place])
        sheet.paste(card, (column * CARD_WIDTH + MARGIN, row * CARD_HEIGHT + MARGIN))
    png = io.BytesIO()
    sheet.save(png, "PNG")
    write_bytes(path, png.getvalue())


def _spread(places: Sequence[int]) -> list[int]:
    """At most ``EXAMPLES`` of ``places``, evenly spaced."""
    count = min(EXAMPLES, len(places))
    return [places[index * len(places) // count] for index in range(count)]


def _card(question: Question, answer: Answer, verdict: Verdict, kind: str) -> Image.Image:
    """One example, framed in the colour of its kind."""
    card = Image.new("RGB", (CARD_WIDTH - MARGIN, CARD_HEIGHT - MARGIN), "#f6f8fa")
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, card.width - 1, card.height - 1), outline=COLOURS[kind], width=3)
    grid = answer.grids[0] if answer.grids else (1, 1)
    picture = _picture(question.images[0], card.width - 2 * MARGIN, grid)
    card.paste(picture, ((card.width - picture.width) // 2, MARGIN))
    tiles = grid[0] * grid[1]
    shown = f" ({tiles} tiles)" if tiles > 1 else ""
    asked = question.text or "(describe the image)"
    options = ", ".join(map("{} {}".format, ascii_uppercase, question.choices))
    references = ", ".join(dict.fromkeys(question.references))
    lines = [
        *_wrap(f"Q: {asked}", 2),
        *(_wrap(f"of: {options}", 1) if options else []),
        *_wrap(f"answer: {answer.text!r}", 2),
        *_wrap(f"truth: {references}", 2),
        f"{kind}: {verdict.score:.2f}{shown}",
    ]
    font = ImageFont.load_default(FONT_SIZE)
    top = IMAGE_HEIGHT + 2 * MARGIN
    for number, line in enumerate(lines):
        colour = COLOURS[kind] if number == len(lines) - 1 else "black"
        draw.text((MARGIN, top + number * LINE_HEIGHT), line, fill=colour, font=font)
    return card


def _picture(path: Path, width: int, grid: tuple[int, int]) -> Image.Image:
    """The image as large as the card has room for, cut by lines into its tiles."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    scale = min(width / picture.width, IMAGE_HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    columns, rows = grid
    for column in range(1, columns):
        left = column * picture.width // columns
        draw.line((left, 0, left, picture.height), fill=TILE_EDGE)
    for row in range(1, rows):
        top = row * picture.height // rows
        draw.line((0, top, picture.width, top), fill=TILE_EDGE)
    return picture


def _wrap(text: str, most: int) -> list[str]:
    """``text`` in at most ``most`` lines, cut with an ellipsis."""
    return textwrap.wrap(text, LINE_LENGTH, max_lines=most, placeholder=" ...")
