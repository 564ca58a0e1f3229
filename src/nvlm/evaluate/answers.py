"""Generated answers on disk: JSON lines ``{question_id, prompt, answer}`` in question order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.errors import UserError
from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question, QuestionId


def write_answers(
    path: Path, questions: Sequence[Question], prompts: Sequence[str], answers: Sequence[str]
) -> None:
    """Write one line a question to ``path``, whole or not at all."""
    lines = [
        json.dumps(
            {"question_id": question.id, "prompt": prompt, "answer": answer}, ensure_ascii=False
        )
        for question, prompt, answer in zip(questions, prompts, answers, strict=True)
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_answers(path: Path, questions: Sequence[Question]) -> list[str]:
    """The answers in the order of ``questions``, each of which must have exactly one.

    Raises UserError for a broken line, an unknown or repeated question, or one without an answer:
    a score over part of the questions is a score of another benchmark.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: generate the answers first")
    known = {question.id for question in questions}
    answers: dict[QuestionId, str] = {}
    for record in files.read_json_lines(path):
        question_id = files.id_field(record, "question_id", str(path))
        if question_id not in known:
            raise UserError(f"{path}: question {question_id!r} is not in the ground truth")
        if question_id in answers:
            raise UserError(f"{path}: question {question_id!r} is answered twice")
        answers[question_id] = files.text_field(record, "answer", str(path))
    if missing := [question.id for question in questions if question.id not in answers]:
        raise UserError(
            f"{path}: {len(missing)} of {len(questions)} questions have no answer, "
            f"{missing[0]!r} first: generate them again"
        )
    return [answers[question.id] for question in questions]
