"""MMMU: ``questions.jsonl`` with the Hub's fields, ``answer_dict_val.json`` with the answers."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question

_IMAGE_TAG = re.compile(r"\s*<image \d+>\s*")


def read(directory: Path) -> list[Question]:
    """One question a line; a multiple-choice question's reference is its letter.

    As in the recipe, the model sees the first image only, so the tags ``<image 1>`` in the text are
    taken out. The category is the subject, which an id such as validation_Art_Theory_3 holds.
    """
    path = files.only_file(directory, "*.jsonl")
    solutions_path = files.only_file(directory, "answer_dict*.json")
    solutions = files.read_json(solutions_path)
    questions = []
    for record in files.read_json_lines(path):
        question_id = files.text_field(record, "id", str(path))
        where = f"{path}, question {question_id}"
        solution = files.field(solutions, question_id, str(solutions_path))
        truth = files.field(solution, "ground_truth", f"{solutions_path}, question {question_id}")
        choices: tuple[str, ...] = ()
        if files.field(solution, "question_type", str(solutions_path)) == "multiple-choice":
            choices = _options(files.field(record, "options", where), where)
        questions.append(
            Question(
                id=question_id,
                image=files.image_path(directory, files.text_field(record, "image_1", where)),
                text=_IMAGE_TAG.sub(" ", files.text_field(record, "question", where)).strip(),
                references=files.answers(truth if isinstance(truth, list) else [truth], where),
                choices=choices,
                category="_".join(question_id.split("_")[1:-1]),
            )
        )
    return files.without_duplicates(questions, path)


def _options(published: Any, where: str) -> tuple[str, ...]:
    """The options: a list, or on the Hub the text of a Python list (read as data, not executed)."""
    if isinstance(published, str):
        try:
            published = ast.literal_eval(published)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            published = None
    options = files.answers(published, f"{where}, options")
    return tuple(_IMAGE_TAG.sub(" ", option).strip() for option in options)
