"""Files of a dataset as its publisher ships them: a folder, a ZIP or a tar archive.

A name comes out of an annotation file and is not to be trusted: whatever its form, it never leads
out of the folder or archive that it is relative to.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from nvlm.data.records import BadRecordError
from nvlm.errors import UserError

PDF_PAGE_PIXELS = 2048  # longer side of a rendered page: more than six tiles of 448 ever show
# More than any image that is not refused: a name may also be that of an archive, or of a file in an
# archive that unpacks to a thousand times its size.
MAX_FILE_BYTES = 2**29

# What reading a member raises, by archive and damage; RuntimeError: it is encrypted.
_UNREADABLE = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class FileStore:
    """Reads files by name from ``roots``, in order: directories, ``.zip`` and ``.tar`` archives.

    A process that gets a copy of a store opens the archives anew.
    """

    roots: tuple[Path, ...]
    _open: dict[Path, _Archive] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for root in self.roots:
            if not root.exists():
                raise UserError(f"{root} is missing: put the dataset's images there")

    def __getstate__(self) -> tuple[Path, ...]:
        return self.roots

    def __setstate__(self, roots: tuple[Path, ...]) -> None:
        object.__setattr__(self, "roots", roots)
        object.__setattr__(self, "_open", {})

    def read(self, name: str) -> bytes:
        """The bytes of the file ``name``; raises BadRecordError if no root has it."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise BadRecordError(f"the path {name!r} leads out of the dataset")
        plain = path.as_posix()  # without "./", which members of archives have not
        for root in self.roots:
            is_folder = root.is_dir()
            data = self._read_directory(root, plain) if is_folder else self._archive(root)[plain]
            if data is not None:
                return data
        raise BadRecordError(f"there is no file {name!r}")

    def _read_directory(self, root: Path, name: str) -> bytes | None:
        path = root / name
        try:
            if not path.is_file():
                return None
            if not path.resolve().is_relative_to(_resolved(root)):
                raise BadRecordError(f"the path {name!r} leads out of the dataset")
            _check_size(name, path.stat().st_size)
            return path.read_bytes()
        except OSError as error:  # a name too long for the file system, or no permission
            raise BadRecordError(f"the file {name!r} cannot be read: {error.strerror}") from error

    def _archive(self, root: Path) -> _Archive:
        if root not in self._open:
            self._open[root] = _Archive(root)
        return self._open[root]


@cache
def _resolved(root: Path) -> Path:
    return root.resolve()  # a look at every folder above, which each image would need again


@dataclass(frozen=True)
class FileImage:
    """An image, or a page of a PDF document, in a store."""

    store: FileStore
    name: str

    def read(self) -> bytes:
        """The file's bytes."""
        return self.store.read(self.name)


@dataclass(frozen=True)
class StoredImage:
    """An image that stands in the annotation file itself, as Parquet files and tars have it."""

    data: bytes
    name: str
    page: int | None = None  # of a PDF document, from 0

    def read(self) -> bytes:
        """The encoded image; a page of a PDF document is rendered as PNG."""
        return self.data if self.page is None else render_page(self.data, self.page)


def render_page(document: bytes, page: int) -> bytes:
    """Page ``page`` of a PDF ``document`` as a PNG file of 2,048 pixels on the longer side."""
    import pypdfium2

    try:
        with pypdfium2.PdfDocument(document) as pdf:
            opened = pdf[page]
            scale = PDF_PAGE_PIXELS / max(opened.get_size())
            buffer = io.BytesIO()
            opened.render(scale=scale).to_pil().convert("RGB").save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()
    except (pypdfium2.PdfiumError, IndexError) as error:
        raise BadRecordError(f"no page {page} in the PDF document: {error}") from error


class _Archive:
    """Members of one archive by name, found through an index rather than by reading along."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
            self._tar = None if self._zip else tarfile.open(path, "r:")  # noqa: SIM115
        except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is neither a folder nor a whole .zip or uncompressed .tar archive: {error}"
            ) from error

    @cached_property
    def _members(self) -> dict[str, tarfile.TarInfo]:
        assert self._tar is not None
        return {member.name.removeprefix("./"): member for member in self._tar if member.isfile()}

    def __getitem__(self, name: str) -> bytes | None:
        try:
            if self._zip:
                if name not in self._zip.NameToInfo:
                    return None
                _check_size(name, self._zip.NameToInfo[name].file_size)
                return self._zip.read(name)
            member = self._members.get(name)
            if member is None:
                return None
            _check_size(name, member.size)
            extracted = self._tar.extractfile(member) if self._tar else None
            return extracted.read() if extracted else None
        except _UNREADABLE as error:
            raise BadRecordError(f"{self._path}: {name!r} cannot be read: {error}") from error


def _check_size(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise BadRecordError(f"the file {name!r} has {size} bytes, which is no image")
