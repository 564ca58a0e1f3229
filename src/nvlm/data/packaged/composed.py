"""Training records composed of real images that two packages bring along.

Each source is an endless generator, or one as long as the package's list; a function of its random
numbers, and made of the training split only.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from nvlm.data.packaged import digits, easy_vqa
from nvlm.data.records import Caption, Choice, Provenance, Question, Record
from nvlm.model.prompts import READ_ANSWER, SHORT_ANSWER

Split = easy_vqa.Split

# What is asked of a strip of digits.
READ_QUESTIONS = (
    "what number is written in the image?",
    "what number does the image show?",
    "which digits are in the image?",
    "what is written here?",
)
MAX_DIGITS = 4
CHOICES = 4  # options of a question, where there are as many answers


def strip_record(rng: np.random.Generator, split: Split, *, fewest: int, suffix: str) -> Record:
    """A strip of ``fewest`` to 4 digits, and a question (with ``suffix``) for the number on it."""
    count = int(rng.integers(fewest, MAX_DIGITS + 1))
    strip = digits.strip(rng, digits.scans(split), count)
    question = READ_QUESTIONS[int(rng.integers(len(READ_QUESTIONS)))]
    return Record(
        images=(encode_png(strip.image),),
        content=Question(question=question + suffix, answers=[strip.text]),
        provenance=Provenance(source="digits", split=split, indices=strip.indices),
    )


def choice_record(rng: np.random.Generator, split: Split) -> Record:
    """A multiple-choice question for a picture's colour or shape, or for a digit."""
    kind = rng.choice(["colour", "shape", "digit"])
    if kind == "digit":
        strip = digits.strip(rng, digits.scans(split), 1)
        question, answer, answers = "which digit is in the image?", strip.text, "0123456789"
        return Record(
            images=(encode_png(strip.image),),
            content=_choice(rng, question, answer, tuple(answers)),
            provenance=Provenance(source="digits", split=split, indices=strip.indices),
        )
    descriptions = easy_vqa.descriptions(split)
    image_id = int(rng.choice(list(descriptions)))
    shown = descriptions[image_id]
    if kind == "colour":
        content = _choice(rng, "what color is the shape?", shown.colour, easy_vqa.COLOURS)
    else:
        content = _choice(rng, "what shape is in the image?", shown.shape, easy_vqa.SHAPES)
    return Record(
        images=(easy_vqa.image_paths(split)[image_id].read_bytes(),),
        content=content,
        provenance=Provenance(source="easy_vqa", split=split, indices=(image_id,)),
    )


def encode_png(image: Image.Image) -> bytes:
    """``image`` as a PNG file, packed fast rather than small."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _choice(
    rng: np.random.Generator, question: str, answer: str, answers: tuple[str, ...]
) -> Choice:
    """``answer`` among up to three others of ``answers``, in alphabetical order.

    Which others is random, so the letter has to be read off the options; in random order too, that
    is more than the small models learn in the minutes they have.
    """
    others = [other for other in answers if other != answer]
    wrong = rng.permutation(others)[: CHOICES - 1]
    choices = sorted([answer, *map(str, wrong)])
    return Choice(question=question, choices=choices, correct=choices.index(answer))


def _shape_captions(rng: np.random.Generator, *, wordings: int) -> Iterator[Record]:
    """Each described picture in turn, in random order, with one of the first ``wordings``."""
    descriptions = easy_vqa.descriptions("train")
    while True:
        for image_id in rng.permutation(list(descriptions)):
            captions = descriptions[image_id].captions[:wordings]
            yield Record(
                images=(easy_vqa.image_paths("train")[image_id].read_bytes(),),
                content=Caption(caption=captions[int(rng.integers(len(captions)))]),
                provenance=Provenance(source="easy_vqa", split="train", indices=(int(image_id),)),
            )


def _shape_questions(rng: np.random.Generator) -> Iterator[Record]:
    """The package's own training questions in random order, with VQAv2's instruction."""
    questions = easy_vqa.questions("train")
    for position in rng.permutation(len(questions)):
        asked = questions[position]
        yield Record(
            images=(easy_vqa.image_paths("train")[asked.image_id].read_bytes(),),
            content=Question(question=asked.question + SHORT_ANSWER, answers=[asked.answer]),
            provenance=Provenance(source="easy_vqa", split="train", indices=(asked.image_id,)),
        )


def _digit_strips(rng: np.random.Generator, *, fewest: int, suffix: str) -> Iterator[Record]:
    while True:
        yield strip_record(rng, "train", fewest=fewest, suffix=suffix)


def _choices(rng: np.random.Generator) -> Iterator[Record]:
    while True:
        yield choice_record(rng, "train")


# What conf/data can name as a source of real images that packages bring along.
PACKAGED: dict[str, Callable[[np.random.Generator], Iterator[Record]]] = {
    "shape_captions": lambda rng: _shape_captions(rng, wordings=1),
    "shape_captions_varied": lambda rng: _shape_captions(rng, wordings=5),
    "shape_questions": _shape_questions,
    "digit_text": lambda rng: _digit_strips(rng, fewest=1, suffix=""),
    "digit_questions": lambda rng: _digit_strips(rng, fewest=2, suffix=READ_ANSWER),
    "choices": _choices,
}
