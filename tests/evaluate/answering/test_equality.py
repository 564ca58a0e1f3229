"""Two directories of answers that should be the same."""

import json
from pathlib import Path

import pytest

from nvlm.errors import UserError
from nvlm.evaluate.answering.equality import check_equal_answers


def write(directory: Path, task: str, texts: list[str], first: int = 1, **others: object) -> None:
    directory.mkdir(exist_ok=True)
    lines = [
        json.dumps({"question_id": n, "prompt": "p", "answer": text, "tiles": [[1, 2]]} | others)
        for n, text in enumerate(texts, first)
    ]
    (directory / f"{task}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    for run in ("a", "b"):
        write(tmp_path / run, "VQAv2", ["yes", "no"])
        write(tmp_path / run, "MMMU", ["A", "B", "C"])
    return tmp_path / "a", tmp_path / "b"


def test_equal_answers_are_counted(runs: tuple[Path, Path]):
    assert check_equal_answers(*runs) == 5


@pytest.mark.parametrize(
    ("task", "texts", "others", "message"),
    [
        ("MMMU", ["A", "X", "Y"], {}, r"2 of 5 .*in MMMU.jsonl to question 2: 'X', not 'B'"),
        ("MMMU", ["A", "B", "C"], {"tiles": [[2, 2]]}, r"3 of 5 .*question 1"),
        ("MMMU", ["A", "B"], {}, r"MMMU.jsonl .*are of other questions"),
        ("MMMU", ["A", "B", "C"], {"first": 2}, r"MMMU.jsonl .*are of other questions"),
        ("TextVQA", ["A"], {}, r"do not both have answers to TextVQA.jsonl"),
    ],
)
def test_what_differs_is_named(runs, task, texts, others, message):
    write(runs[0], task, texts, **others)
    with pytest.raises(UserError, match=message):
        check_equal_answers(*runs)


def test_nothing_is_not_equal_to_nothing(tmp_path: Path):
    with pytest.raises(UserError, match="holds no answers"):
        check_equal_answers(tmp_path, tmp_path)
