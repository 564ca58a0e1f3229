"""A user's directory: what is read, and what is refused with which words."""

import pytest
from tests.data.pictures import encoded_image

from nvlm.data.records import Caption, Choice, Question, read_records
from nvlm.errors import UserError

PNG = encoded_image("PNG")


def test_the_three_kinds(directory_of_records):
    directory = directory_of_records(
        [
            {"image": "images/a.png", "caption": "Ein Würfel"},
            {"image": "images/a.png", "question": "how many?", "answers": ["1", "one"]},
            {"image": "images/a.png", "question": "?", "choices": ["x", "y"], "correct": 1},
        ],
        {"a.png": PNG},
    )
    records = list(read_records(directory))
    assert [record.content for record in records] == [
        Caption(caption="Ein Würfel"),
        Question(question="how many?", answers=["1", "one"]),
        Choice(question="?", choices=["x", "y"], correct=1),
    ]
    assert all(record.image == PNG for record in records)
    assert records[0].provenance.source == "images/a.png"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no valid JSON"),
        ("[]", "list"),
        ({"caption": "x"}, "'image' is missing"),
        ({"image": "images/a.png"}, "'question' is missing"),
        ({"image": "images/a.png", "question": "?"}, "'answers' is missing"),
        ({"image": "images/a.png", "caption": ""}, "'caption' should be a text"),
        ({"image": "images/a.png", "caption": 3}, "'caption' should be a text"),
        ({"image": "images/a.png", "question": "?", "answers": []}, "list of texts"),
        ({"image": "images/a.png", "question": "?", "answers": [1]}, "list of texts"),
        ({"image": "images/a.png", "question": "?", "choices": ["x"]}, "'correct' is missing"),
        (
            {"image": "images/a.png", "question": "?", "choices": ["x"], "correct": 1},
            "position of a choice",
        ),
        ({"image": "../secret.png", "caption": "x"}, "leads out of"),
        ({"image": "/etc/hostname", "caption": "x"}, "leads out of"),
        ({"image": "images/link.png", "caption": "x"}, "leads out of"),
    ],
)
def test_bad_lines_are_named(directory_of_records, line, words):
    good = {"image": "images/a.png", "caption": "x"}
    directory = directory_of_records([good, line], {"a.png": PNG})
    (directory.parent / "secret.png").write_bytes(PNG)
    (directory / "images" / "link.png").symlink_to(directory.parent / "secret.png")
    with pytest.raises(UserError, match=words) as caught:
        list(read_records(directory))
    assert "line 2" in str(caught.value)


def test_a_missing_image_is_left_to_the_caller_to_count(directory_of_records):
    directory = directory_of_records([{"image": "images/none.png", "caption": "x"}], {})
    assert next(read_records(directory)).image == b""


def test_a_missing_directory(tmp_path):
    with pytest.raises(UserError, match=r"annotations\.jsonl is missing"):
        list(read_records(tmp_path / "nowhere"))
