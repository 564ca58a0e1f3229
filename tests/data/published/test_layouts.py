"""Each dataset of the table, from a fixture in its publisher's layout to what Energon reads."""

import io
import json
import tarfile
import zipfile

import pytest
from click.testing import CliRunner
from megatron.energon import WorkerConfig, get_loader, get_train_dataset
from megatron.energon.tools.info import command as info
from megatron.energon.tools.lint import command as lint
from omegaconf import OmegaConf
from PIL import Image
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
FULL = OmegaConf.create(
    {
        "data": OmegaConf.merge(
            OmegaConf.load("conf/data/layouts.yaml"), OmegaConf.load("conf/data/full.yaml")
        )
    }
)


OmegaConf.resolve(FULL)


def layout(name):
    return parse_params(TABLE[name], Layout, f"data.layouts.{name}")


def test_every_layout_has_a_fixture():
    assert sorted(TABLE) == sorted(DATASETS)


@pytest.mark.parametrize("group", ["pretrain", "sft"])
def test_every_dataset_of_the_paper_has_valid_parameters(group):
    names = FULL.data[group]
    assert len(names) == {"pretrain": 18, "sft": 97}[group]
    # Each has its share of the blend, and nothing else has.
    assert FULL.data.blends[group].keys() == names.keys()
    for name in names:
        parse_params(names[name], DatasetParams, f"data.{group}.{name}")
    if group == "pretrain":
        assert {names[name].source for name in names} == {"published"}


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
    ],
)
def test_bad_layouts(change, words):
    with pytest.raises(UserError, match=words):
        parse_params(OmegaConf.merge(TABLE.coco, change), Layout, "data.layouts.coco")
