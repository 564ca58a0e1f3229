"""From a row of annotations to a record's content, for each kind of content."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from nvlm.data.published.select import Row, items_of, value_of
from nvlm.data.records import (
    BadRecordError,
    Box,
    Caption,
    Choice,
    Content,
    Dialogue,
    Question,
    Reading,
    Speaker,
)
from nvlm.model.prompts import IMAGE, LETTERS

# How publishers name the speakers of a conversation; a system's text goes before the first turn.
_SPEAKERS: dict[str, Speaker] = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
}
_MARK_OF_MPLUG = "<|image|>"


def build_content(
    kind: str,
    row: Row,
    fields: dict[str, str],
    *,
    boxes: str = "xywh",
    illegible: Sequence[str] = (),
    turns: int = 0,
) -> Content:
    """The content of ``kind`` whose parts stand at ``fields`` of ``row``.

    caption: ``caption``. question: ``question``, ``answers`` (one or a list; equal ones add up to a
    weight). choice: ``question``, ``choices``, ``correct`` (place, letter, or the option itself),
    or in place of the last two the option that is ``right`` and a list of those that are ``wrong``.
    reading: ``text``, or ``words`` (a list) that make it, and their ``boxes``. dialogue: ``turns``
    in LLaVA's, OpenAI's or Docmatix's form, or one turn of ``user`` and ``assistant``; of more than
    ``turns`` questions so many are kept (0 = all), evenly chosen from the first on.
    Raises BadRecordError if a part is missing or makes no sense.
    """
    values = {name: value_of(row, spec) for name, spec in fields.items()}
    try:
        if kind == "caption":
            return Caption(caption=_text(values["caption"]))
        if kind == "question":
            return _question(values)
        if kind == "choice":
            return _choice(values)
        if kind == "reading":
            return _reading(values, boxes, illegible)
        return _dialogue(values, turns)
    except KeyError as error:
        raise BadRecordError(f"the layout has no field {error} for a {kind}") from error


def _question(values: dict[str, Any]) -> Question:
    answers = values["answers"]
    listed = [_text(answer) for answer in (answers if isinstance(answers, list) else [answers])]
    counts = Counter(listed)
    return Question(
        question=_text(values["question"]),
        answers=list(counts),
        weights=[count / len(listed) for count in counts.values()],
    )


def _choice(values: dict[str, Any]) -> Choice:
    question = _text(values["question"])
    if "right" in values:
        choices = [_text(choice) for _, choice in items_of(values["wrong"])]
        right = _text(values["right"])
        # Anywhere among them, and in the same place whenever the dataset is prepared.
        place = zlib.crc32("\n".join([question, right, *choices]).encode()) % (len(choices) + 1)
        choices.insert(place, right)
        return Choice(question=question, choices=choices, correct=place)
    choices = [_text(choice) for _, choice in items_of(values["choices"])]
    correct = values["correct"]
    if isinstance(correct, str):
        if correct in choices:
            correct = choices.index(correct)
        elif len(correct) == 1 and correct.upper() in LETTERS:
            correct = LETTERS.index(correct.upper())
    if not isinstance(correct, int):
        raise BadRecordError(f"{correct!r} is none of the options")
    return Choice(question=question, choices=choices, correct=correct)


def _reading(values: dict[str, Any], boxes: str, illegible: Sequence[str]) -> Reading:
    words = [_text(word) for _, word in items_of(values.get("words", []))]
    shapes = [shape for _, shape in items_of(values.get("boxes", []))]
    if shapes and len(shapes) != len(words):
        raise BadRecordError(f"{len(shapes)} boxes for {len(words)} words")
    kept = [n for n, word in enumerate(words) if word.strip() and word not in illegible]
    if words and not kept:
        raise BadRecordError("no legible word")
    legible = [words[n] for n in kept]
    return Reading(
        text=_text(values["text"]) if "text" in values else " ".join(legible),
        words=legible,
        boxes=[BOXES[boxes](shapes[n]) for n in kept] if shapes else [],
    )


def _dialogue(values: dict[str, Any], most: int) -> Dialogue:
    if "turns" in values:
        said = [part for _, turn in items_of(values["turns"]) for part in _parts(turn)]
    else:
        said = [("human", _text(values["user"])), ("gpt", _text(values["assistant"]))]
    # Some published conversations begin in the middle, and some end with a question.
    system = "".join(f"{text}\n\n" for who, text in said if who == "system")
    turns = [(_SPEAKERS[who], text) for who, text in said if who in _SPEAKERS]
    while turns and turns[0][0] == "gpt":
        turns = turns[1:]
    while turns and turns[-1][0] == "human":
        turns = turns[:-1]
    if turns:
        turns[0] = ("human", system + turns[0][1])
    pairs = len(turns) // 2
    if most and pairs > most:
        places = [place * pairs // most for place in range(most)]
        turns = [turn for place in places for turn in turns[2 * place : 2 * place + 2]]
    return Dialogue(turns=turns)


def _parts(turn: Any) -> list[tuple[str, str]]:
    """The speakers and texts of a turn in one of three published forms."""
    if isinstance(turn, dict):
        for who, text in (("from", "value"), ("role", "content")):
            if who in turn and text in turn:
                said = _text(turn[text]).replace(_MARK_OF_MPLUG, IMAGE)
                return [(str(turn[who]).lower(), said)]
        if "user" in turn and "assistant" in turn:
            return [("user", _text(turn["user"])), ("assistant", _text(turn["assistant"]))]
    raise BadRecordError(f"no turn of a conversation: {str(turn)[:80]!r}")


def _text(value: Any) -> str:
    """A text, or a number or truth value as text: PlotQA's and Super-CLEVR's answers are either."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float):
        return str(value)
    raise BadRecordError(f"{str(value)[:80]!r} is no text")


def _xywh(shape: Any) -> Box:
    left, top, width, height = (float(side) for side in shape)
    return left, top, width, height


def _xyxy(shape: Any) -> Box:
    left, top, right, bottom = (float(side) for side in shape)
    return left, top, right - left, bottom - top


def _points(shape: Any) -> Box:
    """The box around a polygon: ``[[x, y], ...]`` or ``[x, y, x, y, ...]``."""
    flat = [
        float(side) for point in shape for side in (point if isinstance(point, list) else [point])
    ]
    across, down = flat[0::2], flat[1::2]
    return min(across), min(down), max(across) - min(across), max(down) - min(down)


def _checked(convert: Callable[[Any], Box]) -> Callable[[Any], Box]:
    def checked(shape: Any) -> Box:
        try:
            return convert(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadRecordError(f"{str(shape)[:80]!r} is no box") from error

    return checked


BOXES: dict[str, Callable[[Any], Box]] = {
    "xywh": _checked(_xywh),
    "xyxy": _checked(_xyxy),
    "points": _checked(_points),
}
