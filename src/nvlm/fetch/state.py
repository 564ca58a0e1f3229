"""What is whole in a source's directory, and what is on its way there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvlm.atomic import write_text
from nvlm.fetch.archives import unpack
from nvlm.fetch.sources import Archive
from nvlm.fetch.web import Fetched


class State:
    """The directory of a source, and two hidden ones beside it.

    ``partial`` holds what is on its way. The other has a note a file, written when it is whole:
    what arrived, and which files of the directory came of it with how many bytes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.partial = directory.with_name(f".{directory.name}.fetch.partial")
        self._notes = directory.with_name(f".{directory.name}.fetched")
        for path in (self.directory, self.partial, self._notes):
            path.mkdir(parents=True, exist_ok=True)

    def whole(self, name: str) -> dict[str, Any] | None:
        """The note of the file ``name``, if all that came of it is still there."""
        path = self._note(name)
        if not path.is_file():
            return None
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "there" not in note:  # an archive that has arrived and is not unpacked
            return None
        here = all(_size(self.directory / name) == size for name, size in note["there"].items())
        return note if here else None

    def place(self, name: str) -> Path:
        """Where the file ``name`` arrives."""
        path = self.partial / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def arrived(self, name: str) -> tuple[Path, Fetched] | None:
        """The file ``name``, whole and compared, if a killed fetch got no further than that."""
        path = self._note(name)
        if not path.is_file():
            return None
        note = json.loads(path.read_text(encoding="utf-8"))
        for place in (self.place(name), self.directory / name):
            if "there" not in note and _size(place) == note["bytes"]:
                return place, Fetched(bytes=note["bytes"], sha256=note["sha256"])
        return None

    def note(self, name: str, fetched: Fetched, **more: Any) -> None:
        """Write down what arrived as ``name``."""
        write_text(self._note(name), json.dumps({**asdict(fetched), **more}) + "\n")

    def put(self, arrived: Path, name: str, fetched: Fetched) -> None:
        """Give the whole file at ``arrived`` its name."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        arrived.replace(path)
        self.note(name, fetched, there={name: fetched.bytes})

    def put_members(self, arrived: Path, names: Sequence[str], archive: Archive) -> None:
        """Unpack the whole archive at ``arrived``, which came as ``names``, and remove it.

        Its members take their names when all of them are there.
        """
        staging = self.partial / "unpacked" / names[0]
        shutil.rmtree(staging, ignore_errors=True)
        members = unpack(arrived, staging, archive.members)
        _move(staging, self.directory / archive.into)
        there = {(Path(archive.into) / member.name).as_posix(): member.bytes for member in members}
        for name in names:
            note = json.loads(self._note(name).read_text(encoding="utf-8"))
            fetched = Fetched(bytes=note["bytes"], sha256=note["sha256"])
            self.note(name, fetched, members=len(there), there=there)
            (self.directory / name).unlink(missing_ok=True)
            there = {}  # what came in parts is written down with the first
        arrived.unlink()

    def entries(self) -> list[dict[str, Any]]:
        """What the manifest says of each file; an archive's members are counted."""
        entries = []
        for path in sorted(self._notes.rglob("*.json")):
            note = json.loads(path.read_text(encoding="utf-8"))
            name = path.relative_to(self._notes).as_posix().removesuffix(".json")
            unpacked = sum(note.pop("there").values())
            if "members" in note:
                note["unpacked_bytes"] = unpacked
            entries.append({"path": name, **note})
        return entries

    def forget(self, wanted: Sequence[str]) -> None:
        """Drop what was on its way, and the notes of files that are no longer ``wanted``."""
        shutil.rmtree(self.partial, ignore_errors=True)
        for path in self._notes.rglob("*.json"):
            if path.relative_to(self._notes).as_posix().removesuffix(".json") not in wanted:
                path.unlink()

    def _note(self, name: str) -> Path:
        return self._notes / f"{name}.json"


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _move(staging: Path, into: Path) -> None:
    """Move what ``staging`` holds to ``into``, where folders may be there already."""
    into.mkdir(parents=True, exist_ok=True)
    for path in sorted(staging.iterdir()):
        target = into / path.name
        if path.is_dir() and not path.is_symlink() and target.is_dir():
            _move(path, target)
        else:
            path.replace(target)
    staging.rmdir()
