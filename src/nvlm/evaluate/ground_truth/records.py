"""Lists of records whose fields conf/eval/ names: most benchmarks are one entry there, no code.

A file is a JSON list, ``{"data": [...]}``, or JSON lines. ``fields`` gives the publisher's names:

- ``question``, ``image`` (a file of ``images/``, its folders and its extension may be left out);
- ``answers``: one or a list, texts or numbers; every question must have one;
- ``id``: left out where the publisher has none, and the place in the file counts, as in the recipe;
- ``category``: what is scored apart; optional, as is the field of a single record;
- ``choices`` and ``correct``: the options and the right one, as its letter, its index (a number or
  its digits) or its text, whichever the record has; a record without choices is an open question;
- ``dataset``: see ``Question``.

Several files are read as one benchmark in parts (ChartQA's human and augmented questions): the
part is the category, and is prefixed to ids that are places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question, QuestionId
from nvlm.model.prompts import LETTERS


def read(directory: Path, fields: Mapping[str, str]) -> list[Question]:
    """One question a record, in the files' order; ``fields`` as GroundTruthParams checks them."""
    paths = sorted([*directory.glob("*.json"), *directory.glob("*.jsonl")])
    if not paths:
        raise UserError(f"{directory} must hold a .json or .jsonl file of questions")
    parts = [path.stem for path in paths] if len(paths) > 1 else [""]
    images = files.Images(directory)
    questions = [
        question
        for part, path in zip(parts, paths, strict=True)
        for question in _questions(images, path, part, fields)
    ]
    return files.without_duplicates(questions, directory)


def _questions(
    images: files.Images, path: Path, part: str, fields: Mapping[str, str]
) -> Iterator[Question]:
    for place, record in enumerate(_records(path)):
        question_id: QuestionId = f"{part}-{place}" if part else place
        if "id" in fields:
            question_id = files.id_field(record, fields["id"], str(path))
        where = f"{path}, question {question_id}"
        choices = _choices(record, fields, where)
        yield Question(
            id=question_id,
            images=(images.path(files.text_field(record, fields["image"], where)),),
            text=files.text_field(record, fields["question"], where),
            references=_references(record, fields, choices, where),
            choices=choices,
            category=_optional(record, fields.get("category")) or part,
            dataset=_optional(record, fields.get("dataset")),
        )


def _records(path: Path) -> list[Any]:
    if path.suffix == ".jsonl":
        return files.read_json_lines(path)
    published = files.read_json(path)
    if isinstance(published, Mapping):
        published = files.field(published, "data", str(path))
    return list(files.records(published, str(path)))


def _choices(record: Any, fields: Mapping[str, str], where: str) -> tuple[str, ...]:
    if "choices" not in fields or not record.get(fields["choices"]):
        return ()
    return files.answers(record[fields["choices"]], where)


def _references(
    record: Any, fields: Mapping[str, str], choices: tuple[str, ...], where: str
) -> tuple[str, ...]:
    if not choices:
        return files.answers(files.field(record, fields["answers"], where), where)
    correct = files.field(record, fields.get("correct", "correct"), where)
    place = _place(correct, choices)
    if place is None:
        raise UserError(
            f"{where}: the right choice is {correct!r}, which is neither an option's text nor the "
            f"letter or the index of one of {len(choices)}"
        )
    return (LETTERS[place],)


def _place(correct: Any, choices: tuple[str, ...]) -> int | None:
    """The place of the right one of ``choices``; digits are an index, even where options are."""
    place: int | None = None
    if isinstance(correct, str) and correct.isdecimal():
        place = int(correct)
    elif isinstance(correct, str) and correct in choices:
        place = choices.index(correct)
    elif isinstance(correct, str) and correct in tuple(LETTERS):
        place = LETTERS.index(correct)
    elif isinstance(correct, int) and not isinstance(correct, bool):
        place = correct
    return place if place is not None and 0 <= place < len(choices) <= len(LETTERS) else None


def _optional(record: Mapping[str, Any], key: str | None) -> str:
    """The field's text, or that of a list of texts; "" where the record lacks it."""
    value = record.get(key) if key else None
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
