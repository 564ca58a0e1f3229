"""A user's directory: what is read, and what is left out with which reason."""

import re

import pytest
from tests.data.pictures import encoded_image

from nvlm.data.published.directory import read_records
from nvlm.data.records import BadRecord, Caption, Choice, Dialogue, Question, Reading, Record
from nvlm.errors import UserError

PNG = encoded_image("PNG")


def test_the_five_kinds(directory_of_records):
    directory = directory_of_records(
        [
            {"image": "images/a.png", "caption": "Ein Würfel"},
            {"image": "images/a.png", "question": "how many?", "answers": ["1", "one", "1", "1"]},
            {"image": "images/a.png", "question": "?", "choices": ["x", "y"], "correct": 1},
            {"image": "images/a.png", "text": "STOP"},
            {"turns": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        ],
        {"a.png": PNG},
    )
    records = list(read_records(directory))
    assert all(isinstance(record, Record) for record in records)
    assert [record.content for record in records if isinstance(record, Record)] == [
        Caption(caption="Ein Würfel"),
        Question(question="how many?", answers=["1", "one"], weights=[0.75, 0.25]),
        Choice(question="?", choices=["x", "y"], correct=1),
        Reading(text="STOP", words=[], boxes=[]),
        Dialogue(turns=[("human", "Hi"), ("gpt", "Hello")]),
    ]
    (image,) = records[0].images
    assert image.read() == PNG
    assert records[0].provenance.source == image.name == "images/a.png"
    assert records[4].images == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no valid JSON"),
        ("[]", "'image' is missing"),
        ({"caption": "x"}, "'image' is missing"),
        ({"image": 3, "caption": "x"}, "'image' should be a path, not 3"),
        ({"image": "images/a.png"}, "'question' is missing"),
        ({"image": "images/a.png", "question": "?"}, "'answers' is missing"),
        ({"image": "images/a.png", "caption": ""}, "the caption is empty"),
        ({"image": "images/a.png", "caption": None}, "'None' is no text"),
        ({"image": "images/a.png", "question": "?", "answers": []}, "no answer"),
        ({"image": "images/a.png", "question": "?", "answers": [[]]}, r"'\[\]' is no text"),
        ({"image": "images/a.png", "question": "?", "answers": ["a", " "]}, "the answer is empty"),
        ({"image": "images/a.png", "question": "?", "choices": ["x"]}, "'correct' is missing"),
        (
            {"image": "images/a.png", "question": "?", "choices": ["x"], "correct": 1},
            "option 1 of 1",
        ),
        ({"turns": [{"from": "human", "value": "Hi"}]}, "without an answer"),
        ({"turns": [{"who": "human"}]}, "no turn of a conversation"),
        (
            {"turns": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a <image>"}]},
            "the text of turn 1 holds the mark <image>",
        ),
        (
            {"image": "images/a.png", "question": "?", "answers": ["<image>"]},
            "the answer holds the mark <image>",
        ),
        ({"image": "images/a.png", "caption": "<image>x"}, "the caption holds the mark <image>"),
        ({"image": "images/a.png", "text": "<image>"}, "the text holds the mark <image>"),
    ],
)
def test_bad_lines_are_named(directory_of_records, line, words):
    good = {"image": "images/a.png", "caption": "x"}
    directory = directory_of_records([good, line], {"a.png": PNG})
    first, second = read_records(directory)
    assert isinstance(first, Record)
    assert isinstance(second, BadRecord)
    assert second.name == "annotations.jsonl, line 2"
    assert re.search(words, second.reason)


def test_a_missing_directory(tmp_path):
    with pytest.raises(UserError, match=r"annotations\.jsonl is missing"):
        list(read_records(tmp_path / "nowhere"))
