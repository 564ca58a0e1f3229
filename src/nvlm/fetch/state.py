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
    what arrived, of what identity, and which files of the directory came of it with how many bytes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.partial = directory.with_name(f".{directory.name}.fetch.partial")
        self._notes = directory.with_name(f".{directory.name}.fetched")
        for path in (self.directory, self.partial, self._notes):
            path.mkdir(parents=True, exist_ok=True)

    def whole(self, name: str, identity: str | None) -> dict[str, Any] | None:
        """The note of the file ``name``, if it is of this ``identity`` (digest and, of an archive,
        how it is unpacked) and all that came of it is still there."""
        note = self._read(name)
        if note is None or "there" not in note or note["identity"] != identity:
            return None
        here = all(_size(self.directory / path) == size for path, size in note["there"].items())
        return note if here else None

    def place(self, name: str) -> Path:
        """Where the file ``name`` arrives."""
        path = self.partial / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def arrived(self, name: str, identity: str | None) -> tuple[Path, Fetched] | None:
        """The file ``name``, whole and compared, if a killed fetch got no further than that."""
        note = self._read(name)
        if note is None or "there" in note or note["identity"] != identity:
            return None
        for place in (self.place(name), self.directory / name):
            if _size(place) == note["bytes"]:
                return place, Fetched(bytes=note["bytes"], sha256=note["sha256"])
        return None

    def note(self, name: str, fetched: Fetched, identity: str, **more: Any) -> None:
        """Write down what arrived as ``name``."""
        content = {**asdict(fetched), "identity": identity, **more}
        write_text(self._note(name), json.dumps(content) + "\n")

    def put(self, arrived: Path, name: str) -> None:
        """Give the whole file at ``arrived``, of which there is a note, its name."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        arrived.replace(path)
        self._note_files(name, {name: path.stat().st_size})

    def put_members(self, arrived: Path, names: Sequence[str], archive: Archive) -> None:
        """Unpack the whole archive at ``arrived``, which came as ``names``, and remove it.

        Its members take their names when all of them are there.
        """
        staging = self.partial / "unpacked" / names[0]
        shutil.rmtree(staging, ignore_errors=True)
        members = unpack(arrived, staging, archive.members)
        there = {
            (Path(archive.into) / member.name).as_posix(): (staging / member.name).lstat().st_size
            for member in members
        }
        _move(staging, self.directory / archive.into)
        for name in reversed(names):  # the first last: it says that all is done
            self._note_files(name, there, members=len(there) if name == names[0] else 0)
        for name in names:
            (self.directory / name).unlink(missing_ok=True)
        arrived.unlink(missing_ok=True)

    def unpacked(self, name: str) -> bool:
        """Whether what came as ``name`` was unpacked."""
        return "members" in (self._read(name) or {})

    def drop(self, name: str) -> None:
        """Forget the file ``name`` and remove what came of it: it is to be another, or none."""
        note = self._read(name)
        for path in (note or {}).get("there", {}):
            (self.directory / path).unlink(missing_ok=True)
        if note is not None:
            self._note(name).unlink()

    def entries(self) -> list[dict[str, Any]]:
        """What the manifest says of each file; an archive's members are counted."""
        entries = []
        for name in self._names():
            note = self._read(name) or {}
            entry = {"path": name, "bytes": note["bytes"], "sha256": note["sha256"]}
            if "members" in note:
                unpacked = sum(note["there"].values()) if note["members"] else 0
                entry |= {"members": note["members"], "unpacked_bytes": unpacked}
            entries.append(entry)
        return entries

    def finish(self, wanted: Sequence[str]) -> None:
        """Remove what was on its way, and files of earlier fetches that are not ``wanted``."""
        shutil.rmtree(self.partial, ignore_errors=True)
        for name in self._names():
            if name not in wanted:
                self.drop(name)

    def _note_files(self, name: str, there: dict[str, int], **more: Any) -> None:
        note = self._read(name)
        assert note is not None
        fetched = Fetched(bytes=note["bytes"], sha256=note["sha256"])
        self.note(name, fetched, note["identity"], there=there, **more)

    def _names(self) -> list[str]:
        notes = (path.relative_to(self._notes).as_posix() for path in self._notes.rglob("*.json"))
        return sorted(note.removesuffix(".json") for note in notes)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._note(name)
        if not path.is_file():
            return None
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return note

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
        if path.is_dir() and not path.is_symlink() and target.is_dir() and not target.is_symlink():
            _move(path, target)
        else:
            path.replace(target)
    staging.rmdir()
