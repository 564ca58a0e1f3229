"""Shards on disk: the same bytes twice, read by Energon itself, corrupt images counted."""

import hashlib
import io
import json
import tarfile

import pytest
from click.testing import CliRunner
from megatron.energon.tools.lint import command as lint
from tests.data.pictures import encoded_image

from nvlm.data.shards import tar as shards
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.errors import UserError
from nvlm.params import parse_params

JPEG, PNG, PALETTE = (encoded_image("JPEG"), encoded_image("PNG"), encoded_image("BMP", "P"))


def params(**overrides):
    values = {
        "source": "records",
        "requires": "nowhere",
        "samples": None,
        "samples_per_shard": 2,
        "max_skipped": 0.0,
    }
    return parse_params({**values, **overrides}, DatasetParams, "data.sft.x")


def digests(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def stored(directory):
    """Name -> bytes of every entry of the shards."""
    entries = {}
    for shard in sorted(directory.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                extracted = tar.extractfile(member)
                assert extracted is not None
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                entries[member.name] = extracted.read()
    return entries


def test_the_same_bytes_twice(tmp_path):
    given = params(source="digit_questions", samples=30, samples_per_shard=20, seed=3)
    for name in ("first", "second"):
        prepare_dataset(given, tmp_path / name, tmp_path / f"{name}.json")
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    names = digests(tmp_path / "first")
    assert {"shard-000000.tar", "shard-000001.tar", ".nv-meta/index.sqlite"} <= names.keys()
    counts = json.loads((tmp_path / "first.json").read_text())
    assert counts == {"samples": 30, "shards": 2, "skipped": 0}


@pytest.mark.parametrize("at_once", [1, 5000, shards.WRITTEN_AT_ONCE])
def test_a_shard_is_the_archive_that_python_writes(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "WRITTEN_AT_ONCE", at_once)
    given = params(source="digit_questions", samples=9, samples_per_shard=9)
    prepare_dataset(given, tmp_path / "out", tmp_path / "m.json")
    shard = tmp_path / "out" / "shard-000000.tar"
    again = io.BytesIO()
    with tarfile.open(shard) as tar, tarfile.TarFile(None, "w", again, tarfile.USTAR_FORMAT) as to:
        for member in tar:
            entry = tarfile.TarInfo(member.name)
            entry.size = member.size
            to.addfile(entry, tar.extractfile(member))
    assert shard.read_bytes() == again.getvalue()


def test_energon_finds_nothing_wrong(datasets):
    for name in ("captions", "strips", "choices"):
        done = CliRunner().invoke(lint, [str(datasets / name)])
        assert done.exit_code == 0, done.output


def test_what_cannot_be_used_is_counted_and_listed(directory_of_records, tmp_path):
    names = ["a.jpg", "cut.jpg", "b.png", "empty.png", "none.png", "c.bmp", "text.png"]
    directory = directory_of_records(
        [{"image": f"images/{name}", "caption": name} for name in names],
        {
            "a.jpg": JPEG,
            "cut.jpg": JPEG[:-20],
            "b.png": PNG,
            "empty.png": b"",
            "c.bmp": PALETTE,
            "text.png": b"no image",
        },
    )
    given = params(requires=str(directory), max_skipped=0.6)
    prepare_dataset(given, tmp_path / "out", tmp_path / "metrics.json")
    counts = json.loads((tmp_path / "metrics.json").read_text())
    assert counts == {"samples": 3, "shards": 3, "skipped": 4}
    entries = stored(tmp_path / "out")
    assert entries["000000000.jpg"] == JPEG
    assert entries["000000002.png"] == PNG
    assert entries["000000005.png"].startswith(b"\x89PNG")
    assert json.loads(entries["000000005.json"])["caption"] == "c.bmp"
    assert len(entries) == 6
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").open()]
    reasons = {line["record"].split("(")[0].strip(): line["reason"] for line in lines}
    assert reasons == {
        "images/cut.jpg": "the JPEG file is truncated",
        "images/empty.png": "the image file is empty",
        "images/none.png": "there is no file 'images/none.png'",
        "images/text.png": "cannot identify image file",
    }

    with pytest.raises(UserError, match=r"4 of 7 records.*max_skipped = 0\.5.*cut\.jpg"):
        prepare_dataset(
            params(requires=str(directory), max_skipped=0.5),
            tmp_path / "bad",
            tmp_path / "bad.json",
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "out", "raw"]


def test_a_failure_keeps_what_was_there(directory_of_records, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    directory = directory_of_records([{"image": "images/none.png", "caption": "x"}], {})
    with pytest.raises(UserError, match="no usable sample"):
        prepare_dataset(
            params(requires=str(directory), max_skipped=1.0),
            tmp_path / "out",
            tmp_path / "m.json",
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert not (tmp_path / "m.json").exists()


def test_one_dataset_has_one_sample_type(directory_of_records, tmp_path):
    directory = directory_of_records(
        [
            {"image": "images/a.png", "caption": "x"},
            {"image": "images/a.png", "question": "?", "answers": ["x"]},
        ],
        {"a.png": PNG},
    )
    with pytest.raises(UserError, match="make it two datasets"):
        prepare_dataset(params(requires=str(directory)), tmp_path / "out", tmp_path / "m.json")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"source": "imagenet"}, r"data\.sft\.x\.source: 'imagenet' should be one of"),
        ({"source": "choices"}, r"data\.sft\.x\.samples: a packaged source needs a number"),
        ({"samples_per_shard": 0}, r"data\.sft\.x\.samples_per_shard"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_params(overrides, words):
    with pytest.raises(UserError, match=words):
        params(**overrides)
