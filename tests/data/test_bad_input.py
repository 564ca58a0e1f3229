"""Odd and hostile files: what is stored of them, what is left out, and with which words."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from itertools import islice

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.data.pictures import encoded_image

from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.params import LoaderParams
from nvlm.data.published.directory import read_records
from nvlm.data.published.files import FileStore
from nvlm.data.published.layouts import Layout, read_layout
from nvlm.data.records import BadRecord, BadRecordError
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.images import storable
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")

JPEG = encoded_image("JPEG", size=(160, 120))


@pytest.fixture
def prepared(directory_of_records, tmp_path):
    """A function that prepares a dataset of captions and returns (stored parts, skipped)."""

    def prepare(images, captions=None, max_skipped=0.9):
        names = list(images)
        captions = captions or names
        directory = directory_of_records(
            [
                {"image": f"images/{name}", "caption": caption}
                for name, caption in zip(names, captions, strict=True)
            ],
            images,
        )
        params = DatasetParams(
            source="records",
            requires=str(directory),
            samples=None,
            samples_per_shard=10,
            max_skipped=max_skipped,
        )
        out = tmp_path / "sft" / "odd"
        prepare_dataset(params, out, tmp_path / "metrics.json")
        parts = {}
        for shard in out.glob("*.tar"):
            with tarfile.open(shard) as tar:
                for member in tar:
                    extracted = tar.extractfile(member)
                    assert extracted is not None
                    parts[member.name] = extracted.read()
        return parts, [json.loads(line) for line in (out / "skipped.jsonl").open()]

    return prepare


@pytest.fixture
def first_tiles(tmp_path, tokenizer, architecture):
    """The tiles (N, 3, 48, 48) and the text of the first sample that the loader makes."""

    def first():
        params = LoaderParams(
            blend={"odd": 1.0},
            sequence_length=1000,
            packing=False,
            template="chatml",
            max_tiles=6,
            thumbnail=True,
            tile_tags=True,
            workers=0,
            shuffle_buffer=1,
            seed=0,
        )
        loader = build_loader(
            tmp_path / "sft",
            params,
            tokenizer=tokenizer,
            architecture=architecture,
            rows=1,
            rank=0,
            world=1,
        )
        (batch,) = islice(loader, 1)
        return batch.tiles.numpy(), tokenizer.decode(batch.input_ids[0][batch.visual_index[0] < 0])

    return first


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "progressive"])
def test_a_truncated_image(form, share):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    buffer = io.BytesIO()
    if form == "progressive":
        image.save(buffer, "JPEG", progressive=True)
    else:
        image.save(buffer, form)
    data = buffer.getvalue()
    assert storable(data).width == 120
    with pytest.raises(BadRecordError):
        storable(data[: int(len(data) * share)])


def test_a_zero_byte_file(prepared):
    parts, skipped = prepared({"good.jpg": JPEG, "empty.jpg": b""})
    assert len(parts) == 2
    assert skipped == [
        {"record": "images/empty.jpg (images/empty.jpg)", "reason": "the image file is empty"}
    ]


def test_a_cmyk_image(prepared, first_tiles):
    colours = Image.new("RGB", (48, 48), (200, 30, 90)).convert("CMYK")
    buffer = io.BytesIO()
    colours.save(buffer, "JPEG", quality=95)
    parts, _ = prepared({"print.jpg": buffer.getvalue()})
    assert parts["000000000.jpg"] == buffer.getvalue()
    tiles, _ = first_tiles()
    assert tiles.shape == (1, 3, 48, 48)
    assert np.abs(tiles[0].astype(int).mean((1, 2)) - (200, 30, 90)).max() < 12


def test_a_palette_image(prepared, first_tiles):
    picture = encoded_image("PNG", "P", size=(48, 48))
    parts, _ = prepared({"few.png": picture})
    assert parts["000000000.png"] == picture
    tiles, _ = first_tiles()
    with Image.open(io.BytesIO(picture)) as image:
        assert (tiles[0] == np.asarray(image.convert("RGB")).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_rotation(form, orientation, prepared, first_tiles):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded_image(form, size=(96, 48), exif=exif)
    parts, _ = prepared({"turned": turned})
    (name,) = (name for name in parts if not name.endswith(".json"))
    with Image.open(io.BytesIO(parts[name])) as stored, Image.open(io.BytesIO(turned)) as image:
        assert stored.getexif().get(0x0112, 1) == 1
        assert stored.size == ((96, 48) if orientation == 3 else (48, 96))
        upright = np.asarray(ImageOps.exif_transpose(image))
        assert (np.asarray(stored) == upright).all()
    tiles, _ = first_tiles()
    assert len(tiles) == 3


def test_upright_exif_goes_through_untouched():
    exif = Image.Exif()
    exif[0x0112] = 1
    picture = encoded_image("JPEG", exif=exif)
    assert storable(picture).data == picture


def test_a_panorama_of_30000_pixels(prepared, first_tiles):
    panorama = encoded_image("JPEG", size=(30_000, 300))
    parts, skipped = prepared({"wide.jpg": panorama})
    assert not skipped
    assert parts["000000000.jpg"] == panorama
    tiles, text = first_tiles()
    assert len(tiles) == 7
    assert "<tile_6>" in text


def test_a_decompression_bomb(prepared):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")
    parts, skipped = prepared({"good.jpg": JPEG, "bomb.png": bomb})
    assert len(parts) == 2
    assert "decompression bomb" in skipped[0]["reason"]


def test_a_decompression_bomb_in_a_shard(prepared, first_tiles, monkeypatch):
    # As where a shard comes from elsewhere: it is skipped, and training goes on.
    prepared({"large.jpg": JPEG, "small.jpg": encoded_image("JPEG", size=(48, 48))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    tiles, text = first_tiles()
    assert len(tiles) == 1
    assert "small.jpg" in text


def rows_of(tmp_path, rows):
    """What ``rows`` about one picture become: contents, and where and why there is none."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        f"{record.name}: {record.reason}" if isinstance(record, BadRecord) else record.content
        for record in read_records(tmp_path)
    ]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"caption": "x"}, "image"),
        ({"image": "a.jpg"}, "question"),
        ({"image": "a.jpg", "question": "x?"}, "answers"),
        ({"image": "a.jpg", "question": "x?", "choices": ["x", "y"]}, "correct"),
    ],
)
def test_a_missing_annotation_field(row, field, tmp_path):
    reason, fine = rows_of(tmp_path, [row, {"image": "a.jpg", "caption": "x"}])
    assert reason == f"annotations.jsonl, line 1: the field {field!r} is missing ({field!r})"
    assert fine.caption == "x"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "x?", "answers": ""}, "the answer is empty"),
        ({"question": "x?", "answers": []}, "no answer"),
        ({"question": "x?", "answers": ["  \n"]}, "the answer is empty"),
        ({"caption": "  "}, "the caption is empty"),
        ({"caption": None}, "'None' is no text"),
        ({"turns": [{"from": "human", "value": "x?"}]}, "without an answer"),
        ({"turns": [{"from": "human", "value": "x?"}, {"from": "gpt", "value": ""}]}, "is empty"),
    ],
)
def test_an_empty_answer(row, words, tmp_path):
    (reason,) = rows_of(tmp_path, [{"image": "a.jpg", **row}])
    assert words in reason


def test_duplicate_keys(prepared, tmp_path):
    # Names of files may repeat: a stored key is the place of the record in the dataset.
    (tmp_path / "coco" / "images").mkdir(parents=True)
    (tmp_path / "coco" / "images" / "000000000001.jpg").write_bytes(JPEG)
    rows = [{"id": number, "image_id": 1, "caption": "x"} for number in (5, 6, 5)]
    (tmp_path / "coco" / "captions.json").write_text(json.dumps(rows))
    layout = Layout(
        kind="caption",
        annotations=["captions.json"],
        images=["images"],
        image="{image_id:012d}.jpg",
        fields={"caption": "caption"},
        key="id",
    )
    params = DatasetParams(
        source="published",
        layout=layout,
        requires=str(tmp_path / "coco"),
        samples=None,
        samples_per_shard=10,
        max_skipped=0.5,
    )
    prepare_dataset(params, tmp_path / "out", tmp_path / "metrics.json")
    (line,) = (tmp_path / "out" / "skipped.jsonl").open()
    assert json.loads(line) == {
        "record": "captions.json, 2",
        "reason": "a second record of the key '5'",
    }
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert len(set(tar.getnames())) == 4


def test_an_answer_containing_a_mark_of_an_image(prepared):
    with pytest.raises(UserError, match=r"1 of 1 records cannot be used.*<image>"):
        prepared({"a.jpg": JPEG}, captions=["<image> is the mark"])


@pytest.mark.parametrize(
    "turns",
    [
        [("human", "<image> and <image>"), ("gpt", "two marks, one image")],
        [("human", "<image>"), ("human", "again")],
        [("human", "<image>"), ("gpt", "")],
    ],
)
def test_conversations_that_do_not_add_up(turns, tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    row = {"image": "a.jpg", "turns": [{"from": who, "value": text} for who, text in turns]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    layout = Layout(
        kind="dialogue", annotations=["rows.jsonl"], image="image", fields={"turns": "turns"}
    )
    (record,) = read_layout(layout, tmp_path)
    assert isinstance(record, BadRecord)


@pytest.mark.parametrize("name", ["../secret.jpg", "images/../../secret.jpg", "/etc/hostname"])
@pytest.mark.parametrize("root", ["folder", "images.zip", "images.tar"])
def test_a_path_leading_out_of_the_folder_or_archive(root, name, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(name, JPEG)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(BadRecordError, match="leads out of"):
        FileStore((tmp_path / root,)).read(name)


def test_a_link_leading_out_of_the_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(BadRecordError, match="leads out of"):
        FileStore((tmp_path / "folder",)).read("link.jpg")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        entry = tarfile.TarInfo("link.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
        archive.addfile(entry)
    with pytest.raises(BadRecordError, match="there is no file"):
        FileStore((tmp_path / "images.tar",)).read("link.jpg")
