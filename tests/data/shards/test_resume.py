"""Preparations that are killed, and preparations by several processes."""

import hashlib
import json
import multiprocessing
import os
import signal
import time

import pytest
from tests.data.pictures import encoded_image

from nvlm.data.shards import prepare
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.data.shards.tar import write_shard
from nvlm.errors import UserError

JPEG = encoded_image("JPEG")


@pytest.fixture
def params(directory_of_records):
    names = [f"{number}.jpg" for number in range(24)]
    images = {name: JPEG + name.encode() for name in names}  # behind the end, where none looks
    images["7.jpg"] = b""
    rows = [{"image": f"images/{name}", "caption": name} for name in names]

    def build(**overrides):
        values = {
            "source": "records",
            "requires": str(directory),
            "samples": None,
            "samples_per_shard": 4,
            "max_skipped": 0.1,
        }
        return DatasetParams(**{**values, **overrides})

    directory = directory_of_records(rows, images)
    return build


def digests(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_several_processes_write_the_same_bytes(params, tmp_path):
    for workers in (0, 2):
        prepare_dataset(
            params(workers=workers), tmp_path / str(workers), tmp_path / f"{workers}.json"
        )
    assert digests(tmp_path / "0") == digests(tmp_path / "2")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def interrupted_after(shards, monkeypatch):
    """Make the writing of shard number ``shards`` end like a pressed Ctrl-C."""

    def write(directory, number, first, entries):
        if number == shards:
            raise KeyboardInterrupt
        return write_shard(directory, number, first, entries)

    monkeypatch.setattr(prepare, "write_shard", write)


def counting(monkeypatch):
    """Note the numbers of the shards that are written from now on."""
    written = []

    def write(directory, number, first, entries):
        written.append(number)
        return write_shard(directory, number, first, entries)

    monkeypatch.setattr(prepare, "write_shard", write)
    return written


def test_goes_on_from_the_shards_that_are_done(params, tmp_path, monkeypatch):
    prepare_dataset(params(), tmp_path / "whole", tmp_path / "whole.json")
    interrupted_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(params(), tmp_path / "out", tmp_path / "out.json")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial" / "shard-000003.tar").exists()
    written = counting(monkeypatch)
    prepare_dataset(params(workers=0), tmp_path / "out", tmp_path / "out.json")
    assert written == [4, 5]
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert json.loads((tmp_path / "out.json").read_text())["skipped"] == 1
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("change", ["params", "annotations", "shard"])
def test_starts_again_where_something_has_changed(change, params, tmp_path, monkeypatch):
    interrupted_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(params(), tmp_path / "out", tmp_path / "out.json")
    overrides = {}
    if change == "params":
        overrides["samples_per_shard"] = 5
    elif change == "annotations":
        path = tmp_path / "raw" / "annotations.jsonl"
        path.write_text(path.read_text().replace('"0.jpg"', '"zero"', 1))
    else:
        (tmp_path / ".out.partial" / "shard-000001.tar").unlink()
    written = counting(monkeypatch)
    prepare_dataset(params(**overrides), tmp_path / "out", tmp_path / "out.json")
    assert written == {"params": [0, 1, 2, 3, 4], "annotations": [0, 1, 2, 3, 4, 5]}.get(
        change, [1, 3, 4, 5]
    )


def test_a_killed_process_leaves_no_half_shard(params, tmp_path):
    context = multiprocessing.get_context("spawn")
    given, out, metrics = params(samples_per_shard=1), tmp_path / "out", tmp_path / "out.json"
    process = context.Process(target=prepare_dataset, args=(given, out, metrics))
    process.start()
    done = tmp_path / ".out.partial" / ".progress" / "000001.json"
    while not done.exists() and process.is_alive():
        time.sleep(0.001)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    prepare_dataset(given, out, metrics)
    prepare_dataset(given, tmp_path / "whole", metrics)
    assert digests(out) == digests(tmp_path / "whole")


def test_workers_end_with_the_process_that_is_killed(directory_of_records, tmp_path):
    # Converting such an image takes long enough for the workers to be in the middle of a shard.
    slow = encoded_image("BMP", size=(2000, 1500))
    rows = [{"image": "images/a.bmp", "caption": str(number)} for number in range(24)]
    given = DatasetParams(
        source="records",
        requires=str(directory_of_records(rows, {"a.bmp": slow})),
        samples=None,
        samples_per_shard=12,
        max_skipped=0.0,
        workers=2,
    )
    arguments = (given, tmp_path / "out", tmp_path / "out.json")
    process = multiprocessing.get_context("spawn").Process(target=prepare_dataset, args=arguments)
    process.start()
    partial = tmp_path / ".out.partial"
    while len(list(partial.glob("*.partial"))) < 2 and process.is_alive():
        time.sleep(0.001)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(3)
    assert not list(partial.glob("*.tar"))


def test_a_full_disk_is_one_sentence(params, tmp_path, monkeypatch):
    def write(directory, number, first, entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "write_shard", write)
    with pytest.raises(UserError, match=r"out cannot be written.*No space left.*run it again"):
        prepare_dataset(params(), tmp_path / "out", tmp_path / "out.json")


def test_images_in_memory_end_a_shard_early(params, tmp_path, monkeypatch):
    given = DatasetParams(
        source="digit_text", requires="", samples=30, samples_per_shard=30, max_skipped=0.0
    )
    prepare_dataset(given, tmp_path / "one", tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["shards"] == 1
    monkeypatch.setattr(prepare, "MAX_BYTES_HELD", 20_000)
    prepare_dataset(given, tmp_path / "many", tmp_path / "many.json")
    shards = json.loads((tmp_path / "many.json").read_text())["shards"]
    sizes = [path.stat().st_size for path in (tmp_path / "many").glob("*.tar")]
    assert len(sizes) == shards > 2
    assert max(sizes) < 80_000
