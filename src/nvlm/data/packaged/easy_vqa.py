"""The easy-VQA package: 5,000 images of 64x64 pixels, 48,248 questions, 13 answers, two splits.

The split is the package's own, and the only way to a picture or a question goes through its name.
Training and test pictures are numbered from 0 independently: an image id means nothing without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image

Split = Literal["train", "test"]

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

# Questions that presuppose half of the description: "what is the blue shape?".
_NAMED_COLOUR = re.compile(r"what is the (\w+) shape\?")
_NAMED_SHAPE = re.compile(rf"what (?:color is|is the color of) the ({'|'.join(SHAPES)})\?")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; ``image_id`` counts within the split it was asked for."""

    image_id: int
    question: str  # as published: lower case, ends with "?"
    answer: str  # one of 13 words


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a picture shows: one shape of one colour."""

    colour: str
    shape: str

    @property
    def captions(self) -> tuple[str, ...]:
        """Five ways to say it, the plainest first."""
        return (
            f"a {self.colour} {self.shape}",
            f"a {self.shape} in {self.colour}",
            f"one {self.colour} {self.shape}",
            f"the image shows a {self.colour} {self.shape}",
            f"there is a {self.colour} {self.shape} in the image",
        )


@cache
def questions(split: Split) -> list[Question]:
    """All questions of ``split`` in the published order."""
    import easy_vqa

    texts, answers, image_ids = (
        easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    )
    return [
        Question(image_id=image_id, question=text, answer=answer)
        for text, answer, image_id in zip(texts, answers, image_ids, strict=True)
    ]


@cache
def image_paths(split: Split) -> dict[int, Path]:
    """Image id -> PNG file of every picture of ``split``, in the order of the ids."""
    import easy_vqa

    paths = (
        easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    )
    return {image_id: Path(paths[image_id]) for image_id in sorted(paths)}


def image(split: Split, image_id: int) -> Image.Image:
    """The RGB picture, 64x64 pixels."""
    with Image.open(image_paths(split)[image_id]) as opened:
        return opened.convert("RGB")


@cache
def descriptions(split: Split) -> dict[int, Description]:
    """Image id -> colour and shape, for the four pictures in five whose questions tell both.

    Read from the questions about colour or shape and their answers, since the package publishes no
    labels: every word of a training description comes from a training question.
    """
    colours: dict[int, str] = {}
    shapes: dict[int, str] = {}
    for asked in questions(split):
        if asked.answer in COLOURS:
            colours[asked.image_id] = asked.answer
        if asked.answer in SHAPES:
            shapes[asked.image_id] = asked.answer
        if named := _NAMED_COLOUR.fullmatch(asked.question):
            colours[asked.image_id] = named[1]
        if named := _NAMED_SHAPE.fullmatch(asked.question):
            shapes[asked.image_id] = named[1]
    return {
        image_id: Description(colour=colours[image_id], shape=shapes[image_id])
        for image_id in sorted(colours.keys() & shapes.keys())
    }
