"""MathVista: the publisher's testmini.json, ``{pid: {question, query, choices, answer, ...}}``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm.errors import UserError
from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question
from nvlm.model.prompts import LETTERS


def read(directory: Path) -> list[Question]:
    """One question a problem; the category is its task (metadata).

    As in the recipe, a free-form question is asked as ``query``, which says what form of answer is
    wanted, without the words "Hint: "; a multiple-choice question as ``question``. A list of
    records, as on the Hub, is read as well.
    """
    path = files.only_file(directory, "*.json")
    published = files.read_json(path)
    if isinstance(published, Mapping):
        published = [{"pid": pid, **problem} for pid, problem in published.items()]
    images = files.Images(directory)
    questions = []
    for record in files.records(published, str(path)):
        question_id = files.id_field(record, "pid", str(path))
        where = f"{path}, problem {question_id}"
        choices: tuple[str, ...] = ()
        references = files.answers(files.field(record, "answer", where), where)
        text = files.text_field(record, "query", where).replace("Hint: ", "")
        if files.text_field(record, "question_type", where) == "multi_choice":
            choices = files.answers(files.field(record, "choices", where), where)
            references = (_letter(references[0], choices, where),)
            text = files.text_field(record, "question", where)
        questions.append(
            Question(
                id=question_id,
                images=(images.path(files.text_field(record, "image", where)),),
                text=text,
                references=references,
                choices=choices,
                category=_task(record),
                answer_type=str(record.get("answer_type") or "text"),
                precision=_precision(record, where),
            )
        )
    return files.without_duplicates(questions, path)


def _letter(answer: str, choices: tuple[str, ...], where: str) -> str:
    if answer not in choices:
        raise UserError(f"{where}: the answer {answer!r} is none of the choices")
    return LETTERS[choices.index(answer)]


def _task(record: Mapping[str, Any]) -> str:
    metadata = record.get("metadata")
    return str(metadata.get("task", "")) if isinstance(metadata, Mapping) else ""


def _precision(record: Mapping[str, Any], where: str) -> int | None:
    """Decimals of a float; the file writes them as 1.0."""
    value = record.get("precision")
    if value is None or value == "":
        return None
    try:
        return int(float(value))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: 'precision' must be a number, not {value!r}") from error
