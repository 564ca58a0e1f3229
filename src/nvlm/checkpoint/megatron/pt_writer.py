"""PyTorch's ``.pt`` files, written one tensor at a time.

``torch.save`` needs every tensor in memory, which is a rank's whole share of a 72B model. This
writes the same format (a stored zip of ``data.pkl``, ``byteorder``, ``data/N`` and ``version``;
torch/serialization.py), with storages aligned so that ``torch.load(mmap=True)`` reads it, and
without time stamps: the same tensors give the same bytes.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nvlm.checkpoint.format.files import bytes_of

ALIGNMENT = 64  # bytes, as torch aligns storages
FORMAT = b"3\n"  # torch's kProducedFileFormatVersion of zip files
PICKLE_PROTOCOL = 2  # torch.serialization.DEFAULT_PROTOCOL
STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}


@dataclass(frozen=True, kw_only=True)
class PendingTensor:
    """A tensor to be written: its place is taken in the pickled content, its bytes come later."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("only PtPickler can pickle a PendingTensor")


def write_pt(path: Path, content: Any, storages: Callable[[], Iterator[Tensor]]) -> None:
    """Write ``content`` to ``path``, a new file whose parents exist (``write_archive``)."""
    with path.open("xb") as file:
        write_archive(file, path.stem, content, storages)


def write_archive(
    file: BinaryIO, stem: str, content: Any, storages: Callable[[], Iterator[Tensor]]
) -> None:
    """Write ``content`` to ``file``, from where it is, as what ``torch.save`` calls ``stem``.

    ``storages`` yields the tensors of the ``PendingTensor``s in ``content``, in the order in which
    pickling meets them. Raises ValueError if they are not of the promised shapes and dtypes.
    """
    buffer = io.BytesIO()
    pickler = _PtPickler(buffer)
    pickler.dump(content)
    section: Any = _Section(file)
    with zipfile.ZipFile(section, "w", zipfile.ZIP_STORED) as archive:
        _write_record(archive, f"{stem}/data.pkl", buffer.getbuffer())
        _write_record(archive, f"{stem}/byteorder", b"little")
        for index, (pending, tensor) in enumerate(zip(pickler.pending, storages(), strict=True)):
            if tuple(tensor.shape) != pending.shape or tensor.dtype != pending.dtype:
                raise ValueError(f"tensor {index} is {tensor.shape}, not {pending.shape}")
            _write_record(archive, f"{stem}/data/{index}", bytes_of(tensor))
        _write_record(archive, f"{stem}/version", FORMAT)


class _Section:
    """A file from where it is on: an archive's positions count from its own start."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._start = file, file.tell()
        self.write, self.flush = file.write, file.flush

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, position: int) -> int:
        return self._file.seek(self._start + position)


class _PtPickler(pickle.Pickler):
    """Pickles a ``PendingTensor`` as torch pickles a tensor whose storage is elsewhere."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self.pending: list[PendingTensor] = []

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, PendingTensor):
            return NotImplemented
        storage = _Storage(key=str(len(self.pending)), tensor=obj)
        self.pending.append(obj)
        stride = torch.empty(obj.shape, device="meta").stride()
        # Arguments of torch._utils._rebuild_tensor_v2: storage, offset, size, stride, requires
        # grad, backward hooks.
        hooks: OrderedDict[int, Any] = OrderedDict()
        arguments = (storage, 0, obj.shape, stride, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        elements = torch.Size(obj.tensor.shape).numel()
        return "storage", STORAGES[obj.tensor.dtype], obj.key, "cpu", elements


@dataclass(frozen=True, kw_only=True)
class _Storage:
    key: str
    tensor: PendingTensor


def _write_record(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """A stored entry whose content starts at a multiple of ``ALIGNMENT``."""
    info = zipfile.ZipInfo(name)  # dated 1980: the same bytes every time
    assert archive.fp is not None
    # Local header, name, this padding's own header, the sizes of zip64.
    start = archive.fp.tell() + 30 + len(name.encode()) + 4 + 20
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # "FB", as torch pads
    with archive.open(info, "w", force_zip64=True) as record:
        record.write(data)
