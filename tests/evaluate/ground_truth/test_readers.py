"""Each publisher's own file, a few records long."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tests.evaluate import fixtures

from nvlm.errors import UserError
from nvlm.evaluate.params import TaskParams
from nvlm.evaluate.question import Question
from nvlm.params import composed, parse_params


def fields_of(task: str) -> dict[str, str]:
    """As configured, so that the configuration is tested as well."""
    tasks = OmegaConf.create(composed(["scale=full"])).eval.tasks
    return parse_params(tasks[task], TaskParams, task).ground_truth.fields


def read_task(directory: Path, task: str) -> list[Question]:
    return fixtures.read(directory, "records", **fields_of(task))


def test_chartqa_two_files_are_its_two_parts_and_places_are_ids(tmp_path: Path):
    for name in ("1.png", "2.png"):
        fixtures.picture(tmp_path, name)
    human = [{"imgname": "1.png", "query": "How many?", "label": "3"}]
    augmented = [{"imgname": "2.png", "query": "What?", "label": "Red"}] * 2
    fixtures.write_json(tmp_path / "test_human.json", human)
    fixtures.write_json(tmp_path / "test_augmented.json", augmented)
    questions = read_task(tmp_path, "ChartQA")
    assert [question.id for question in questions] == [
        "test_augmented-0", "test_augmented-1", "test_human-0",
    ]  # fmt: skip
    assert questions[2].references == ("3",)
    assert questions[2].category == "test_human"


def test_docvqa_takes_images_without_their_folder(tmp_path: Path):
    fixtures.picture(tmp_path, "xnbl0037_1.png")
    record = {
        "questionId": 337,
        "question": "what is the date?",
        "question_types": ["handwritten", "form"],
        "image": "documents/xnbl0037_1.png",
        "docId": 279,
        "answers": ["1/8/93"],
    }
    fixtures.write_json(tmp_path / "val_v1.0_withQT.json", {"data": [record]})
    (question,) = read_task(tmp_path, "DocVQA")
    assert (question.id, question.category) == (337, "handwritten, form")
    assert question.images == (tmp_path / "images/xnbl0037_1.png",)


def test_ai2d_json_lines(tmp_path: Path):
    fixtures.picture(tmp_path, "0.png")
    record = {"image": "data/AI2D_TEST/0.png", "question": "?\nA. x", "answer": "A"}
    lines = [json.dumps(record | {"question_id": number}) for number in range(2)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    assert [question.id for question in read_task(tmp_path, "AI2D")] == [0, 1]


def test_ocrbench_kinds_and_datasets(tmp_path: Path):
    fixtures.picture(tmp_path, "IIIT5K/a.png")
    kind = {"question_type": "Regular Text Recognition"}
    base = {"image": "IIIT5K/a.png", "question": "what?", **kind}
    records = [
        base | {"dataset": "IIIT5K", "answer": ["CENTRE"]},
        base | {"dataset": "HME100k", "answer": "x", "question_type": "Formula"},
    ]
    fixtures.write_json(tmp_path / "OCRBench.json", records)
    first, second = read_task(tmp_path, "OCRBench")
    assert (first.id, first.category) == (0, "Regular Text Recognition")
    assert (second.references, second.dataset) == (("x",), "HME100k")


def realworldqa(directory: Path, **changed: Any) -> Path:
    fixtures.picture(directory, "7.webp")
    choice = {
        "image": "7.webp",
        "question": "Which way?",
        "question_type": "multi-choice",
        "choices": ["left", "right"],
        "correct_choice_index": 1,
    }
    word = {"image": "7.webp", "question": "Is it?", "question_type": "open", "answer": "Yes"}
    fixtures.write_json(directory / "annotations.json", [choice | changed, word])
    return directory


def test_realworldqa_letters_and_words(tmp_path: Path):
    chosen, word = read_task(realworldqa(tmp_path), "RealWorldQA")
    assert (chosen.choices, chosen.references) == (("left", "right"), ("B",))
    assert (word.choices, word.references) == ((), ("Yes",))


@pytest.mark.parametrize("right", [1, "1", "B", "right"])
def test_a_right_choice_as_index_digits_letter_or_text(tmp_path: Path, right: object):
    chosen, _ = read_task(realworldqa(tmp_path, correct_choice_index=right), "RealWorldQA")
    assert chosen.references == ("B",)


def test_digits_are_an_index_even_where_options_are_numbers(tmp_path: Path):
    numbers = {"choices": ["1", "2", "0"], "correct_choice_index": "1"}
    chosen, _ = read_task(realworldqa(tmp_path, **numbers), "RealWorldQA")
    assert chosen.references == ("B",)


@pytest.mark.parametrize("index", [2, -1, None, True, "2", "C", "behind", ["B"]])
def test_a_right_choice_that_is_none_is_named(tmp_path: Path, index: object):
    with pytest.raises(UserError, match="question 0: "):
        read_task(realworldqa(tmp_path, correct_choice_index=index), "RealWorldQA")


def test_a_directory_without_a_file_of_questions_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"must hold a \.json or \.jsonl file"):
        fixtures.read(tmp_path, "records", question="q", image="i", answers="a")


def test_okvqa_pairs_questions_with_annotations(tmp_path: Path):
    fixtures.picture(tmp_path, "COCO_val2014_000000297147.jpg")
    asked = {"image_id": 297147, "question": "What sport?", "question_id": 2971475}
    questions = {"data_subtype": "val2014", "questions": [asked]}
    answers = [{"answer": answer, "answer_id": 1} for answer in ["race"] * 6 + ["motocross"] * 4]
    annotation = {"image_id": 297147, "question_id": 2971475, "answers": answers}
    fixtures.write_json(tmp_path / "OpenEnded_mscoco_val2014_questions.json", questions)
    truth = tmp_path / "mscoco_val2014_annotations.json"
    fixtures.write_json(truth, {"annotations": [annotation | {"answer_type": "other"}]})
    (question,) = fixtures.read(tmp_path, "vqav2")
    assert question.images[0].name == "COCO_val2014_000000297147.jpg"
    assert question.references == ("race",) * 6 + ("motocross",) * 4
    assert question.category == "other"
    fixtures.write_json(truth, {"annotations": []})
    with pytest.raises(UserError, match="question 2971475 has no answers"):
        fixtures.read(tmp_path, "vqav2")


def test_flickr30k_takes_the_test_images_of_karpathys_split(tmp_path: Path):
    fixtures.picture(tmp_path, "1007129816.jpg")
    sentences = [{"raw": "The man wears a hat ."}, {"raw": "A man."}]
    image = {"filename": "1007129816.jpg", "imgid": 67, "sentences": sentences}
    train = {"filename": "gone.jpg", "imgid": 1, "sentences": [], "split": "train"}
    published = {"images": [image | {"split": "test"}, train], "dataset": "flickr30k"}
    fixtures.write_json(tmp_path / "dataset_flickr30k.json", published)
    (question,) = fixtures.read(tmp_path, "karpathy")
    assert (question.id, question.references) == (67, ("The man wears a hat .", "A man."))


def test_nocaps_images_have_domains(tmp_path: Path):
    path = fixtures.coco(tmp_path) / "captions_val2014.json"
    published = json.loads(path.read_text())
    for image, domain in zip(published["images"], ("in-domain", "out-domain"), strict=True):
        image["domain"] = domain
    path.write_text(json.dumps(published))
    assert [q.category for q in fixtures.read(tmp_path, "coco")] == ["in-domain", "out-domain"]


def mathvista(directory: Path, **changed: Any) -> Path:
    fixtures.picture(directory, "1.jpg")
    free = {
        "question": "How far?",
        "image": "images/1.jpg",
        "choices": None,
        "precision": 1.0,
        "answer": "1.2",
        "question_type": "free_form",
        "answer_type": "float",
        "metadata": {"task": "textbook question answering"},
        "query": "Hint: Answer with one decimal.\nQuestion: How far?",
    }
    choice = free | {
        "choices": ["145°", "35°"],
        "answer": "35°",
        "question_type": "multi_choice",
        "answer_type": "text",
        "precision": None,
    }
    fixtures.write_json(directory / "testmini.json", {"1": free, "2": choice | changed})
    return directory


def test_mathvista_asks_the_query_or_the_question_and_its_choices(tmp_path: Path):
    free, choice = fixtures.read(mathvista(tmp_path), "mathvista")
    assert free.text == "Answer with one decimal.\nQuestion: How far?"
    assert (free.id, free.answer_type, free.precision) == ("1", "float", 1)
    assert free.category == "textbook question answering"
    assert (choice.text, choice.references) == ("How far?", ("B",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": "36°"}, "problem 2: the answer '36°' is none of the choices"),
        ({"precision": "x"}, "problem 2: 'precision' must be a number"),
        ({"answer": None}, "problem 2: a list of answers is expected"),
    ],
)
def test_a_faulty_problem_is_named(tmp_path: Path, changed: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        fixtures.read(mathvista(tmp_path, **changed), "mathvista")


def test_mmmu_dev_has_its_answers_in_the_records(tmp_path: Path):
    fixtures.mmmu(tmp_path)
    (tmp_path / "answer_dict_val.json").unlink()
    path = tmp_path / "questions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"image_2": "validation_Math_1.png", "image_3": None}
    lines[2]["answer"] = "['5', 'five']"
    path.write_text("\n".join(map(json.dumps, lines)))
    chosen, _, opened = fixtures.read(tmp_path, "mmmu")
    assert chosen.references == ("B",)
    assert [image.name for image in chosen.images] == [
        "validation_Art_Theory_1.png", "validation_Math_1.png",
    ]  # fmt: skip
    assert opened.references == ("5", "five")


def test_a_folder_of_images_and_a_prompt(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no prompt\.txt"):
        fixtures.read(tmp_path, "folder")
    (tmp_path / "prompt.txt").write_text("What is it?\n")
    with pytest.raises(UserError, match="holds no image"):
        fixtures.read(tmp_path, "folder")
    for name in ("b.PNG", "a.jpg", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    questions = fixtures.read(tmp_path, "folder")
    assert [(question.id, question.text) for question in questions] == [
        ("a.jpg", "What is it?"), ("b.PNG", "What is it?"),
    ]  # fmt: skip
