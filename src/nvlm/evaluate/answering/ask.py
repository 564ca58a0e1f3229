"""From a benchmark's question to the conversation that the model sees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nvlm.errors import UserError
from nvlm.evaluate.params import AskParams, GenerateParams
from nvlm.evaluate.question import Question
from nvlm.model.prompts import IMAGE, LETTERS, Conversation, Turn

BLANK = 128  # every channel of a blank image, which is as large as the one it stands for

_PLACE = re.compile(r"\{(question|options|letter|text)\}")
_IMAGE_TAG = re.compile(r"<image (\d+)>")
_IMAGE_TAG_AND_SPACE = re.compile(r"\s*<image \d+>\s*")


def conversation(question: Question, ask: AskParams) -> Conversation:
    """System turn, then image and filled-in prompt, as the recipe lays them out."""
    text = prompt(question, ask)
    shown = text if IMAGE in text else f"{IMAGE}\n{text}"
    user = Turn(role="user", text=shown)
    return [Turn(role="system", text=ask.system), user] if ask.system else [user]


def prompt(question: Question, ask: AskParams) -> str:
    """The text beside the image; with ``ask.images`` "all" it says ``<image>`` where one belongs.

    With "first" tags such as ``<image 1>`` are taken out. The recipe does so too, but puts words
    such as "the image" in place of some, by fourteen rules on their neighbours. A question that
    spells ``<image>`` itself asks for no image: that is taken out as well.
    """
    template = ask.prompt if question.choices or not ask.open_prompt else ask.open_prompt
    whole = ask.images == "all"
    options = "\n".join(
        _fill(ask.option, letter=letter, text=_published(choice, keep_tags=whole))
        for letter, choice in zip(LETTERS, question.choices, strict=False)
    )
    text = _published(question.text, keep_tags=whole)
    return _IMAGE_TAG.sub(IMAGE, _fill(template, question=text, options=options))


def images(question: Question, ask: AskParams) -> Sequence[Path]:
    """The images of the prompt, in the order in which it shows them.

    Raises UserError if the question names an image that it hasn't.
    """
    if ask.images == "first":
        return question.images[:1]
    named = [
        int(number) for text in _shown(question, ask) for number in _IMAGE_TAG.findall(text)
    ] or [1]
    if missing := [number for number in named if not 1 <= number <= len(question.images)]:
        raise UserError(
            f"question {question.id!r} shows image {missing[0]} and has {len(question.images)}: "
            "prepare the task again"
        )
    return [question.images[number - 1] for number in named]


def max_tiles_each(params: GenerateParams, shown: int) -> int:
    """Tiles of each of ``shown`` images: they share those of one, as in the recipe."""
    return max(1, params.max_tiles // shown)


def _shown(question: Question, ask: AskParams) -> Sequence[str]:
    """The published texts in the order of the prompt."""
    with_options = question.choices and "{options}" in ask.prompt
    return [question.text, *(question.choices if with_options else ())]


def _published(text: str, *, keep_tags: bool) -> str:
    text = text.replace(IMAGE, "")
    return text if keep_tags else _IMAGE_TAG_AND_SPACE.sub(" ", text).strip()


def _fill(template: str, **values: str) -> str:
    """Replace the {names} of ``template``; other braces, and those of ``values``, stay."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), template)
