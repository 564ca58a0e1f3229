"""Archives from strangers: what is unpacked, and what is refused before anything is written."""

import io
import os
import stat
import tarfile
import zipfile

import pytest

from nvlm.errors import UserError
from nvlm.fetch import archives
from nvlm.fetch.archives import join_parts, unpack


def tar_of(path, members, mode="w"):
    """``members``: (name, data) or TarInfo."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            entry = tarfile.TarInfo(member[0])
            entry.size = len(member[1])
            tar.addfile(entry, io.BytesIO(member[1]))
    return path


def zip_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def special(name, kind, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def unpacked(archive, into, patterns=("*",)):
    unpack(archive, into, list(patterns))
    return {
        path.relative_to(into).as_posix(): path.read_bytes()
        for path in into.rglob("*")
        if path.is_file()
    }


MEMBERS = [("a/b.txt", b"one"), ("a/c/d e.jpg", b"two" * 1000), ("empty", b"")]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_files_come_out_as_they_went_in(name, tmp_path):
    path = tmp_path / name
    if name == "x.zip":
        zip_of(path, MEMBERS)
    else:
        end = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz"}.get(name.split(".")[-1], "")
        tar_of(path, [special("a", tarfile.DIRTYPE), *MEMBERS], f"w:{end}")
    assert unpacked(path, tmp_path / "out") == dict(MEMBERS)
    assert unpacked(path, tmp_path / "some", ["a/*.txt"]) == {"a/b.txt": b"one"}


def test_parts_are_joined(tmp_path):
    whole = zip_of(tmp_path / "whole.zip", MEMBERS).read_bytes()
    names = [f"x.zip.{number:03d}" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(
            whole[number * 100 : (number + 1) * 100 if number < 2 else None]
        )
    joined = join_parts(tmp_path, names, tmp_path / "joined.zip")
    assert unpacked(joined, tmp_path / "out") == dict(MEMBERS)


@pytest.mark.parametrize(
    "name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"]
)
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_no_name_leads_out(name, form, tmp_path):
    members = [("good.txt", b"good"), (name, b"bad")]
    path = tmp_path / f"x.{form}"
    if form == "zip":
        zip_of(path, [])
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members:
                info = zipfile.ZipInfo("x")
                info.filename = member  # ZipInfo's constructor would clean it
                archive.writestr(info, data)
    else:
        tar_of(path, members)
    with pytest.raises(UserError, match="leads out"):
        unpack(path, tmp_path / "deep" / "out", ["*"])
    assert [p.name for p in tmp_path.rglob("*.txt")] == []


@pytest.mark.parametrize(
    "entry",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "../../secret"),
        special("link", tarfile.LNKTYPE, "../secret"),
        special("pipe", tarfile.FIFOTYPE),
        special("null", tarfile.CHRTYPE),
    ],
)
def test_no_link_leads_out_and_no_device_is_made(entry, tmp_path):
    (tmp_path / "secret").write_text("secret")
    path = tar_of(tmp_path / "x.tar", [entry])
    with pytest.raises(UserError, match=r"not safe|device"):
        unpack(path, tmp_path / "a" / "out", ["*"])
    assert not any(os.path.lexists(tmp_path / "a" / "out" / n) for n in ("link", "pipe", "null"))


@pytest.mark.parametrize("end", ["gz", "xz", "bz2"])
def test_a_byte_that_changed_on_the_way_is_found(end, tmp_path):
    path = tar_of(tmp_path / f"x.tar.{end}", [("a", os.urandom(50_000))], f"w:{end}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged|neither"):
        unpack(path, tmp_path / "out", ["*"])


def test_nothing_is_written_through_a_link(tmp_path):
    """A link to a directory outside, and then a file in it."""
    (tmp_path / "outside").mkdir()
    members = [special("d", tarfile.SYMTYPE, str(tmp_path / "outside")), ("d/x", b"bad")]
    with pytest.raises(UserError, match="not safe"):
        unpack(tar_of(tmp_path / "x.tar", members), tmp_path / "out", ["*"])
    assert not list((tmp_path / "outside").iterdir())


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="link or a device"):
        unpack(path, tmp_path / "out", ["*"])


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_a_bomb_is_told_before_it_goes_off(form, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 2**20)
    members = [("zeros", bytes(2**23))]
    path = tmp_path / f"x.{form}"
    zip_of(path, members) if form == "zip" else tar_of(path, members, "w:gz")
    with pytest.raises(UserError, match=r"would unpack to 8388608 bytes, \d+ times its size"):
        unpack(path, tmp_path / "out", ["*"])
    assert not list((tmp_path / "out").iterdir())


def test_a_size_that_lies_is_found(tmp_path):
    """A zip whose directory tells of three bytes where a thousand come."""
    path = zip_of(tmp_path / "x.zip", [("x", b"x" * 1000)])
    data = path.read_bytes().replace((1000).to_bytes(4, "little"), (3).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        unpack(path, tmp_path / "out", ["*"])
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= 3


def test_two_names_that_differ_in_case(tmp_path, monkeypatch):
    path = tar_of(tmp_path / "x.tar", [("A.txt", b"1"), ("a.txt", b"2")])
    assert unpacked(path, tmp_path / "out") == {"A.txt": b"1", "a.txt": b"2"}
    # On a disk that takes them for one, the second is there already.
    monkeypatch.setattr(
        "nvlm.fetch.archives.os.path.lexists", lambda path: str(path).endswith("a.txt")
    )
    with pytest.raises(UserError, match="in another case"):
        unpack(path, tmp_path / "other", ["*"])


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_the_same_name_twice_is_refused(form, tmp_path):
    members = [("a.txt", b"1"), ("./a.txt", b"2")]
    path = tmp_path / f"x.{form}"
    zip_of(path, members) if form == "zip" else tar_of(path, members)
    with pytest.raises(UserError, match="twice"):
        unpack(path, tmp_path / "out", ["*"])


def test_a_hundred_thousand_members(tmp_path):
    path = zip_of(tmp_path / "x.zip", [(f"{n // 1000}/{n}", b"x") for n in range(100_000)])
    members = unpack(path, tmp_path / "out", ["*"])
    assert len(members) == 100_000
    assert (tmp_path / "out/99/99999").read_bytes() == b"x"


def test_a_page_in_place_of_an_archive_is_told(tmp_path):
    path = tmp_path / "x.zip"
    path.write_text("<html>too many requests</html>")
    with pytest.raises(UserError, match="sent a page in its place"):
        unpack(path, tmp_path / "out", ["*"])


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_half_an_archive_is_told(form, tmp_path):
    path = tmp_path / f"x.{form}"
    members = [("a", os.urandom(100_000)), ("b", os.urandom(100_000))]
    zip_of(path, members) if form == "zip" else tar_of(path, members, "w:gz")
    path.write_bytes(path.read_bytes()[:150_000])
    with pytest.raises(UserError):
        unpack(path, tmp_path / "out", ["*"])
