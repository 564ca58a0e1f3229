"""Two models that should be one: every answer of theirs, compared."""

from __future__ import annotations

from pathlib import Path

from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer, parse_answer
from nvlm.evaluate.ground_truth.files import read_json_lines


def check_equal_answers(answers: Path, expected: Path) -> int:
    """How many answers the directories ``answers`` and ``expected`` hold, a file a task.

    Raises UserError unless they have the same tasks and questions, in one order, and to each
    question the same prompt, tiles and answer.
    """
    files = sorted(path.name for path in expected.glob("*.jsonl"))
    if not files:
        raise UserError(f"{expected} holds no answers: generate them first")
    if other := sorted(set(files) ^ {path.name for path in answers.glob("*.jsonl")}):
        raise UserError(f"{answers} and {expected} do not both have answers to {other[0]}")
    count, different = 0, []
    for name in files:
        found, right = _read(answers / name), _read(expected / name)
        if [answer.question_id for answer in found] != [answer.question_id for answer in right]:
            raise UserError(f"{answers / name} and {expected / name} are of other questions")
        count += len(right)
        pairs = zip(found, right, strict=True)
        different += [(name, *pair) for pair in pairs if pair[0] != pair[1]]
    if different:
        name, first, wanted = different[0]
        raise UserError(
            f"{len(different)} of {count} answers in {answers} are not those of {expected}, first "
            f"in {name} to question {wanted.question_id!r}: {first.text!r}, not {wanted.text!r}"
        )
    return count


def _read(path: Path) -> list[Answer]:
    return [parse_answer(record, str(path)) for record in read_json_lines(path)]
