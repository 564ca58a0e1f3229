"""Benchmarks in their publishers' layouts, by the full scale's configuration: src/prepare_eval.py,
and the questions that a later stage then reads."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from tests.data.pictures import encoded_image

import prepare_eval
from nvlm.errors import UserError
from nvlm.evaluate.ground_truth.readers import read_questions
from nvlm.evaluate.params import TaskParams
from nvlm.params import composed, load_params

COCO = "COCO_val2014_000000262148.jpg"
CAPTIONS = {
    "images": [{"id": 262148, "file_name": COCO}],
    "annotations": [{"id": 1, "image_id": 262148, "caption": "A dog."}],
}
AI2D = {"image": "AI2D_TEST/0.png", "question_id": 0, "question": "?\nA. x\nB. y", "answer": "B"}
HELD = {"bytes": encoded_image("PNG"), "path": None}  # as Parquet files have images
VQA_ANSWERS = [{"answer": "red", "answer_id": number} for number in range(1, 11)]


def pair(kind):
    """VQAv2's and OK-VQA's questions and annotations."""
    asked = {"image_id": 262148, "question": "What colour?", "question_id": 262148000}
    annotation = {"image_id": 262148, "question_id": 262148000, "answers": VQA_ANSWERS}
    return {
        f"{kind}_questions.json": {"data_subtype": "val2014", "questions": [asked]},
        f"{kind}_annotations.json": {"annotations": [annotation]},
    }


# Task -> its files, its images, and (id, images, answers) of its questions.
SETS: dict[str, Any] = {
    "captioning": ({"captions_val2014.json": CAPTIONS}, [COCO], [(262148, [COCO], ["A dog."])]),
    "Flickr30k": (
        {
            "dataset_flickr30k.json": {
                "images": [
                    {"filename": "7.jpg", "imgid": 3, "split": "test", "sentences": [{"raw": "A."}]}
                ]
            }
        },
        ["7.jpg"],
        [(3, ["7.jpg"], ["A."])],
    ),
    "NoCaps": (
        {
            "nocaps_val_4500_captions.json": CAPTIONS
            | {"images": [{"id": 262148, "file_name": "0013ea.jpg", "domain": "in-domain"}]}
        },
        ["0013ea.jpg"],
        [(262148, ["0013ea.jpg"], ["A dog."])],
    ),
    "TextVQA": (
        {
            "TextVQA_0.5.1_val.json": {
                "data": [
                    {
                        "image_id": "0054c9",
                        "question_id": 34602,
                        "question": "what?",
                        "answers": ["nous"] * 10,
                    }
                ]
            }
        },
        ["0054c9.jpg"],
        [(34602, ["0054c9.jpg"], ["nous"] * 10)],
    ),
    "VQAv2": (pair("v2_mscoco_val2014"), [COCO], [(262148000, [COCO], ["red"] * 10)]),
    "OK-VQA": (pair("mscoco_val2014"), [COCO], [(262148000, [COCO], ["red"] * 10)]),
    "ChartQA": (
        {
            f"test_{part}.json": [{"imgname": f"{part}.png", "query": "How many?", "label": "3"}]
            for part in ("augmented", "human")
        },
        ["augmented.png", "human.png"],
        [("test_augmented-0", ["augmented.png"], ["3"]), ("test_human-0", ["human.png"], ["3"])],
    ),
    "DocVQA": (
        {
            "val_v1.0_withQT.json": {
                "data": [
                    {
                        "questionId": 337,
                        "question": "date?",
                        "question_types": ["form"],
                        "image": "documents/xnbl0037_1.png",
                        "answers": ["1/8/93"],
                    }
                ]
            }
        },
        ["documents/xnbl0037_1.png"],
        [(337, ["documents/xnbl0037_1.png"], ["1/8/93"])],
    ),
    "InfoVQA": (
        {
            "InfographicVQA/validation-00000-of-00006.parquet": [
                {
                    "questionId": "98313",
                    "question": "how many?",
                    "answers": ["2%"],
                    "answer_type": ["single span"],
                    "image": HELD,
                    "image_url": "https://example.org/a.jpg",
                    "data_split": "val",
                }
            ]
        },
        [],
        [("98313", ["000000_image.png"], ["2%"])],
    ),
    "AI2D": ({"test.jsonl": [AI2D]}, ["AI2D_TEST/0.png"], [(0, ["AI2D_TEST/0.png"], ["B"])]),
    "AI2D_no_mask": (
        {
            "test.parquet": [
                {"question": "?", "options": ["x", "y"], "answer": "1", "image": HELD},
                {"question": "?", "options": ["1", "0"], "answer": "0", "image": HELD},
            ]
        },
        [],
        [(0, ["000000_image.png"], ["B"]), (1, ["000001_image.png"], ["A"])],
    ),
    "MMMU": (
        {
            "questions.jsonl": [
                {
                    "id": "validation_Math_1",
                    "question": "<image 1> beside <image 2>?",
                    "options": "[]",
                    "image_1": "a.png",
                    "image_2": "b.png",
                    "image_3": None,
                }
            ],
            "answer_dict_val.json": {
                "validation_Math_1": {"question_type": "open", "ground_truth": ["5", "five"]}
            },
        },
        ["a.png", "b.png"],
        [("validation_Math_1", ["a.png", "b.png"], ["5", "five"])],
    ),
    "MathVista": (
        {
            "testmini.json": {
                "1": {
                    "question": "How far?",
                    "query": "Hint: a float.\nQuestion: How far?",
                    "image": "images/1.jpg",
                    "choices": None,
                    "precision": 1.0,
                    "answer": "1.2",
                    "question_type": "free_form",
                    "answer_type": "float",
                    "metadata": {"task": "geometry"},
                }
            }
        },
        ["1.jpg"],
        [("1", ["1.jpg"], ["1.2"])],
    ),
    "OCRBench": (
        {
            "data/test-00000-of-00001.parquet": [
                {
                    "dataset": "IIIT5K",
                    "question": "what?",
                    "question_type": "Regular Text Recognition",
                    "answer": ["CENTRE"],
                    "image": HELD,
                }
            ]
        },
        [],
        [(0, ["000000_image.png"], ["CENTRE"])],
    ),
    "RealWorldQA": (
        {
            "annotations.json": [
                {
                    "image": "7.webp",
                    "question": "Which way?",
                    "question_type": "multi-choice",
                    "choices": ["left", "right"],
                    "correct_choice_index": 1,
                }
            ]
        },
        ["7.webp"],
        [(0, ["7.webp"], ["B"])],
    ),
}


@pytest.fixture(scope="module")
def full_scale():
    return composed(["scale=full"])


@pytest.fixture
def project(tmp_path, monkeypatch, full_scale):
    """The full scale, with every set laid out by hand."""
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load(full_scale)
    for task in params["data"]["eval"]:
        by_hand = {"source": "official", "requires": f"data/raw/eval/{task}", "limit": None}
        params["data"]["eval"][task] = by_hand
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return tmp_path


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(path)


def put(task, root=Path()):
    """The set of ``task`` where the full scale looks for it, and pictures that it doesn't name."""
    files, images, _ = SETS[task]
    source = root / "data/raw/eval" / task
    source.mkdir(parents=True)
    for name, value in files.items():
        write(source / name, value)
    for name in [*images, "unused.png"]:
        picture(source / "images" / name)
    return source


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(value), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in value))
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))


def prepare(task, monkeypatch):
    out = Path("data/eval") / task
    arguments = ["--params", f"data.eval.{task}", "--task", task, "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["prepare_eval.py", *arguments])
    prepare_eval.main()
    return out


def questions_in(directory, task):
    return read_questions(directory, load_params(f"eval.tasks.{task}", TaskParams).ground_truth)


def test_each_task_that_is_scored_can_be_prepared(project):
    params = yaml.safe_load(Path("params.yaml").read_text())
    scored = {name for name, task in params["eval"]["tasks"].items() if task["metric"]}
    assert params["data"]["eval"].keys() == scored == SETS.keys()


@pytest.mark.parametrize("task", SETS)
def test_a_publishers_files_become_questions(project, monkeypatch, task):
    source = put(task)
    out = prepare(task, monkeypatch)
    files, _, expected = SETS[task]
    found = [
        (
            question.id,
            [path.relative_to(out).as_posix().removeprefix("images/") for path in question.images],
            list(question.references),
        )
        for question in questions_in(out, task)
    ]
    assert found == expected
    tables = [name for name in files if name.endswith(".parquet")]
    for name in files.keys() - tables:
        assert (out / name).samefile(source / name)
    unpacked = {"questions.jsonl"} if tables else set()
    taken = {path.name for path in out.rglob("*") if path.is_file()} - files.keys() - unpacked
    assert taken == {Path(name).name for _, names, _ in expected for name in names}


def test_the_hubs_parquet_files_are_unpacked(project, monkeypatch):
    """MMMU as `hf download MMMU/MMMU --include "*/validation-*"` lays it out."""

    def bytes_of(colour, form):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 10), colour).save(buffer, form)
        return {"bytes": buffer.getvalue(), "path": "../../image.png"}

    for subject, answer in (("Art", "B"), ("Math", "A")):
        row = {
            "id": f"validation_{subject}_1",
            "question": "<image 1> and <image 2>?",
            "options": "['x', 'y']",
            "image_1": bytes_of("red", "PNG"),
            "image_2": bytes_of("blue", "JPEG") if subject == "Math" else None,
            "answer": answer,
            "question_type": "multiple-choice",
        }
        path = Path("data/raw/eval/MMMU") / subject / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    out = prepare("MMMU", monkeypatch)
    art, maths = questions_in(out, "MMMU")
    assert (art.id, art.references, art.choices) == ("validation_Art_1", ("B",), ("x", "y"))
    assert [path.name for path in maths.images] == ["000001_image_1.png", "000001_image_2.jpeg"]
    with Image.open(maths.images[1]) as image:
        assert image.format == "JPEG"
        assert image.size == (20, 10)
    assert {path.name for path in out.iterdir()} == {"images", "questions.jsonl"}


def test_mathvista_as_the_hub_has_it(project, monkeypatch):
    """AI4Math/MathVista's testmini: ``image`` names a file of images.zip, which isn't needed."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    row = {
        "pid": "7",
        "question": "Which?",
        "image": "images/7.jpg",
        "decoded_image": {"bytes": buffer.getvalue(), "path": "7.jpg"},
        "choices": ["x", "y"],
        "unit": None,
        "precision": None,
        "answer": "y",
        "question_type": "multi_choice",
        "answer_type": "text",
        "metadata": {"task": "geometry problem solving", "skills": ["arithmetic reasoning"]},
        "query": "Hint: choose.\nQuestion: Which?",
    }
    free = row | {"pid": "8", "choices": None, "question_type": "free_form", "precision": 1.0}
    path = Path("data/raw/eval/MathVista/data/testmini-00000-of-00001-725687bf7a18d64b.parquet")
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist([row, free]), path)
    choice, number = questions_in(prepare("MathVista", monkeypatch), "MathVista")
    assert (choice.id, choice.references, choice.choices) == ("7", ("B",), ("x", "y"))
    assert choice.images[0].name == "000000_decoded_image.png"
    assert choice.category == "geometry problem solving"
    assert (number.references, number.precision) == (("y",), 1)
    assert number.text == "choose.\nQuestion: Which?"


def test_a_fault_in_parquet_files_is_told_of_the_users_directory(project, monkeypatch):
    path = Path("data/raw/eval/RealWorldQA/data/test-00000-of-00001.parquet")
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist([{"question": "?", "answer": "A"}]), path)
    with pytest.raises(UserError, match=r"^data/raw/eval/RealWorldQA \(unpacked\).*'image'"):
        prepare("RealWorldQA", monkeypatch)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="no whole Parquet file"):
        prepare("RealWorldQA", monkeypatch)
    assert not list(Path("data/eval").iterdir())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            shutil.rmtree,
            "holds no ground truth .* put the publisher's files",
        ),
        (lambda source: (source / "test.jsonl").unlink(), "holds no ground truth"),
        (
            lambda source: (source / "test.jsonl").write_text('{"image": '),
            "line 1 isn't valid JSON",
        ),
        (lambda source: (source / "test.jsonl").write_text("[3]\n"), "a record has no 'question"),
        (lambda source: (source / "test.jsonl").write_text("\n"), "holds no questions"),
        (lambda source: (source / "images/AI2D_TEST/0.png").unlink(), "no image 'AI2D_TEST/0.png'"),
        (lambda source: shutil.rmtree(source / "images"), "no image 'AI2D_TEST/0.png'"),
    ],
)
def test_what_is_wrong_is_said_at_once_and_nothing_is_written(project, monkeypatch, spoil, message):
    spoil(put("AI2D"))
    with pytest.raises(UserError, match=message):
        prepare("AI2D", monkeypatch)
    assert not list(Path("data/eval").iterdir())


def test_nothing_is_taken_from_outside(project, monkeypatch):
    source = put("AI2D")
    picture(Path("secret.png"))
    shown = source / "images/AI2D_TEST/0.png"
    shown.unlink()
    shown.symlink_to(Path("secret.png").resolve())
    with pytest.raises(UserError, match=r"0\.png is a link that leads out of"):
        prepare("AI2D", monkeypatch)
    shown.unlink()
    (source / "test.jsonl").write_text(json.dumps(AI2D | {"image": "../../../../secret.png"}))
    with pytest.raises(UserError, match="has no image"):
        prepare("AI2D", monkeypatch)
    assert not list(Path("data/eval").iterdir())


def test_sets_may_share_a_directory_of_images(project, monkeypatch):
    shared = Path("coco/val2014")
    picture(shared / COCO)
    for task in ("captioning", "VQAv2"):
        source = put(task)
        shutil.rmtree(source / "images")
        (source / "images").symlink_to(shared.resolve())
        out = prepare(task, monkeypatch)
        assert (out / "images" / COCO).samefile(shared / COCO)
        assert not (out / "images").is_symlink()
