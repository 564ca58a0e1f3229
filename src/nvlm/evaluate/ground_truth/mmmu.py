"""MMMU: ``questions.jsonl`` with the Hub's fields, and for val ``answer_dict_val.json``.

The answer dictionary wins where there is one, as in the benchmark's own program; dev, which has
none, is scored by the ``answer`` and ``question_type`` of its records.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question

MOST_IMAGES = 7  # fields image_1 to image_7


def read(directory: Path) -> list[Question]:
    """One question a line; a multiple-choice question's reference is its letter.

    Tags such as ``<image 1>`` stay in question and options: which images the model sees is up to
    the prompt (``ask.images``). The category is the subject, which an id such as
    validation_Art_Theory_3 holds.
    """
    path = files.only_file(directory, "*.jsonl")
    solutions = _solutions(directory)
    images = files.Images(directory)
    questions = []
    for record in files.read_json_lines(path):
        question_id = files.text_field(record, "id", str(path))
        where = f"{path}, question {question_id}"
        solution = record if solutions is None else files.field(solutions, question_id, where)
        truth = files.field(solution, "answer" if solutions is None else "ground_truth", where)
        choices: tuple[str, ...] = ()
        if files.field(solution, "question_type", where) == "multiple-choice":
            choices = _texts(files.field(record, "options", where), f"{where}, options")
        elif isinstance(truth, str) and truth.startswith("["):
            truth = list(_texts(truth, where))
        names = [files.text_field(record, "image_1", where)]
        later = (record.get(f"image_{number}") for number in range(2, MOST_IMAGES + 1))
        names += [str(name) for name in later if name]
        questions.append(
            Question(
                id=question_id,
                images=tuple(images.path(name) for name in names),
                text=files.text_field(record, "question", where).strip(),
                references=files.answers(truth, where),
                choices=choices,
                category="_".join(question_id.split("_")[1:-1]),
            )
        )
    return files.without_duplicates(questions, path)


def _solutions(directory: Path) -> Mapping[str, Any] | None:
    if not list(directory.glob("answer_dict*.json")):
        return None
    solutions: Mapping[str, Any] = files.read_json(files.only_file(directory, "answer_dict*.json"))
    return solutions


def _texts(published: Any, where: str) -> tuple[str, ...]:
    """A list, or on the Hub the text of a Python list (read as data, not executed)."""
    if isinstance(published, str):
        try:
            published = ast.literal_eval(published)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            published = None
    return files.answers(published, where)
