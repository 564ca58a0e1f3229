"""Damage costs the record that has it, and a whole file's damage is told in one sentence."""

import io
import json
import os
import signal
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.data.pictures import encoded_image

from nvlm.data.published.directory import read_records
from nvlm.data.published.files import FileStore
from nvlm.data.published.layouts import Join, Layout, read_layout
from nvlm.data.records import (
    BadRecord,
    BadRecordError,
    Caption,
    Dialogue,
    Provenance,
    Reading,
    Record,
)
from nvlm.data.shards import prepare
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.images import storable
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import UserError

JPEG = encoded_image("JPEG")
FINE = b'{"image": "a.jpg", "caption": "x"}\n'
DEEP = b"[" * 100_000 + b"]" * 100_000


def lines_read(directory, lines):
    """What the records of ``lines`` of annotations about one picture come to."""
    (directory / "a.jpg").write_bytes(JPEG)
    (directory / "annotations.jsonl").write_bytes(lines)
    return list(read_records(directory))


def asked(**changes):
    """A layout of questions in q.json, with answers in t.json."""
    join = Join(file="t.json", rows="rows", key="id", match="id", where={"kind": "good*"})
    values = {
        "kind": "question",
        "annotations": ["q.json"],
        "rows": "rows",
        "join": {"truth": join},
        "image": "a.jpg{nothing}",
        "fields": {"question": "question", "answers": "truth.answer"},
    }
    return Layout(**{**values, **changes})


def lay_out(directory, questions, truths):
    (directory / "a.jpg").write_bytes(JPEG)
    for name, rows in (("q.json", questions), ("t.json", truths)):
        text = rows if isinstance(rows, bytes) else json.dumps({"rows": rows}).encode()
        (directory / name).write_bytes(text)


def question(number, **fields):
    return {"id": number, "question": f"{number}?", "nothing": None, **fields}


@pytest.mark.parametrize("line", [b'{"image": "a.jpg", "caption": "\xff"}', DEEP])
def test_a_line_that_is_no_text_costs_itself(line, tmp_path):
    first, bad, last = lines_read(tmp_path, FINE + line + b"\n" + FINE)
    assert isinstance(bad, BadRecord)
    assert "no valid JSON" in bad.reason
    assert first.content == last.content == Caption(caption="x")


def test_a_byte_order_mark_costs_nothing(tmp_path):
    (record,) = lines_read(tmp_path, b"\xef\xbb\xbf" + FINE)
    assert record.content == Caption(caption="x")
    rows = json.dumps({"rows": [question(1, truth={"answer": "y"})]}).encode()
    lay_out(tmp_path, b"\xef\xbb\xbf" + rows, [])
    (record,) = read_layout(asked(join={}), tmp_path)
    assert record.content.answers == ["y"]


@pytest.mark.parametrize("image", [{"image": None}, {"image": ""}, {}])
def test_a_conversation_about_no_image(image, tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (record,) = lines_read(tmp_path, json.dumps({**image, "turns": turns}).encode())
    assert record.images == ()
    assert record.content == Dialogue(turns=[("human", "Hi"), ("gpt", "Hello")])


@pytest.mark.parametrize("turns", [None, "Hi", 5, {"from": "human"}])
def test_turns_that_are_no_list(turns, tmp_path):
    (record,) = lines_read(tmp_path, json.dumps({"image": "a.jpg", "turns": turns}).encode())
    assert isinstance(record, BadRecord)


def test_rows_that_are_not_of_the_dataset_are_not_counted(tmp_path):
    lay_out(
        tmp_path,
        [
            question("1.png", split="train"),
            question("2.png", split="test"),
            question("3.png", split="train_2"),
        ],
        [
            {"id": "1.png", "answer": "bad", "kind": "bad"},
            {"id": "1.png", "answer": "x", "kind": "good"},
            {"id": "2.png", "answer": "y", "kind": "good"},
            {"id": "3.png", "answer": "z", "kind": "goods"},
        ],
    )
    (tmp_path / "left_out.csv").write_text("3\r\n17\r\n")
    for changes, answers in [
        ({}, ["x", "y", "z"]),
        ({"where": {"split": "train*", "truth": "*"}}, ["x", "z"]),
        ({"exclude": {"id.@stem": "left_out.csv"}}, ["x", "y"]),
        ({"exclude": {"id": "left_out.csv"}}, ["x", "y", "z"]),
    ]:
        records = list(read_layout(asked(**changes), tmp_path))
        assert [record.content.answers for record in records] == [[answer] for answer in answers]


@pytest.mark.parametrize(
    ("questions", "truths", "words"),
    [
        ([question(1)], [{"kind": "good"}], "t.json, 0: the field 'id' is missing"),
        (b'{"rows": [' + DEEP + b"]}", [], "q.json is no valid JSON: maximum recursion depth"),
        (b'{"rows": ["\xff"]}', [], "q.json cannot be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_damaged_as_a_whole(questions, truths, words, tmp_path):
    lay_out(tmp_path, questions, truths)
    with pytest.raises(UserError, match=words):
        list(read_layout(asked(), tmp_path))


@pytest.mark.parametrize("name", ["q.json", "t.json", "left_out.csv"])
def test_a_file_that_is_missing(name, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    lay_out(raw, [question(1)], [{"id": 1, "answer": "y", "kind": "good"}])
    (raw / "left_out.csv").write_text("2\n")
    (raw / name).unlink()
    params = DatasetParams(
        source="published",
        layout=asked(exclude={"id": "left_out.csv"}),
        requires=str(raw),
        samples=None,
        samples_per_shard=10,
        max_skipped=0.0,
    )
    with pytest.raises(UserError, match=name):
        prepare_dataset(params, tmp_path / "out", tmp_path / "metrics.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("root", ["folder", "images.zip"])
def test_files_that_cannot_be_read(root, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "large.jpg").write_bytes(bytes(1001))
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.jpg", bytes(1001))
        archive.writestr("secret.jpg", JPEG)
        archive.writestr("bad.jpg", JPEG)
    archive = (tmp_path / "images.zip").read_bytes()
    central = archive.rindex(b"PK\x01\x02", 0, archive.rindex(b"PK\x01\x02"))
    local = archive.index(b"PK\x03\x04", 4)
    body = archive.index(b"bad.jpg") + len("bad.jpg")
    broken = bytearray(archive)
    broken[local + 6] |= 1  # bit 0 of the flags: encrypted (APPNOTE.TXT 4.4.4)
    broken[central + 8] |= 1
    broken[body : body + 8] = b"\xff" * 8  # no deflated data begins so
    (tmp_path / "images.zip").write_bytes(broken)
    monkeypatch.setattr("nvlm.data.published.files.MAX_FILE_BYTES", 1000)
    store = FileStore((tmp_path / root,))
    wanted = {"large.jpg": "1001 bytes", "n" * 300 + ".jpg": "cannot be read|no file"}
    if root == "images.zip":
        wanted |= {"secret.jpg": "encrypted", "bad.jpg": "cannot be read"}
    for name, words in wanted.items():
        with pytest.raises(BadRecordError, match=words):
            store.read(name)


def test_half_a_surrogate_pair(directory_of_records, tmp_path):
    rows = [
        '{"image": "images/a.jpg", "caption": "\\ud83d x"}',
        '{"image": "\\ud83d.jpg", "caption": "x"}',
        '{"image": "images/a.jpg", "caption": "\\ud83d\\ude00"}',
    ]
    params = DatasetParams(
        source="records",
        requires=str(directory_of_records(rows, {"a.jpg": JPEG})),
        samples=None,
        samples_per_shard=10,
        max_skipped=0.9,
    )
    prepare_dataset(params, tmp_path / "out", tmp_path / "metrics.json")
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").open()]
    assert ["no Unicode text" in line["reason"] for line in skipped] == [True, False]
    assert "\\ud83d.jpg" in skipped[1]["record"]
    assert json.loads((tmp_path / "metrics.json").read_text())["samples"] == 1


def test_boxes_that_are_no_numbers():
    for side in (float("nan"), float("inf")):
        with pytest.raises(BadRecordError, match="not a number"):
            Reading(text="x", words=["x"], boxes=[(0.0, 0.0, side, 1.0)])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_become_eight(form):
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, form)
    stored = storable(buffer.getvalue())
    with Image.open(io.BytesIO(stored.data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (stored.extension, stored.width, stored.height) == ("png", 32, 32)
    assert (pixels == (grey >> 8)[..., None]).all()


def test_damaged_exif_is_told_whatever_pillow_raises():
    exif = Image.Exif()
    exif[0x0112], exif[0x0100] = 6, 48  # turned, and a width
    picture = encoded_image("JPEG", exif=exif)
    width = b"\x01\x00\x00\x04"  # tag and type, a long, which becomes a text: struct.error
    assert width in picture
    with pytest.raises(BadRecordError, match="not an integer"):
        storable(picture.replace(width, b"\x01\x00\x00\x02"))


class Killer:
    """An image whose reading ends the process, as the system does when memory is short."""

    name = "a.jpg"

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(monkeypatch, tmp_path):
    record = Record(
        images=(Killer(),), content=Caption(caption="x"), provenance=Provenance(source="x")
    )
    monkeypatch.setattr(prepare, "records", lambda params: iter([record]))
    params = DatasetParams(
        source="shape_captions",
        requires="",
        samples=1,
        samples_per_shard=1,
        max_skipped=0.0,
        workers=1,
    )
    with pytest.raises(UserError, match=r"terminated abruptly.*run it again to go on"):
        prepare_dataset(params, tmp_path / "out", tmp_path / "metrics.json")
