"""Evaluation sets against the official formats, and official sets against what may be wrong."""

import ast
import json
import shutil

import pytest
from PIL import Image

from nvlm.data import digits, easy_vqa
from nvlm.data.evaluation import EvaluationParams, prepare_evaluation
from nvlm.errors import UserError
from nvlm.params import parse_params

TASKS = ("captioning", "TextVQA", "VQAv2", "MMMU")
QUESTIONS = {
    "captioning": "captions.json",
    "TextVQA": "questions.json",
    "VQAv2": "questions.json",
    "MMMU": "questions.jsonl",
}


def packaged(limit, seed=0):
    return EvaluationParams(source="packaged", requires="packages", limit=limit, seed=seed)


def official(directory):
    return EvaluationParams(source="official", requires=str(directory), limit=None)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    for task in TASKS:
        prepare_evaluation(task, packaged(30), root / task)
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
    prepare_evaluation(task, packaged(30), tmp_path / "again")
    assert files(tmp_path / "again") == files(sets / task)
    prepare_evaluation(task, packaged(30, seed=1), tmp_path / "other")
    assert files(tmp_path / "other") != files(sets / task)


@pytest.mark.parametrize("task", TASKS)
def test_an_official_set_is_taken_as_it_is(sets, tmp_path, task):
    source = tmp_path / "raw"
    shutil.copytree(sets / task, source)
    (source / "images" / "unused.png").touch()
    prepare_evaluation(task, official(source), tmp_path / "out")
    assert files(tmp_path / "out") == files(sets / task)
    assert (tmp_path / "out" / QUESTIONS[task]).samefile(source / QUESTIONS[task])


@pytest.mark.parametrize("task", TASKS)
def test_an_official_set_with_something_missing(sets, tmp_path, task):
    source = tmp_path / "raw"
    shutil.copytree(sets / task, source)
    lost = sorted((source / "images").iterdir())[3]
    lost.unlink()
    with pytest.raises(UserError, match=f"{lost.name} is missing"):
        prepare_evaluation(task, official(source), tmp_path / "out")
    (source / QUESTIONS[task]).write_text("[3]\n")
    with pytest.raises(UserError, match=rf"not in {task}'s format"):
        prepare_evaluation(task, official(source), tmp_path / "out")
    (source / QUESTIONS[task]).unlink()
    with pytest.raises(UserError, match=f"{QUESTIONS[task]} is missing"):
        prepare_evaluation(task, official(source), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_official_set_may_not_lead_out_of_its_directory(tmp_path):
    source = tmp_path / "raw"
    source.mkdir()
    (tmp_path / "secret.png").touch()
    (source / "questions.json").write_text('[{"image": "../../secret.png"}]')
    with pytest.raises(UserError, match="should lie in images/"):
        prepare_evaluation("VQAv2", official(source), tmp_path / "out")


def test_too_much_is_asked_for(tmp_path):
    with pytest.raises(UserError, match="there are 9673 test questions, not 10000"):
        prepare_evaluation("VQAv2", packaged(10_000), tmp_path / "out")
    with pytest.raises(UserError, match="no task 'ChartQA'"):
        prepare_evaluation("ChartQA", packaged(1), tmp_path / "out")
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
