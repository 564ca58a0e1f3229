from pathlib import Path

import pytest

from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer, read_answers, write_answers
from nvlm.evaluate.question import Question

QUESTIONS = [
    Question(id=number, images=(Path("x.png"),), text="?", references=("yes",)) for number in (1, 2)
]


def test_answers_are_read_back_in_question_order(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    answers = ["two\nlines \u2028 and 😀", ""]
    given = [
        Answer(question_id=question.id, prompt="p", text=text, grids=((2, 1),))
        for question, text in zip(QUESTIONS, answers, strict=True)
    ]
    write_answers(path, QUESTIONS, reversed(given))
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[1], lines[0]]))
    assert read_answers(path, QUESTIONS) == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1, "answer": "a"}\n{"question_id": 2, "ans', "line 2 isn't valid JSON"),
        ('{"question_id": 3, "answer": "a"}', "question 3 is not in the ground truth"),
        ('{"question_id": 1, "answer": "a"}\n' * 2, "question 1 is answered twice"),
        ('{"question_id": 2, "answer": "a"}', "1 of 2 questions have no answer, 1 first"),
        ('{"question_id": 1, "answer": null}', "'answer' must be a string"),
        ("[1]", "a record has no 'question_id'"),
    ],
)
def test_faulty_answers_are_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_answers(path, QUESTIONS)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="generate the answers first"):
        read_answers(tmp_path / "answers.jsonl", QUESTIONS)
