"""Each dataset of the table, from a fixture in its publisher's layout to what Energon reads."""

import io
import json
import tarfile
import zipfile
from collections import Counter

import pyarrow
import pytest
from click.testing import CliRunner
from megatron.energon import WorkerConfig, get_loader, get_train_dataset
from megatron.energon.tools.info import command as info
from megatron.energon.tools.lint import command as lint
from omegaconf import OmegaConf
from PIL import Image
from pyarrow import parquet
from tests.data.published.conversations import CONVERSATIONS
from tests.data.published.documents import DOCUMENTS
from tests.data.published.layout import JPEG
from tests.data.published.natural import NATURAL
from tests.data.published.reading import READING

from nvlm.data.published.layouts import Layout, read_layout
from nvlm.data.records import BadRecord
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import UserError
from nvlm.params import parse_params

pytestmark = pytest.mark.filterwarnings("ignore")

DATASETS = {**NATURAL, **DOCUMENTS, **CONVERSATIONS, **READING}
TABLE = OmegaConf.load("conf/data/layouts.yaml").layouts


def layout(name):
    return parse_params(TABLE[name], Layout, f"data.layouts.{name}")


def test_every_layout_has_a_fixture():
    assert sorted(TABLE) == sorted(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_contents_and_images(name, tmp_path):
    published = DATASETS[name]
    published.lay_out(tmp_path)
    records = list(read_layout(layout(name), tmp_path))
    assert [getattr(record, "content", record) for record in records] == published.contents
    expected = published.images or [[JPEG]] * len(records)
    if name != "pdfa_eng_wds":
        assert [[image.read() for image in record.images] for record in records] == expected


@pytest.mark.parametrize("name", DATASETS)
def test_energon_reads_what_was_prepared(name, tmp_path):
    DATASETS[name].lay_out(tmp_path / "raw")
    params = DatasetParams(
        source="published",
        requires=str(tmp_path / "raw"),
        layout=layout(name),
        samples=None,
        samples_per_shard=10,
        max_skipped=0.0,
    )
    prepare_dataset(params, tmp_path / "out", tmp_path / "metrics.json")
    for command in (lint, info):
        done = CliRunner().invoke(command, [str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
    dataset = get_train_dataset(
        tmp_path / "out",
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
    )
    sample = next(iter(get_loader(dataset)))
    assert type(sample).__name__ == type(DATASETS[name].contents[0]).sample_type


def test_questions_of_a_dataset_that_is_too_large_are_thinned_out(tmp_path):
    pairs = [{"image_index": 5, "question_string": f"{n}?", "answer": "Yes"} for n in range(17)]
    (tmp_path / "qa_pairs_V2.json").write_text(json.dumps({"qa_pairs": pairs}))
    (tmp_path / "png").mkdir()
    asked = [record.content.question for record in read_layout(layout("plotqa"), tmp_path)]
    assert asked == ["0?", "8?", "16?"]


def test_of_many_questions_about_a_picture_some_are_kept(tmp_path):
    def asked(count):
        turns = [{"user": f"{n}?", "assistant": str(n), "source": "x"} for n in range(count)]
        row = {"images": [{"bytes": JPEG, "path": None}], "texts": turns}
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "0.parquet")
        (record,) = read_layout(layout("interleaved"), tmp_path)
        return [text for who, text in record.content.turns if who == "gpt"]

    assert asked(16) == [str(n) for n in range(16)]
    assert asked(48) == [str(n) for n in range(0, 48, 3)]


def test_the_right_option_may_stand_anywhere(tmp_path):
    pairs = [
        {"qa_id": n, "question": f"{n}?", "answer": "right", "multiple_choices": ["a", "b", "c"]}
        for n in range(400)
    ]
    images = [{"filename": "0.jpg", "split": "train", "qa_pairs": pairs}]
    (tmp_path / "dataset_v7w_telling.json").write_text(json.dumps({"images": images}))
    (tmp_path / "images").mkdir()
    choices = [record.content for record in read_layout(layout("visual7w"), tmp_path)]
    assert all(choice.choices[choice.correct] == "right" for choice in choices)
    places = Counter(choice.correct for choice in choices)
    assert all(70 < places[place] < 130 for place in range(4))  # 100 each, give or take 3 sigma


def test_conversations_whose_image_field_has_another_name(tmp_path):
    texts = [{"user": "Hi", "assistant": "Hello"}]
    rows = [{"picture": {"bytes": JPEG, "path": None}, "texts": texts}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    words = (
        "no row has the field 'images', which the layout names as image: the rows have picture, "
    )
    for limit in (None, 1):
        with pytest.raises(UserError, match=words):
            list(read_layout(layout("interleaved"), tmp_path, limit=limit))
    # A second file in which rows have it: the first is conversations about nothing.
    images = [{"images": [{"bytes": JPEG, "path": None}], "texts": texts}]
    parquet.write_table(pyarrow.Table.from_pylist(images), tmp_path / "1.parquet")
    records = list(read_layout(layout("interleaved"), tmp_path))
    assert [len(record.images) for record in records] == [0, 1]


def test_pictures_of_two_sources(tmp_path):
    """TallyQA's are Visual Genome's and COCO's: the roots of both are looked in, in order."""
    DATASETS["tallyqa"].lay_out(tmp_path / "vg")
    (tmp_path / "vg/train2014").rename(tmp_path / "coco")
    (tmp_path / "coco").rename(tmp_path / "moved")
    (tmp_path / "coco").mkdir()
    (tmp_path / "moved").rename(tmp_path / "coco/train2014")
    records = read_layout(layout("tallyqa"), tmp_path / "vg", tmp_path / "coco")
    assert [record.images[0].read() for record in records] == [JPEG, JPEG]
    with pytest.raises(UserError, match="coco/train2017 is missing: put the dataset's images"):
        list(read_layout(layout("vsr"), tmp_path / "vg", tmp_path / "coco"))


def test_images_may_stay_in_archives(tmp_path):
    published = DATASETS["llava_158k"]
    published.lay_out(tmp_path)
    (tmp_path / "train2017" / "000000033471.jpg").unlink()
    (tmp_path / "train2017").rmdir()
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as archive:
        archive.writestr("train2017/000000033471.jpg", JPEG)
    with tarfile.open(tmp_path / "train2017.tar", "w") as archive:
        entry = tarfile.TarInfo("./train2017/000000033471.jpg")
        entry.size = len(JPEG)
        archive.addfile(entry, io.BytesIO(JPEG))
    for name, prefix in (("train2017.zip", ""), ("train2017.tar", ""), ("train2017.zip", "./")):
        image = f"{prefix}train2017/{{image}}"
        given = OmegaConf.merge(TABLE.llava_158k, {"images": [name], "image": image})
        (record,) = read_layout(parse_params(given, Layout, "x"), tmp_path)
        assert record.images[0].read() == JPEG


def test_pages_of_documents_are_rendered(tmp_path):
    DATASETS["pdfa_eng_wds"].lay_out(tmp_path)
    for number, record in enumerate(read_layout(layout("pdfa_eng_wds"), tmp_path)):
        with Image.open(io.BytesIO(record.images[0].read())) as page:
            assert page.height == 2048
            assert page.getpixel((600, 1000)) == pytest.approx((60 * (number + 1),) * 3, abs=2)
        left, top, width, height = record.annotation(1000, 2000)["boxes"][0]
        assert (left, top, width, height) == pytest.approx((250, 1000, 500, 200))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": {"caption": "title"}}, "the field 'title' is missing"),
        ({"image": "{nothing}.jpg"}, "the field 'nothing' is missing"),
        ({"image": "{caption:012d}.jpg"}, "Unknown format code"),
        ({"key": "image_id"}, "a second record of the key '9'"),
    ],
)
def test_rows_that_make_no_record_are_told(change, words, tmp_path):
    DATASETS["coco"].lay_out(tmp_path)
    given = parse_params(OmegaConf.merge(TABLE.coco, change), Layout, "x")
    last = list(read_layout(given, tmp_path))[-1]
    assert isinstance(last, BadRecord)
    assert words in last.reason
    assert last.name == "captions_train2017.json, 1"


def test_a_row_without_its_one_partner_is_told(tmp_path):
    published = DATASETS["vqav2"]
    published.lay_out(tmp_path)
    truths = tmp_path / "v2_mscoco_train2014_annotations.json"
    (truth,) = json.loads(truths.read_text())["annotations"]
    for partners in ([], [truth, truth]):
        truths.write_text(json.dumps({"annotations": partners}))
        (record,) = read_layout(layout("vqav2"), tmp_path)
        assert isinstance(record, BadRecord)
        assert f"{len(partners)} rows of v2_mscoco" in record.reason


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("annotations/captions_train2017.json", None, "is missing: put the dataset's annotations"),
        ("annotations/captions_train2017.json", "{}", "has no 'annotations'"),
        ("annotations/captions_train2017.json", '{"annotations": [{"id": 1}', "no valid JSON"),
        ("annotations/captions_train2017.json", '{"annotations": [{"id"', "no valid JSON"),
        ("annotations/captions_train2017.json", '{"annotations": {"a" 3}}', "no valid JSON"),
    ],
)
def test_broken_annotation_files_are_named(name, text, words, tmp_path):
    DATASETS["coco"].lay_out(tmp_path)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        list(read_layout(layout("coco"), tmp_path))
    assert "captions_train2017" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "video"}, "kind: 'video' should be one of"),
        ({"boxes": "circles"}, "boxes: 'circles' should be one of"),
        ({"image": ""}, "image: a caption needs one"),
        ({"colour": "red"}, "colour"),
        ({"every": 0}, "every: from 1"),
        ({"turns": 3}, "turns: a caption has none"),
    ],
)
def test_bad_layouts(change, words):
    with pytest.raises(UserError, match=words):
        parse_params(OmegaConf.merge(TABLE.coco, change), Layout, "data.layouts.coco")
