"""Generated answers on disk: JSON lines ``{question_id, prompt, answer, tiles}``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.atomic import write_text
from nvlm.errors import UserError
from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question, QuestionId


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said to one question."""

    question_id: QuestionId
    prompt: str  # beside the image
    text: str
    grids: tuple[tuple[int, int], ...] = ()  # columns and rows of tiles of each image, if known


def write_answers(path: Path, questions: Sequence[Question], answers: Iterable[Answer]) -> None:
    """Write one line a question, in the order of ``questions``, whole or not at all."""
    by_id = {answer.question_id: answer for answer in answers}
    write_text(path, "".join(line_of(by_id[question.id]) for question in questions))


def read_answers(path: Path, questions: Sequence[Question]) -> list[Answer]:
    """The answers in the order of ``questions``, each of which must have exactly one.

    Raises UserError for a broken line, an unknown or repeated question, or one without an answer:
    a score over part of the questions is a score of another benchmark.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: generate the answers first")
    known = {question.id for question in questions}
    answers: dict[QuestionId, Answer] = {}
    for record in files.read_json_lines(path):
        answer = parse_answer(record, str(path))
        if answer.question_id not in known:
            raise UserError(f"{path}: question {answer.question_id!r} is not in the ground truth")
        if answer.question_id in answers:
            raise UserError(f"{path}: question {answer.question_id!r} is answered twice")
        answers[answer.question_id] = answer
    if missing := [question.id for question in questions if question.id not in answers]:
        raise UserError(
            f"{path}: {len(missing)} of {len(questions)} questions have no answer, "
            f"{missing[0]!r} first: generate them again"
        )
    return [answers[question.id] for question in questions]


def line_of(answer: Answer) -> str:
    """The answer as a line of the file."""
    record: dict[str, Any] = {
        "question_id": answer.question_id,
        "prompt": answer.prompt,
        "answer": answer.text,
    }
    if answer.grids:
        record["tiles"] = answer.grids
    return json.dumps(record, ensure_ascii=False) + "\n"


def parse_answer(record: Any, where: str) -> Answer:
    """A line's ``record`` as an answer; UserError, naming ``where``, if it is none."""
    question_id = files.id_field(record, "question_id", where)
    text = files.text_field(record, "answer", where)
    prompt, grids = record.get("prompt", ""), record.get("tiles", [])
    if not isinstance(prompt, str) or not isinstance(grids, list) or not all(map(_is_grid, grids)):
        raise UserError(f"{where}: question {question_id!r} has no valid prompt and tiles")
    return Answer(
        question_id=question_id,
        prompt=prompt,
        text=text,
        grids=tuple((columns, rows) for columns, rows in grids),
    )


def _is_grid(grid: Any) -> bool:
    return isinstance(grid, list) and [type(number) for number in grid] == [int, int]
