import json
from pathlib import Path

import pytest
from tests.evaluate import fixtures

from nvlm.errors import UserError


def test_coco_gives_one_question_an_image_with_all_its_captions(tmp_path: Path):
    first, second = fixtures.read(fixtures.coco(tmp_path), "coco")
    assert (first.id, first.text) == (9, "")
    assert first.references == ("A red square.", "Something red on a wall.")
    assert second.images[0] == tmp_path / "images/COCO_val2014_000000000025.jpg"


def test_textvqa_finds_the_image_by_its_id(tmp_path: Path):
    (question,) = fixtures.read(fixtures.textvqa(tmp_path), "textvqa")
    assert question.id == 34602
    assert question.images[0].name == "0054c91397f2fe05.jpg"
    assert question.references == ("42",) * 7 + ("forty two",) * 3
    assert question.category == "number"


def test_vqav2_tells_the_kinds_of_answer_apart(tmp_path: Path):
    questions = fixtures.read(fixtures.vqav2(tmp_path), "vqav2")
    assert [question.category for question in questions] == ["yes/no", "number", "other", "yes/no"]
    assert questions[1].text == "How many?"


def test_mmmu_reads_options_subject_and_answers(tmp_path: Path):
    chosen, _, opened = fixtures.read(fixtures.mmmu(tmp_path), "mmmu")
    assert chosen.choices == ("red", "a blue car", "it's green")
    assert (chosen.references, chosen.category) == (("B",), "Art_Theory")
    assert chosen.text == "What is shown in <image 1> here?"
    assert (opened.choices, opened.references) == ((), ("5", "five"))


def test_mmmu_options_are_data_and_not_executed(tmp_path: Path):
    fixtures.mmmu(tmp_path)
    path = tmp_path / "questions.jsonl"
    path.write_text(path.read_text().replace("['1', '2']", "__import__('os').getcwd()"))
    with pytest.raises(UserError, match=r"validation_Art_Theory_2, options"):
        fixtures.read(tmp_path, "mmmu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("answer"), "question 2: a record has no 'answer'"),
        (lambda record: record.update(answer=[]), "question 2: a list of answers is expected"),
        (lambda record: record.update(answer=["1", None]), "question 2: answers must be strings"),
        (lambda record: record.update(question_id=1), "question 1 comes twice"),
        (lambda record: record.update(question_id=1.5), "'question_id' must be a number"),
        (lambda record: record.update(image="gone.jpg"), "has no image 'gone.jpg'"),
        (lambda record: record.update(image="../../x.png"), "has no image"),
        (lambda record: record.update(question=None), "'question' must be a string"),
    ],
)
def test_a_faulty_record_is_named(tmp_path: Path, change, message: str):
    directory = fixtures.vqav2(tmp_path / "VQAv2")
    fixtures.picture(tmp_path, "../x.png")
    path = directory / "questions.json"
    records = json.loads(path.read_text())
    change(records[1])
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=message):
        fixtures.read(directory, "vqav2")


def test_an_image_without_captions_is_named(tmp_path: Path):
    path = fixtures.coco(tmp_path) / "captions_val2014.json"
    published = json.loads(path.read_text())
    published["annotations"] = published["annotations"][:2]
    path.write_text(json.dumps(published))
    with pytest.raises(UserError, match=r"image 25: a list of answers is expected"):
        fixtures.read(tmp_path, "coco")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", r"questions.json isn't valid JSON"),
        ("{}", r"a list of records is expected, not dict"),
        ("[]", r"holds no questions"),
        ("[3]", r"a record has no 'question_id'"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "questions.json").write_text(text)
    with pytest.raises(UserError, match=message):
        fixtures.read(tmp_path, "vqav2")


def test_missing_or_ambiguous_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"dvc repro prepare_eval@gone"):
        fixtures.read(tmp_path / "gone", "vqav2")
    with pytest.raises(UserError, match=r"must hold one \*\.json, and there is: none"):
        fixtures.read(tmp_path, "vqav2")
