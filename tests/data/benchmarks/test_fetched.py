"""Benchmarks as the full scale fetches them: from the sources' directories to questions."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet
from tests.data.benchmarks.test_official import (
    COCO,
    HELD,
    SETS,
    picture,
    prepare,
    questions_in,
    write,
)
from tests.data.pictures import encoded_image

from nvlm.errors import UserError
from nvlm.params import composed

CHOICE = {"id": "validation_Math_1", "question": "<image 1>?", "options": "['x', 'y']"}
# Task -> rows of its Parquet files, and (id, answers) of its questions.
ROWS: dict[str, tuple[dict[str, Any], Any]] = {
    "DocVQA": (
        {
            "questionId": "337",
            "question": "date?",
            "question_types": ["form"],
            "image": HELD,
            "answers": ["1/8/93"],
        },
        ("337", ("1/8/93",)),
    ),
    "MMMU": (
        {**CHOICE, "image_1": HELD, "answer": "B", "question_type": "multiple-choice"},
        ("validation_Math_1", ("B",)),
    ),
    "MathVista": (
        {
            "pid": "7",
            "question": "Which?",
            "image": "images/7.jpg",
            "decoded_image": HELD,
            "choices": ["x", "y"],
            "precision": None,
            "answer": "y",
            "question_type": "multi_choice",
            "answer_type": "text",
            "metadata": {"task": "geometry"},
            "query": "Which?",
        },
        ("7", ("B",)),
    ),
    "RealWorldQA": (
        {"image": HELD, "question": "Which way?\nA. left\nB. right", "answer": "B"},
        (0, ("B",)),
    ),
}
# What hub and web files of these sources are called, where it is not what the sets above have.
NAMES = {
    "AI2D": {"test.jsonl": "ai2d_test_vlmevalkit.jsonl"},
    "VQAv2": {"v2_mscoco_val2014_questions.json": "v2_OpenEnded_mscoco_val2014_questions.json"},
    "OK-VQA": {"mscoco_val2014_questions.json": "OpenEnded_mscoco_val2014_questions.json"},
}
OTHER_SPLITS = {
    "DocVQA": ["DocVQA/test-00000.parquet", "InfographicVQA/validation-00000.parquet"],
    "MMMU": ["Math/dev-00000.parquet", "Math/test-00000.parquet"],
    "MathVista": ["data/test-00000.parquet"],
}


@pytest.fixture(scope="module")
def full_scale():
    return composed(["scale=full"])


@pytest.fixture
def sets(tmp_path, monkeypatch, full_scale):
    """``data.eval``, with a manifest of each source in place."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(full_scale)
    sets = yaml.safe_load(full_scale)["data"]["eval"]
    for values in sets.values():
        for manifest in (values["requires"], values["images"]):
            Path(manifest).with_suffix("").mkdir(parents=True, exist_ok=True)
            Path(manifest).write_text(json.dumps({"source": manifest, "files": []}))
    return sets


def lay_out(task, values):
    """The files of ``task`` where fetching leaves them; what is expected of them."""
    source, images = (Path(values[key]).with_suffix("") for key in ("requires", "images"))
    if task in ROWS:
        row, expected = ROWS[task]
        for pattern in values["truth"]:
            name = pattern.replace("*/", "Math/").replace("*", "00000-of-00001")
            write(source / name, [row])
        for name in OTHER_SPLITS.get(task, []):
            write(source / name, [row | {"question": "of another split"}])
        return [expected]
    files, names, questions = SETS[task]
    for name, content in files.items():
        fetched = NAMES.get(task, {}).get(name, name)
        (pattern,) = [x for x in values["truth"] if matches(fetched, x)]
        write(source / (pattern if "*" not in pattern else fetched), content)
    for name in names:
        if not values["pictures"].endswith(".parquet"):
            picture(images / values["pictures"] / Path(name).name)
    return [(question_id, tuple(answers)) for question_id, _, answers in questions]


def matches(name, pattern):
    return Path(name).match(pattern) or Path(name).name == Path(pattern).name


@pytest.mark.parametrize("task", sorted(SETS))
def test_what_is_fetched_becomes_questions(sets, monkeypatch, task):
    expected = lay_out(task, sets[task])
    if task == "Flickr30k":
        images = Path(sets[task]["images"]).with_suffix("")
        rows = [{"image": HELD, "filename": name, "caption": ["A."]} for name in ("7.jpg", "8.jpg")]
        write(images / "data/test-00000-of-00009.parquet", rows)
    questions = questions_in(prepare(task, monkeypatch), task)
    assert [(question.id, question.references) for question in questions] == expected
    assert all(image.is_file() for question in questions for image in question.images)


def test_of_flickrs_pictures_those_of_the_test_split_are_kept(sets, monkeypatch):
    source = Path(sets["Flickr30k"]["requires"]).with_suffix("")
    lay_out("Flickr30k", sets["Flickr30k"])
    jpeg = encoded_image("JPEG")
    rows = [
        {"image": {"bytes": jpeg, "path": "1.jpg"}, "filename": name} for name in ("7.jpg", "8.jpg")
    ]
    write(source / "data/test-00000-of-00009.parquet", rows)
    out = prepare("Flickr30k", monkeypatch)
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == {"7.jpg": jpeg}
    for name in ("../7.jpg", ""):
        table = pyarrow.Table.from_pylist([{"image": HELD, "filename": name}])
        parquet.write_table(table, source / "data/test-00000-of-00009.parquet")
        with pytest.raises(UserError, match="each row needs one image and its name in 'filename'"):
            prepare("Flickr30k", monkeypatch)


def test_pictures_of_another_source_are_linked_and_stay_inside(sets, monkeypatch):
    lay_out("VQAv2", sets["VQAv2"])
    shared = Path("data/raw/coco_2014/val2014") / COCO
    out = prepare("VQAv2", monkeypatch)
    assert (out / "images" / COCO).samefile(shared)
    assert not (out / "images").is_symlink()
    picture(Path("secret.png"))
    shared.unlink()
    shared.symlink_to(Path("secret.png").resolve())
    with pytest.raises(UserError, match=r"is a link that leads out of data/raw/coco_2014/val2014"):
        prepare("VQAv2", monkeypatch)
    shared.unlink()
    with pytest.raises(UserError, match=r"^data/raw/coco_2014/val2014 has no image 'COCO_val2014"):
        prepare("VQAv2", monkeypatch)


def test_a_set_that_cannot_be_had_is_an_error_that_says_why(sets, monkeypatch):
    missing = {"source": "x", "missing": "VQAv2 can't be fetched: it is gone"}
    Path("data/raw/coco_2014.json").write_text(json.dumps(missing))
    with pytest.raises(UserError, match=r"^data\.eval\.VQAv2: VQAv2 can't be fetched: it is gone"):
        prepare("VQAv2", monkeypatch)
    Path("data/raw/coco_2014.json").unlink()
    with pytest.raises(UserError, match="run dvc repro fetch_data@coco_2014"):
        prepare("VQAv2", monkeypatch)
