"""Training records: images, what is said about them, and where they come from.

A record is what a source yields and what a shard stores; its content is one of Energon's sample
types. Every rule of what makes a usable record is here, in the contents' constructors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from nvlm.model.prompts import IMAGE, LETTERS

Speaker = Literal["human", "gpt"]
Box = tuple[float, float, float, float]  # left, top, width, height


class BadRecordError(ValueError):
    """A record that cannot be trained on: it is left out, counted and listed, with this reason."""


class ImageSource(Protocol):
    """An image that the process which writes its shard will read."""

    @property
    def name(self) -> str:
        """What the publisher calls it."""
        ...

    def read(self) -> bytes:
        """The encoded image; raises BadRecordError if it cannot be had."""
        ...


@dataclass(frozen=True, kw_only=True)
class Caption:
    """An image's description: Energon's CaptioningSample."""

    sample_type: ClassVar[str] = "CaptioningSample"
    field_map: ClassVar[dict[str, str]] = {"caption": "json[caption]"}

    caption: str

    def __post_init__(self) -> None:
        _check_answers(caption=self.caption)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its accepted answers, one of which is drawn in training: VQASample."""

    sample_type: ClassVar[str] = "VQASample"
    field_map: ClassVar[dict[str, str]] = {
        "context": "json[question]",
        "answers": "json[answers]",
        "answer_weights": "json[weights]",
    }

    question: str
    answers: Sequence[str]
    weights: Sequence[float] = ()  # chances of the answers, up to a factor; none = equal ones

    def __post_init__(self) -> None:
        _check_texts(question=self.question)
        if not self.answers:
            raise BadRecordError("no answer")
        for answer in self.answers:
            _check_answers(answer=answer)
        if not self.weights:
            object.__setattr__(self, "weights", [1.0] * len(self.answers))
        if len(self.weights) != len(self.answers) or min(self.weights) < 0 or not sum(self.weights):
            raise BadRecordError(f"weights {self.weights!r} of {len(self.answers)} answers")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A question with options, of which number ``correct`` is right: MultiChoiceVQASample."""

    sample_type: ClassVar[str] = "MultiChoiceVQASample"
    field_map: ClassVar[dict[str, str]] = {
        "context": "json[question]",
        "choices": "json[choices]",
        "correct_choice_idx": "json[correct]",
    }

    question: str
    choices: Sequence[str]
    correct: int  # from 0

    def __post_init__(self) -> None:
        _check_texts(question=self.question)
        for choice in self.choices:
            _check_texts(choice=choice)
        if not 0 <= self.correct < len(self.choices) <= len(LETTERS):
            raise BadRecordError(f"option {self.correct} of {len(self.choices)}")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The text in an image, with or without the boxes of its words or lines: OCRSample."""

    sample_type: ClassVar[str] = "OCRSample"
    field_map: ClassVar[dict[str, str]] = {
        "text": "json[text]",
        "words_text": "json[words]",
        "words_boxes": "json[boxes]",
    }

    text: str
    words: Sequence[str] = ()
    boxes: Sequence[Box] = ()  # one a word, or none; in pixels of the image

    def __post_init__(self) -> None:
        _check_answers(text=self.text)
        if self.boxes and len(self.boxes) != len(self.words):
            raise BadRecordError(f"{len(self.boxes)} boxes for {len(self.words)} words")
        if not all(math.isfinite(side) for box in self.boxes for side in box):
            raise BadRecordError(f"not a number in the boxes {str(self.boxes)[:80]}")

    def scaled(self, width: int, height: int) -> Reading:
        """With boxes given as shares of the image turned into pixels."""
        return replace(
            self,
            boxes=[
                (left * width, top * height, across * width, down * height)
                for left, top, across, down in self.boxes
            ],
        )


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Turns over any number of images, from none: SimilarityInterleavedSample.

    Megatron's loader reads conversations from that type's ``texts``, as LLaVA's pairs of ``from``
    and ``value``; ``<image>`` in a human's text stands for an image, and is refused in an answer.
    """

    sample_type: ClassVar[str] = "SimilarityInterleavedSample"
    field_map: ClassVar[None] = None  # a list of images needs a loader function: shards.tar

    turns: Sequence[tuple[Speaker, str]]

    def __post_init__(self) -> None:
        if not self.turns:
            raise BadRecordError("a conversation without an answer")
        for number, (speaker, text) in enumerate(self.turns):
            if speaker != ("human", "gpt")[number % 2]:
                raise BadRecordError(f"turn {number} is the {speaker}'s again")
            check = _check_answers if speaker == "gpt" else _check_texts
            check(**{f"text of turn {number}": text})

    def annotation(self) -> dict[str, Any]:
        """The turns as LLaVA spells them."""
        return {"turns": [{"from": speaker, "value": text} for speaker, text in self.turns]}

    def with_marks(self, images: int) -> Dialogue:
        """With ``<image>`` for each of ``images`` images, where the text marks none of them."""
        marks = sum(text.count(IMAGE) for speaker, text in self.turns if speaker == "human")
        if marks == images:
            return self
        if marks:
            raise BadRecordError(f"{images} images for {marks} marks {IMAGE} in the text")
        (speaker, text), *others = self.turns
        return replace(self, turns=[(speaker, f"{IMAGE}\n" * images + text), *others])


Content = Caption | Question | Choice | Reading | Dialogue


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a record comes from, so that the split can be proved afterwards."""

    source: str  # a package or a file
    split: str | None = None
    indices: tuple[int, ...] = ()  # of the pictures or scans used, within the source
    key: str | None = None  # the publisher's own name of the record


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample to store."""

    images: tuple[bytes | ImageSource, ...]  # encoded, as published where there is a file of it
    content: Content
    provenance: Provenance
    relative_boxes: bool = False  # a Reading's boxes are shares of the image's sides

    def __post_init__(self) -> None:
        if isinstance(self.content, Dialogue):
            object.__setattr__(self, "content", self.content.with_marks(len(self.images)))
        elif len(self.images) != 1:
            kind = type(self.content).__name__.lower()
            raise BadRecordError(f"{len(self.images)} images for a {kind}, not one")

    @property
    def bytes_held(self) -> int:
        """Bytes of images that are in memory already."""
        return sum(
            len(getattr(image, "data", b"") if not isinstance(image, bytes) else image)
            for image in self.images
        )

    @property
    def image(self) -> bytes:
        """The one image of a composed record."""
        (image,) = self.images
        assert isinstance(image, bytes)
        return image

    def annotation(self, width: int = 0, height: int = 0) -> dict[str, Any]:
        """The JSON part of the stored sample, for an image of that size in pixels."""
        content = self.content
        if isinstance(content, Reading) and self.relative_boxes:
            content = content.scaled(width, height)
        fields = content.annotation() if isinstance(content, Dialogue) else asdict(content)
        return {**fields, "provenance": asdict(self.provenance)}


@dataclass(frozen=True, kw_only=True)
class BadRecord:
    """What a source yields in place of a record that it cannot make."""

    name: str  # file and place in it
    reason: str


Records = Iterator[Record | BadRecord]


def _check_texts(**texts: Any) -> None:
    """Raise BadRecordError if one of ``texts``, by name, is no text or has nothing in it."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadRecordError(f"the {name} is {text!r}, not a text")
        if not text.strip():
            raise BadRecordError(f"the {name} is empty")


def _check_answers(**texts: Any) -> None:
    """As ``_check_texts``, of what a model is to learn to say: it cannot show an image.

    Upstream takes the mark for an image there too, of which it then has one too few; here it would
    be trained on as a text.
    """
    _check_texts(**texts)
    for name, text in texts.items():
        if IMAGE in text:
            raise BadRecordError(f"the {name} holds the mark {IMAGE}")
