"""MathVista: the Hub's Parquet file, unpacked, as the recipe reads it, or JSON of the same fields.

The publisher's repository has a testmini.json, ``{pid: {question, choices, answer, ...}}``, whose
records lack the ``query``.
"""

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
    wanted, without the words "Hint: "; a multiple-choice question as ``question``.
    """
    path, published = _published(directory)
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
                images=(images.path(_image(record, where)),),
                text=text,
                references=references,
                choices=choices,
                category=_task(record),
                answer_type=str(record.get("answer_type") or "text"),
                precision=_precision(record, where),
            )
        )
    return files.without_duplicates(questions, path)


def _published(directory: Path) -> tuple[Path, Any]:
    """The file and its records; a dictionary's keys are their ``pid``."""
    if list(directory.glob("*.jsonl")):
        path = files.only_file(directory, "*.jsonl")
        return path, files.read_json_lines(path)
    path = files.only_file(directory, "*.json")
    published = files.read_json(path)
    if isinstance(published, Mapping):
        published = [{"pid": pid, **problem} for pid, problem in published.items()]
    return path, published


def _image(record: Any, where: str) -> str:
    """The image of the Parquet file itself, beside which ``image`` names a file of an archive."""
    unpacked = isinstance(record, Mapping) and "decoded_image" in record
    return files.text_field(record, "decoded_image" if unpacked else "image", where)


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
