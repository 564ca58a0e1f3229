"""Questions with ten people's answers: TextVQA's own file, and VQAv2 as the recipe lays it out.

Both are scored by kind of answer as well: VQAv2's yes/no, number and other, told from the commonest
answer where the file has no ``answer_type``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question


def read_textvqa(directory: Path) -> list[Question]:
    """TextVQA: ``{"data": [{question_id, image_id, question, answers}]}``, images IMAGE_ID.jpg."""
    path = files.only_file(directory, "*.json")
    data = files.field(files.read_json(path), "data", str(path))
    return _read(directory, path, data, image_key="image_id", answers_key="answers")


def read_vqav2(directory: Path) -> list[Question]:
    """VQAv2: ``[{question_id, image, question, answer}]``, where ``image`` is a file name."""
    path = files.only_file(directory, "*.json")
    return _read(directory, path, files.read_json(path), image_key="image", answers_key="answer")


def _read(
    directory: Path, path: Path, data: Any, *, image_key: str, answers_key: str
) -> list[Question]:
    questions = []
    for record in files.records(data, str(path)):
        question_id = files.id_field(record, "question_id", str(path))
        where = f"{path}, question {question_id}"
        references = files.answers(files.field(record, answers_key, where), where)
        questions.append(
            Question(
                id=question_id,
                image=files.image_path(directory, files.text_field(record, image_key, where)),
                text=files.text_field(record, "question", where),
                references=references,
                category=str(record.get("answer_type") or _answer_type(references)),
            )
        )
    return files.without_duplicates(questions, path)


def _answer_type(references: Sequence[str]) -> str:
    """VQAv2's three kinds of answer."""
    commonest = Counter(answer.strip().lower() for answer in references).most_common(1)[0][0]
    if commonest in ("yes", "no"):
        return "yes/no"
    return "number" if commonest.replace(".", "", 1).isdecimal() else "other"
