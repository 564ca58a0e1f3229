"""Training text of the language stand-ins: dialogs about pictures that are told in words.

Where NVLM will put visual tokens, these dialogs have one word each: what the token should come to
mean. Pictures are kinds of training pictures, questions and answers are those of the training
splits. So the stand-ins can answer before they see, as the published models can, and learning to
see is left to the recipe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nvlm.data.packaged import easy_vqa
from nvlm.data.packaged.composed import READ_QUESTIONS
from nvlm.data.packaged.easy_vqa import COLOURS, SHAPES, Description
from nvlm.model.prompts import (
    DESCRIBE,
    IMAGE,
    LETTERS,
    READ_ANSWER,
    SHORT_ANSWER,
    SYSTEM,
    Conversation,
    Template,
    Turn,
    multiple_choice,
)

Item = TypeVar("Item")

SYSTEMS = (SYSTEM, "Answer the questions.")
DIGITS = tuple("0123456789")
BLANK = "."  # the word of a visual token that shows nothing
SIDE = 4  # visual tokens a side of a tile
MAX_DIGITS = 4
MAX_TURNS = 4  # questions about one picture


@dataclass(frozen=True, kw_only=True)
class Dialog:
    """A conversation about one image, and the word of each visual token of its tiles."""

    conversation: Conversation
    template: Template
    tiles: list[list[str]]


class DialogWriter:
    """Draws dialogs; every question and every picture is of a training split."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.questions = questions_by_description()
        self.descriptions = list(self.questions)

    def draw(self) -> Dialog:
        """A dialog about a shape, a number, options to choose from, or a pretraining text."""
        kinds = (self._shape, self._number, self._choices, self._plain)
        return kinds[int(self.rng.choice(4, p=[0.35, 0.2, 0.3, 0.15]))]()

    def _shape(self) -> Dialog:
        shown = self._pick(self.descriptions)
        asked = [self._pick(self.questions[shown]) for _ in range(MAX_TURNS)]
        turns = [(question + SHORT_ANSWER, answer) for question, answer in asked]
        if self.rng.random() < 0.2:
            turns[0] = (DESCRIBE, shown.captions[0])
        return self._chat([self._shape_tile(shown)], turns)

    def _number(self) -> Dialog:
        number = self._digits(fewest=2)
        tiles = [*(self._speckled([digit]) for digit in number), self._strip_tile(number)]
        return self._chat(tiles, [(self._pick(READ_QUESTIONS) + READ_ANSWER, number)])

    def _choices(self) -> Dialog:
        if self.rng.random() < 1 / 3:
            number = self._digits(fewest=1, most=1)
            tile = self._speckled([number])
            facts = [("which digit is in the image?", number, DIGITS)]
        else:
            shown = self._pick(self.descriptions)
            tile = self._shape_tile(shown)
            facts = [
                ("what color is the shape?", shown.colour, COLOURS),
                ("what shape is in the image?", shown.shape, SHAPES),
            ]
        return self._chat([tile], [self._choice(*self._pick(facts)) for _ in range(MAX_TURNS)])

    def _choice(self, question: str, answer: str, answers: Sequence[str]) -> tuple[str, str]:
        wrong = self.rng.permutation([other for other in answers if other != answer])[:3]
        options = [str(option) for option in self.rng.permutation([answer, *wrong])]
        return multiple_choice(question, options), LETTERS[options.index(answer)]

    def _plain(self) -> Dialog:
        if self.rng.random() < 0.5:
            shown = self._pick(self.descriptions)
            tile, question, answer = self._shape_tile(shown), DESCRIBE, self._pick(shown.captions)
        else:
            answer = self._digits(fewest=1)
            tile, question = self._strip_tile(answer), self._pick(READ_QUESTIONS)
        return Dialog(
            conversation=_with_image([(question, answer)]), template="plain", tiles=[tile]
        )

    def _chat(self, tiles: list[list[str]], asked: list[tuple[str, str]]) -> Dialog:
        system = Turn(role="system", text=self._pick(SYSTEMS))
        return Dialog(conversation=[system, *_with_image(asked)], template="chatml", tiles=tiles)

    def _shape_tile(self, shown: Description) -> list[str]:
        return self._speckled([f" {shown.colour}", f" {shown.shape}"])

    def _speckled(self, words: Sequence[str]) -> list[str]:
        """Each of ``words`` at least once, and blanks, in any order."""
        rest = self.rng.choice([*words, BLANK], size=SIDE * SIDE - len(words))
        return [str(word) for word in self.rng.permutation([*words, *rest])]

    def _strip_tile(self, number: str) -> list[str]:
        """Each digit where its column of the tile begins, in all rows or in some."""
        row = [BLANK] * SIDE
        for position, digit in enumerate(number):
            row[-(-position * SIDE // len(number))] = digit
        shown = self.rng.random(SIDE) < 0.7
        shown[self.rng.integers(SIDE)] = True
        return [word for line in shown for word in (row if line else [BLANK] * SIDE)]

    def _digits(self, *, fewest: int, most: int = MAX_DIGITS) -> str:
        count = int(self.rng.integers(fewest, most + 1))
        return "".join(self.rng.choice(DIGITS, size=count))

    def _pick(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.integers(len(items)))]


def questions_by_description() -> dict[Description, list[tuple[str, str]]]:
    """What the training split asks and answers about each kind of picture, without repeats."""
    shown = easy_vqa.descriptions("train")
    found: dict[Description, set[tuple[str, str]]] = defaultdict(set)
    for asked in easy_vqa.questions("train"):
        if asked.image_id in shown:
            found[shown[asked.image_id]].add((asked.question, asked.answer))
    return {description: sorted(found[description]) for description in sorted(found, key=str)}


def _with_image(asked: list[tuple[str, str]]) -> Conversation:
    """The turns of ``asked``, the image before the first question."""
    turns = []
    for number, (question, answer) in enumerate(asked):
        text = f"{IMAGE}\n{question}" if number == 0 else question
        turns += [Turn(role="user", text=text), Turn(role="assistant", text=answer)]
    return turns
