"""Files of a checkpoint: written once, hashed while they are written, linked ever after.

torch is imported only where tensors are, so that what moves files alone starts fast.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from tqdm import tqdm

from nvlm.atomic import atomic_directory
from nvlm.checkpoint.format.layout import part_path
from nvlm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Bytes gathered, hashed and written at a time: few enough to stay in a core's cache in between.
CHUNK = 1 << 20
# safetensors' names of the element types that a checkpoint may have.
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# What linking answers where it is not possible: other file system, no links there, too many.
UNLINKABLE = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP}
# What a person has to put right before a checkpoint can be written.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the manifest says of a file."""

    bytes: int
    sha256: str  # hexadecimal


@contextmanager
def new_checkpoint(destination: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes the checkpoint ``destination`` when it is whole.

    Raises UserError if the disk is full or may not be written; nothing is left behind then.
    """
    try:
        with atomic_directory(destination) as partial:
            yield partial
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"{destination} was not written ({error.strerror}): free some space, or allow writing "
            "there, and start again"
        ) from error


def read_part(directory: Path, tensor_rank: int, part: str) -> dict[str, Tensor]:
    """The tensors of a part, by their Megatron-core names within it, as ``read_tensors`` does."""
    return read_tensors(directory / part_path(tensor_rank, part))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a checkpoint, by name.

    They are views of a private mapping of the file: a page is read when it is touched, and a tensor
    that is changed in place leaves the file alone. Raises UserError naming a file that is missing
    or is not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: make the checkpoint again") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not whole ({error}): make the checkpoint again") from error


def write_part(
    directory: Path, tensor_rank: int, part: str, tensors: Mapping[str, Tensor | Sequence[Tensor]]
) -> tuple[str, FileEntry]:
    """Write a part, as ``write_tensors`` does; return its path and its manifest entry."""
    name = part_path(tensor_rank, part)
    return name, write_tensors(directory, name, tensors)


def write_tensors(
    directory: Path, name: str, tensors: Mapping[str, Tensor | Sequence[Tensor]]
) -> FileEntry:
    """Write ``tensors`` as safetensors to ``name`` in ``directory``; return the manifest entry.

    A tensor may come as pieces along its first dimension, which are joined in the file. The same
    tensors give the same bytes: sorted names, no metadata. What is not contiguous is gathered in
    small chunks. ``directory`` is one that is not published yet, and a file that exists is never
    overwritten (FileExistsError).
    """
    import torch

    pieces: dict[str, list[Tensor]] = {}
    for key in sorted(tensors):
        value = tensors[key]
        pieces[key] = [value] if isinstance(value, torch.Tensor) else list(value)
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        writer = _HashingWriter(file)
        writer.write(safetensors_header({key: _whole(own) for key, own in pieces.items()}))
        for piece in itertools.chain.from_iterable(pieces.values()):
            for chunk in chunks_of(piece):
                writer.write(chunk)
    return writer.entry()


def link_file(source: Path, destination: Path, name: str) -> None:
    """Put file ``name`` of the checkpoint ``source`` into ``destination``: a link, or a copy.

    A hard link costs no space, here or in DVC's cache; another file system gets a copy.
    """
    target = destination / name
    target.parent.mkdir(parents=True, exist_ok=True)
    original = (source / name).resolve()  # DVC may have put a symbolic link there
    try:
        os.link(original, target)
    except OSError as error:
        if error.errno not in UNLINKABLE:
            raise
        shutil.copyfile(original, target)


def link_files(source: Path, destination: Path, files: Mapping[str, FileEntry]) -> None:
    """``link_file`` for each of ``files``, with progress should they have to be copied."""
    total = sum(entry.bytes for entry in files.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="link", delay=2, disable=None) as bar:
        for name in sorted(files):
            link_file(source, destination, name)
            bar.update(files[name].bytes)


def entry_of(path: Path) -> FileEntry:
    """Size and digest of a file, by reading it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(bytes=path.stat().st_size, sha256=digest)


def stays_inside(name: str) -> bool:
    """Whether a relative path from a manifest or an index can't leave its directory."""
    path = PurePosixPath(name)
    plain = name not in {"", "."} and "\\" not in name and "\0" not in name
    return plain and not path.is_absolute() and ".." not in path.parts


class _HashingWriter:
    """Writes to a file and hashes the same bytes, so that no file is read again for its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self.digest.update(chunk)
            self.file.write(chunk)
        self.size += len(view)

    def entry(self) -> FileEntry:
        return FileEntry(bytes=self.size, sha256=self.digest.hexdigest())


def safetensors_header(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> bytes:
    """What a safetensors file starts with, its tensors to follow in this order without gaps.

    Only shapes and dtypes of ``tensors`` are looked at. The JSON is padded with spaces to 8 bytes,
    as the format asks.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": DTYPES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def chunks_of(tensor: Tensor) -> Iterator[memoryview]:
    """``bytes_of`` in turn. A chunk of a tensor that is not contiguous is overwritten by the next.

    So that a strided slice of a large matrix needs no memory of its own size.
    """
    import torch

    if tensor.is_contiguous() or tensor.ndim == 0:
        yield bytes_of(tensor)
        return
    row = tensor[0].numel() * tensor.element_size() or 1
    rows = max(1, CHUNK // row)
    buffer = torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype)
    for own in tensor.detach().split(rows):
        yield bytes_of(buffer[: len(own)].copy_(own))


def _whole(pieces: Sequence[Tensor]) -> Tensor:
    """A tensor of the shape and dtype that ``pieces`` have together, without storage."""
    first = pieces[0]
    if len(pieces) == 1:
        return first.to("meta")
    return first.new_empty((sum(map(len, pieces)), *first.shape[1:]), device="meta")


def bytes_of(tensor: Tensor) -> memoryview:
    """The elements of ``tensor`` in row-major order, as little-endian bytes."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
