"""Archives from strangers, unpacked: nothing leads out of the directory, and nothing explodes."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from nvlm.errors import UserError

# Pictures do not shrink, texts to a tenth. Deflate reaches 1,032: an archive that unpacks to more
# than so many times its size is a bomb.
MAX_EXPANSION, ALWAYS_ALLOWED = 200, 2**30  # times; bytes
LEFT_FREE = 2**28  # bytes of the disk
# A split archive: NAME.zip.001, NAME.zip.002, ... or NAME.00, NAME.01, ...
FIRST_PARTS, PART = (".001", ".00"), re.compile(r".*\.\d{2,3}")

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(EOFError, RuntimeError),
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of an archive."""

    name: str  # within the directory that it is unpacked into
    bytes: int


def unpack(archive: Path, into: Path, patterns: list[str]) -> list[Member]:
    """Unpack those files of ``archive`` that match one of ``patterns`` into the directory ``into``.

    ``archive``: .zip, or .tar, plain or compressed. What its members claim is checked before
    anything is written: names that lead out, links out, devices, two files of one name, and sizes
    that the archive can't honestly have. Raises UserError; ``into`` then holds a part.
    """
    into.mkdir(parents=True, exist_ok=True)
    opened: _Zip | _Tar
    try:
        if zipfile.is_zipfile(archive):
            opened = _Zip(archive)
        elif tarfile.is_tarfile(archive):
            opened = _Tar(archive)
        else:
            raise UserError(
                f"{archive} is neither .zip nor .tar: the server may have sent a page in its place"
            )
        with opened:
            wanted = [
                member
                for member in opened.members()
                if any(fnmatchcase(member.name, pattern) for pattern in patterns)
            ]
            _check(archive, wanted, into)
            for member in tqdm(wanted, f"unpacking {archive.name}", disable=None, delay=2):
                opened.extract(member.name, into)
    except _DAMAGED as error:
        raise UserError(f"{archive} is damaged, or not safe to unpack: {error}") from error
    return wanted


def join_parts(directory: Path, names: Sequence[str], whole: Path) -> Path:
    """The split archive of the files ``names`` of ``directory``, in that order, as ``whole``."""
    with whole.open("wb") as joined:
        for name in names:
            with (directory / name).open("rb") as part:
                shutil.copyfileobj(part, joined, 2**20)
    return whole


def safe_name(name: str) -> bool:
    """Whether the relative path ``name`` stays within the directory that it is relative to."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = bool(path.parts) and path.parts[0].endswith(":")
    return not (path.is_absolute() or drive or ".." in path.parts or "\0" in name)


def _check(archive: Path, members: list[Member], into: Path) -> None:
    if outside := next((member.name for member in members if not safe_name(member.name)), None):
        raise UserError(f"{archive}: the member {outside!r} leads out of the directory")
    names = set()
    for member in members:
        name = PurePosixPath(member.name).as_posix()
        if name in names:
            raise UserError(f"{archive} has the member {name!r} twice")
        names.add(name)
    total, own = sum(member.bytes for member in members), archive.stat().st_size
    if total > max(ALWAYS_ALLOWED, MAX_EXPANSION * own):
        raise UserError(
            f"{archive} would unpack to {total} bytes, {total // max(own, 1)} times its size: "
            "it is no dataset"
        )
    free = shutil.disk_usage(into).free
    if total + LEFT_FREE > free:
        raise UserError(
            f"{archive} unpacks to {total} bytes and there is room for {free}: make room, and run "
            "the stage again to go on"
        )


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path, self._zip = path, zipfile.ZipFile(path)

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, *reason: object) -> None:
        self._zip.close()

    def members(self) -> Iterator[Member]:
        for info in self._zip.infolist():
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{self._path}: the member {info.filename!r} is a link or a device")
            if not info.is_dir():
                yield Member(name=info.filename, bytes=info.file_size)

    def extract(self, name: str, into: Path) -> None:
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not overwritten: two names that differ in case are one where the disk takes them so.
            with self._zip.open(name) as source, path.open("xb") as file:
                shutil.copyfileobj(source, file, 2**20)
        except FileExistsError as error:
            raise UserError(
                f"{self._path}: {name!r} is there already, in another case perhaps, which this "
                "disk can't hold twice"
            ) from error


class _Tar:
    def __init__(self, path: Path) -> None:
        self._path, self._tar = path, tarfile.open(path)  # noqa: SIM115
        self._members: dict[str, tarfile.TarInfo] = {}

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *reason: object) -> None:
        self._tar.close()

    def members(self) -> Iterator[Member]:
        for member in self._tar:
            if member.isdir():
                continue
            if not (member.isreg() or member.issym() or member.islnk()):
                raise UserError(f"{self._path}: the member {member.name!r} is a device")
            name = member.name.removeprefix("./")
            self._members[name] = member
            yield Member(name=name, bytes=member.size)
        assert self._tar.fileobj is not None
        while self._tar.fileobj.read(2**20):  # to the checksum that ends a compressed stream
            pass

    def extract(self, name: str, into: Path) -> None:
        if os.path.lexists(into / name):
            raise UserError(
                f"{self._path}: {name!r} is there already, in another case perhaps, which this "
                "disk can't hold twice"
            )
        self._tar.extract(self._members[name], into, filter="data")  # refuses links that lead out
