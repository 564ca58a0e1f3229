"""Packaged evaluation sets against the official formats."""

import ast
import json

import pytest
from PIL import Image

from nvlm.data.benchmarks.evaluation import EvaluationParams, prepare_evaluation
from nvlm.data.packaged import digits, easy_vqa
from nvlm.errors import UserError
from nvlm.params import parse_params

TASKS = ("captioning", "TextVQA", "VQAv2", "MMMU")


def packaged(limit, seed=0):
    return EvaluationParams(source="packaged", requires="packages", limit=limit, seed=seed)


def unread(directory):
    raise AssertionError("a packaged set is not read")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    for task in TASKS:
        prepare_evaluation(task, packaged(30), root / task, unread)
    return root


def read(path):
    return json.loads(path.read_text())


def files(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_captioning_is_cocos_format(sets):
    truth = read(sets / "captioning" / "captions.json")
    assert len(truth["images"]) == 30
    assert len({annotation["id"] for annotation in truth["annotations"]}) == 150
    described = easy_vqa.descriptions("test")
    for image in truth["images"]:
        path = sets / "captioning" / "images" / image["file_name"]
        assert int(path.stem.rsplit("_", 1)[1]) == image["id"]
        assert path.read_bytes() == easy_vqa.image_paths("test")[image["id"]].read_bytes()
        references = {
            annotation["caption"]
            for annotation in truth["annotations"]
            if annotation["image_id"] == image["id"]
        }
        assert len(references) == 5
        shown = described[image["id"]]
        assert f"a {shown.colour} {shown.shape}" in references


def test_text_vqa(sets):
    data = read(sets / "TextVQA" / "questions.json")["data"]
    assert len({question["question_id"] for question in data}) == 30
    for question in data:
        assert len(question["answers"]) == 10
        (answer,) = set(question["answers"])
        with Image.open(sets / "TextVQA" / "images" / f"{question['image_id']}.jpg") as strip:
            assert strip.format == "JPEG"
            assert strip.size == (digits.CELL * len(answer), digits.CELL)
        assert 2 <= len(answer) <= 4


def test_vqav2(sets):
    asked = {
        (question.image_id, question.question, question.answer)
        for question in easy_vqa.questions("test")
    }
    questions = read(sets / "VQAv2" / "questions.json")
    assert len({question["question_id"] for question in questions}) == 30
    for question in questions:
        image_id = int(question["image"].removesuffix(".png").rsplit("_", 1)[1])
        assert (sets / "VQAv2" / "images" / question["image"]).is_file()
        assert len(question["answer"]) == 10
        assert (image_id, question["question"], question["answer"][0]) in asked


def test_mmmu(sets):
    lines = (sets / "MMMU" / "questions.jsonl").read_text().splitlines()
    truth = read(sets / "MMMU" / "answer_dict_val.json")
    assert len(lines) == len(truth) == 30
    for question in map(json.loads, lines):
        assert question["id"].startswith("val")
        assert question["question"].startswith("<image 1> ")
        options = ast.literal_eval(question["options"])
        assert 3 <= len(options) <= 4
        answer = truth[question["id"]]
        assert answer["question_type"] == question["question_type"] == "multiple-choice"
        assert "ABCD".index(answer["ground_truth"]) < len(options)
        assert (sets / "MMMU" / "images" / question["image_1"]).is_file()


@pytest.mark.parametrize("task", TASKS)
def test_the_same_bytes_twice_and_others_with_another_seed(sets, tmp_path, task):
    prepare_evaluation(task, packaged(30), tmp_path / "again", unread)
    assert files(tmp_path / "again") == files(sets / task)
    prepare_evaluation(task, packaged(30, seed=1), tmp_path / "other", unread)
    assert files(tmp_path / "other") != files(sets / task)


def test_too_much_is_asked_for(tmp_path):
    with pytest.raises(UserError, match="there are 9673 test questions, not 10000"):
        prepare_evaluation("VQAv2", packaged(10_000), tmp_path / "out", unread)
    with pytest.raises(UserError, match="no packaged data for 'ChartQA', only for captioning"):
        prepare_evaluation("ChartQA", packaged(1), tmp_path / "out", unread)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "somewhere", "requires": "x", "limit": 1}, "source: 'somewhere' should be"),
        ({"source": "packaged", "requires": "x", "limit": None}, "limit: a number for a packaged"),
        ({"source": "official", "requires": "x", "limit": 3}, "limit: a number for a packaged"),
    ],
)
def test_bad_params(values, words):
    with pytest.raises(UserError, match=words):
        parse_params(values, EvaluationParams, "data.eval.x")
