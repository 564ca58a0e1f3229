"""From a benchmark's question to the conversation that the model sees."""

from __future__ import annotations

import re

from nvlm.evaluate.params import AskParams
from nvlm.evaluate.question import Question
from nvlm.model.prompts import IMAGE, LETTERS, Conversation, Turn

_PLACE = re.compile(r"\{(question|options|letter|text)\}")


def conversation(question: Question, ask: AskParams) -> Conversation:
    """System turn, then the image and the filled-in prompt, as the recipe lays them out."""
    user = Turn(role="user", text=f"{IMAGE}\n{prompt(question, ask)}")
    return [Turn(role="system", text=ask.system), user] if ask.system else [user]


def prompt(question: Question, ask: AskParams) -> str:
    """The text beside the image.

    A question that spells ``<image>`` asks for no second image: there the tag is taken out.
    """
    template = ask.prompt if question.choices or not ask.open_prompt else ask.open_prompt
    options = "\n".join(
        _fill(ask.option, letter=letter, text=choice)
        for letter, choice in zip(LETTERS, question.choices, strict=False)
    )
    return _fill(template, question=question.text, options=options).replace(IMAGE, "")


def _fill(template: str, **values: str) -> str:
    """Replace the {names} of ``template``; other braces, and those of ``values``, stay."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), template)
