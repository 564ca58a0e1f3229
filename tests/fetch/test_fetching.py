"""Sources over real HTTP, from servers on loopback that misbehave on request."""

import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fetch.hub import COMMIT, Hub, running
from tests.fetch.server import Server, serving

from nvlm.errors import UserError
from nvlm.fetch import github, hub, web
from nvlm.fetch.fetching import FetchParams, fetch_source
from nvlm.fetch.lock import SourcesLock
from nvlm.fetch.sources import Archive, GitHubFiles, HubFiles, Source, WebFile

DATA = bytes(random.Random(1).randbytes(300_000))
PARAMS = FetchParams(missing="fail", files_at_once=3)


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"pictures/{name}.jpg", data)
    return buffer.getvalue()


PICTURES = zipped(a=b"one", b=b"two")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(hub, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(web, "SILENCE", 0.5)
    server = Server({"/x.json": DATA, "/pictures.zip": PICTURES})
    with serving(server) as address:
        server.address = address
        yield server


def source_of(server, *, sha256=True, names=("x.json",), **more):
    files = [
        WebFile(
            url=f"{server.address}/{name}",
            sha256=hashlib.sha256(server.files[f"/{name}"]).hexdigest() if sha256 else None,
        )
        for name in names
    ]
    return Source(licence="CC-BY 4.0", web=files, **more)


def fetch(source, root, params=PARAMS):
    manifest = root / "raw" / "set.json"
    fetch_source("set", source, manifest, params, SourcesLock(root / "sources.lock"))
    return manifest


def tree(root):
    directory = root / "raw" / "set"
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["breaks off"],
        ["breaks off", "breaks off", "ignores ranges"],
        ["breaks off", "wrong range"],
        ["hangs"],
        ["wrong byte"],
        ["short"],
        ["long"],
        ["redirects"],
        [429, 503, 500],
        ["breaks off", 416],
    ],
)
def test_what_a_server_does_wrong_is_put_right(server, tmp_path, faults):
    server.faults["/x.json"] = list(faults)
    fetch(source_of(server), tmp_path)
    assert tree(tmp_path) == {"x.json": DATA}
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [
        ".set.fetched",
        "set",
        "set.json",
    ]


@pytest.mark.parametrize("names", [("x.zip.001", "x.zip.002"), ("imgs.00", "imgs.01")])
def test_an_archive_in_parts_is_unpacked(server, tmp_path, names):
    server.files |= {f"/{names[0]}": PICTURES[:90], f"/{names[1]}": PICTURES[90:]}
    pattern = f"{names[0].rpartition('.')[0]}.*"
    fetch(source_of(server, names=names, unpack={pattern: Archive()}), tmp_path)
    assert tree(tmp_path) == {"pictures/a.jpg": b"one", "pictures/b.jpg": b"two"}


def test_what_broke_off_goes_on_where_it_ended(server, tmp_path):
    server.faults["/x.json"] = ["breaks off"]
    fetch(source_of(server), tmp_path)
    assert server.requests == [("/x.json", None), ("/x.json", "bytes=150000-")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, r"refuses \(401\): its publisher may ask for a registration"),
        (403, r"refuses \(403\)"),
        (404, r"no longer there \(404\)"),
        (410, r"no longer there"),
        (503, r"the server answers 503\): run the stage again"),
        ("breaks off", "run the stage again"),
        ("wrong byte", "has another sha256 than .* twice"),
    ],
)
def test_what_a_server_goes_on_doing_wrong_is_told(server, tmp_path, fault, message):
    kinds = [fault] * 40 if fault != "breaks off" else ["breaks off", *[500] * 40]
    server.faults["/x.json"] = kinds
    with pytest.raises(UserError, match=message):
        fetch(source_of(server), tmp_path)
    assert not (tmp_path / "raw" / "set.json").exists()
    assert tree(tmp_path) == {}


def test_a_server_that_is_busy_is_given_the_time_that_it_asks_for(server, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("nvlm.fetch.web.time.sleep", pauses.append)
    server.faults["/x.json"] = [429]
    server.headers["/x.json"] = {"Retry-After": "7"}
    fetch(source_of(server), tmp_path)
    assert pauses == [7.0]


def test_archives_are_unpacked_once_and_others_stay(server, tmp_path):
    names = ("x.json", "pictures.zip")
    source = source_of(server, names=names, unpack={"*.zip": Archive(into="train")})
    manifest = json.loads(fetch(source, tmp_path).read_text())
    assert tree(tmp_path) == {
        "x.json": DATA,
        "train/pictures/a.jpg": b"one",
        "train/pictures/b.jpg": b"two",
    }
    assert manifest["licence"] == "CC-BY 4.0"
    assert manifest["files"] == [
        {
            "path": "pictures.zip",
            "bytes": len(PICTURES),
            "sha256": hashlib.sha256(PICTURES).hexdigest(),
            "members": 2,
            "unpacked_bytes": 6,
        },
        {"path": "x.json", "bytes": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()},
    ]
    first = (tmp_path / "raw" / "set.json").read_bytes()
    server.requests.clear()
    fetch(source, tmp_path)
    assert server.requests == []
    assert (tmp_path / "raw" / "set.json").read_bytes() == first


def test_what_configuration_says_anew_is_fetched_anew(server, tmp_path):
    source = source_of(server, names=("pictures.zip",), unpack={"*.zip": Archive()})
    fetch(source, tmp_path)
    moved = replace(source, unpack={"*.zip": Archive(into="train")})
    fetch(moved, tmp_path)
    assert sorted(tree(tmp_path)) == ["train/pictures/a.jpg", "train/pictures/b.jpg"]
    server.files["/pictures.zip"] = zipped(c=b"three")
    again = source_of(server, names=("pictures.zip",), unpack={"*.zip": Archive()})
    manifest = json.loads(fetch(again, tmp_path).read_text())
    assert tree(tmp_path) == {"pictures/c.jpg": b"three"}
    assert manifest["files"][0]["sha256"] == again.web[0].sha256


def test_what_is_no_longer_wanted_is_removed(server, tmp_path):
    fetch(source_of(server, names=("x.json", "pictures.zip")), tmp_path)
    fetch(source_of(server), tmp_path)
    assert sorted(tree(tmp_path)) == ["x.json"]


def test_an_archive_in_parts_of_which_a_file_vanished(server, tmp_path):
    whole = zipped(a=b"one", b=b"two")
    names = [f"p.zip.00{number}" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        server.files[f"/{name}"] = whole[number * 90 : (number + 1) * 90 if number < 2 else None]
    source = source_of(server, names=names, unpack={"p.zip.*": Archive()})
    fetch(source, tmp_path)
    assert tree(tmp_path) == {"pictures/a.jpg": b"one", "pictures/b.jpg": b"two"}
    server.requests.clear()
    fetch(source, tmp_path)
    assert server.requests == []
    (tmp_path / "raw/set/pictures/a.jpg").unlink()
    manifest = json.loads(fetch(source, tmp_path).read_text())
    assert tree(tmp_path) == {"pictures/a.jpg": b"one", "pictures/b.jpg": b"two"}
    assert [entry["unpacked_bytes"] for entry in manifest["files"]] == [6, 0, 0]


@pytest.mark.parametrize("without_tags", [False, True])
def test_a_file_that_changes_between_two_attempts_is_not_mixed(server, tmp_path, without_tags):
    server.without_tags = without_tags
    server.faults["/x.json"] = ["breaks off", *[500] * 40]
    with pytest.raises(UserError, match="run the stage again"):
        fetch(source_of(server, sha256=False), tmp_path)
    server.faults.clear()
    server.files["/x.json"] = bytes(reversed(DATA))
    fetch(source_of(server, sha256=False), tmp_path)
    assert tree(tmp_path) == {"x.json": bytes(reversed(DATA))}


def test_only_what_vanished_is_fetched_again(server, tmp_path):
    names = ("x.json", "pictures.zip")
    source = source_of(server, names=names, unpack={"*.zip": Archive()})
    fetch(source, tmp_path)
    (tmp_path / "raw/set/pictures/b.jpg").unlink()
    server.requests.clear()
    fetch(source, tmp_path)
    assert {path for path, _ in server.requests} == {"/pictures.zip"}
    assert len(tree(tmp_path)) == 3


def test_the_first_fetch_writes_down_what_it_got_and_every_later_one_is_held_to_it(
    server, tmp_path
):
    source = source_of(server, sha256=False)
    fetch(source, tmp_path)
    lock = (tmp_path / "sources.lock").read_text()
    assert json.loads(lock) == {
        "address": f"{server.address}/x.json",
        "bytes": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
    }
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "sources.lock").write_text(lock)
    server.files["/x.json"] = DATA[:-1] + b"!"
    with pytest.raises(UserError, match="another sha256"):
        fetch(source, other)
    server.files["/x.json"] = DATA
    fetch(source, other)
    assert tree(other) == {"x.json": DATA}


def test_a_lock_that_is_damaged_is_told(server, tmp_path):
    (tmp_path / "sources.lock").write_text("<<<<<<< HEAD\n")
    with pytest.raises(UserError, match="line 1 is no entry"):
        fetch(source_of(server, sha256=False), tmp_path)


def test_only_the_files_needed_of_a_repository_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "FIRST_PAUSE", 0.01)
    there = Hub({"a[1]/train-0.parquet": DATA, "a[1]/test-0.parquet": b"no", "README.md": b"# A"})
    there.faults = [("train-0", "wrong byte")]
    with running(there) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        files = HubFiles(repo="owner/model", revision="main", files=["a[1]/train-*"], kind="model")
        source = Source(licence="unknown", hub=files)
        manifest = json.loads(fetch(source, tmp_path).read_text())
    assert tree(tmp_path) == {"a[1]/train-0.parquet": DATA}
    assert manifest["licence"] == "apache-2.0"
    (entry,) = map(json.loads, (tmp_path / "sources.lock").read_text().splitlines())
    assert entry == {"address": "hub:models/owner/model@main", "commit": COMMIT}


def test_a_pattern_without_a_file_is_told(monkeypatch, tmp_path):
    with running(Hub({"a.json": b"{}"})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        files = HubFiles(repo="owner/model", revision=COMMIT, files=["b*"], kind="model")
        with pytest.raises(UserError, match=r"has no file b\*"):
            fetch(Source(licence="unknown", hub=files), tmp_path)


def test_files_of_github_at_a_commit(server, tmp_path, monkeypatch):
    text = b'{"a": 1}'
    blob = hashlib.sha1(f"blob {len(text)}\0".encode() + text).hexdigest()
    entries = [
        {"path": name, "type": "blob", "size": len(text), "sha": blob}
        for name in ("data/a b.json", "data/c.txt")
    ]
    server.files |= {
        "/repos/o/r/commits/main": json.dumps({"sha": COMMIT}).encode(),
        f"/repos/o/r/git/trees/{COMMIT}": json.dumps({"tree": entries}).encode(),
        f"/o/r/{COMMIT}/data/a%20b.json": text,
    }
    monkeypatch.setattr(github, "API", server.address)
    monkeypatch.setattr(github, "RAW", server.address)
    files = GitHubFiles(repo="o/r", revision="main", files=["data/*.json"])
    fetch(Source(licence="MIT", github=files), tmp_path)
    assert tree(tmp_path) == {"data/a b.json": text}
    assert COMMIT in (tmp_path / "sources.lock").read_text()


def test_what_cannot_be_fetched_stops_or_is_left_out_or_was_put_there(tmp_path):
    source = Source(
        licence="unknown",
        unavailable="its publisher asks for a registration",
        address="https://example.org",
        instead="other",
    )
    told = r"set can't be fetched: .* \(https://example.org\); other stands in for it"
    with pytest.raises(UserError, match=told + ".*data.fetch.missing=skip"):
        fetch(source, tmp_path)
    manifest = fetch(source, tmp_path, replace(PARAMS, missing="skip"))
    assert "registration" in json.loads(manifest.read_text())["missing"]
    (tmp_path / "raw/set").mkdir()
    (tmp_path / "raw/set/mine.json").write_bytes(b"[]")
    entries = json.loads(fetch(source, tmp_path).read_text())["files"]
    assert entries == [{"path": "mine.json", "bytes": 2}]


@pytest.mark.parametrize("where", ["download", "unpacking"])
def test_a_disk_that_fills_is_told_and_nothing_half_made_is_taken(
    server, tmp_path, monkeypatch, where
):
    source = source_of(server, names=("pictures.zip",), unpack={"*.zip": Archive()})
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*arguments, **named):
        raise full

    if where == "download":
        monkeypatch.setattr(web, "_receive", fails)
    else:
        monkeypatch.setattr("nvlm.fetch.archives.shutil.copyfileobj", fails)
    with pytest.raises(UserError, match="the disk is full: make room"):
        fetch(source, tmp_path)
    assert tree(tmp_path) == {}
    monkeypatch.undo()
    fetch(source, tmp_path)
    assert len(tree(tmp_path)) == 2


def test_there_must_be_room_before_anything_is_fetched(server, tmp_path):
    huge = replace(source_of(server).web[0], bytes=10**18)
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB and there is room for"):
        fetch(Source(licence="x", web=[huge]), tmp_path)
    assert server.requests == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "ftp://x/y"}, "https://"),
        ({"url": "https://x/y", "path": "../y"}, "leads out"),
        ({"url": "https://x/y", "sha256": "abc"}, "64 hex digits"),
    ],
)
def test_an_address_that_makes_no_sense_is_told(values, message):
    with pytest.raises(ValueError, match=message):
        WebFile(**values)


FETCHING = """
import sys
from pathlib import Path
from nvlm.fetch.fetching import FetchParams, fetch_source
from nvlm.fetch.lock import SourcesLock
from nvlm.fetch.sources import Archive, Source, WebFile
address, root = sys.argv[1], Path(sys.argv[2])
web = [WebFile(url=f"{address}/{name}") for name in ("x.json", "pictures.zip")]
source = Source(licence="x", web=web, unpack={"*.zip": Archive()})
params = FetchParams(missing="fail", files_at_once=2)
fetch_source("set", source, root / "raw/set.json", params, SourcesLock(root / "sources.lock"))
"""


def test_a_fetch_that_is_killed_at_any_moment_goes_on(server, tmp_path):
    """Twenty times; what has once been whole is not asked for again."""
    generator = random.Random(2)
    members = {str(n): generator.randbytes(2000) for n in range(2000)}
    server.files["/pictures.zip"] = zipped(**members)
    server.files["/x.json"] = generator.randbytes(10**7)
    command = [sys.executable, "-c", FETCHING, server.address, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path("src").resolve())}
    notes = tmp_path / "raw/.set.fetched"
    for _ in range(20):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for note in notes.glob("*.json"):
            if "there" in (content := json.loads(note.read_text())):
                for name, size in content["there"].items():
                    assert (tmp_path / "raw/set" / name).stat().st_size == size
        if (tmp_path / "raw/set.json").exists():
            (tmp_path / "raw/set.json").unlink()
    whole = {note.stem for note in notes.glob("*.json") if "there" in json.loads(note.read_text())}
    server.requests.clear()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert not {path.lstrip("/") for path, _ in server.requests} & whole
    expected = {f"pictures/{name}.jpg": data for name, data in members.items()}
    assert tree(tmp_path) == {"x.json": server.files["/x.json"], **expected}
