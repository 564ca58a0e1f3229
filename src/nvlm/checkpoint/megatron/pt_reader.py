"""PyTorch's ``.pt`` files, read without running what is pickled in them.

Unpickling calls whatever the file names. Here names are looked up in a closed table of inert
stand-ins: tensors become descriptions of where their bytes lie, dtypes and enums their names, and
any other global is refused by name. (torch's own ``weights_only`` refuses every real Megatron file,
whose ``args`` are a Namespace with enums of Megatron's in it.)
"""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nvlm.checkpoint.format.files import bytes_of
from nvlm.errors import UserError

# Storage classes of torch, by the dtype that they hold.
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Plain types, under the names that Python 2's and Python 3's pickles have for them.
PLAIN: dict[tuple[str, str], type] = {
    (module, kind.__name__): kind
    for kind in (set, frozenset, bytearray, complex, int, float, str, list, dict, tuple)
    for module in ("builtins", "__builtin__")
}
PLAIN["collections", "OrderedDict"] = OrderedDict
# Objects that real files hold beside the weights and that nothing here reads: random states of
# numpy, Transformer Engine's extra state. They become an ``Ignored``.
IGNORED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_io", "BytesIO"),
    ("_codecs", "encode"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
}
# Where enums of real ``args`` live (``ModelType``, ``AttnBackend``).
ENUM_PACKAGES = ("megatron",)


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor in the file: elements of a storage, in torch's terms."""

    storage: str  # key: its bytes are the record data/KEY
    dtype: torch.dtype
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Ignored:
    """Stands for an object that nothing reads, whatever it was made of."""

    def __init__(self, *arguments: object) -> None:
        del arguments

    def __setstate__(self, state: object) -> None:
        del state


class PtFile:
    """A ``.pt`` file in zip format. ``content`` is what was saved, tensors being ``TensorEntry``s.

    With ``start`` and ``size`` it is that many bytes of a file that holds several. Raises UserError
    if it is damaged, of the format before torch 1.6, or names a global that is not in the tables
    above.
    """

    def __init__(self, path: Path, start: int = 0, size: int | None = None) -> None:
        self.path = path
        self._records: dict[str, tuple[int, int, int]] = {}  # first byte, bytes, CRC-32
        try:
            with path.open("rb") as file:
                window = _Window(file, start, size)
                with zipfile.ZipFile(window) as archive:
                    pickled = self._index(archive, file, start)
            self.content = InertUnpickler(io.BytesIO(pickled), path).load()
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{path} is not a whole checkpoint of torch 1.6 or later ({error}): save it again"
            ) from error
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: copy the whole checkpoint") from error
        except Exception as error:  # unpickling damaged bytes raises nearly anything
            if isinstance(error, OSError):
                raise
            raise UserError(f"{path} can't be read ({error}): save it again") from error

    def read(self, entries: Iterable[TensorEntry]) -> list[Tensor]:
        """The tensors of ``entries``, as views of a new private mapping of the file.

        Their bytes are compared with the zip's CRC-32 first. Raises UserError if they differ.
        """
        size = self.path.stat().st_size
        whole = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)
        return [self._view(whole, entry) for entry in entries]

    def _view(self, whole: Tensor, entry: TensorEntry) -> Tensor:
        if entry.storage not in self._records:
            raise UserError(f"{self.path} lacks data/{entry.storage}: save it again")
        start, size, checksum = self._records[entry.storage]
        if start + size > len(whole):
            raise UserError(f"{self.path} is cut short: copy it again")
        raw = whole[start : start + size]
        if zlib.crc32(bytes_of(raw)) != checksum:
            raise UserError(f"{self.path} is altered (CRC-32 of data/{entry.storage})")
        reach = [(n - 1) * step for n, step in zip(entry.shape, entry.stride, strict=True)]
        last = entry.offset + sum(reach) if min(entry.shape, default=1) > 0 else -1
        if entry.offset < 0 or min(reach, default=0) < 0 or last >= size // entry.dtype.itemsize:
            raise UserError(f"{self.path}: a tensor reaches beyond data/{entry.storage}: refused")
        if raw.storage_offset() % entry.dtype.itemsize:
            raw = raw.clone()
        elements = raw[: size - size % entry.dtype.itemsize].view(entry.dtype)
        first = elements.storage_offset() + entry.offset
        return elements.as_strided(entry.shape, entry.stride, first)

    def _index(self, archive: zipfile.ZipFile, file: BinaryIO, start: int) -> bytes:
        """Note where each storage lies in ``file``, whose archive begins at ``start``.

        Returns the bytes of ``data.pkl``.
        """
        infos = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{self.path} is not a file of torch.save: it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in infos and archive.read(order) != b"little":
            raise UserError(f"{self.path} was saved on a big-endian machine: not supported")
        for name, info in infos.items():
            if not name.startswith(f"{root}data/"):
                continue
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UserError(f"{self.path}: {name} is compressed: save it with torch.save")
            header = start + info.header_offset
            file.seek(header + 26)
            name_size, extra_size = struct.unpack("<HH", file.read(4))
            record = (header + 30 + name_size + extra_size, info.file_size, info.CRC)
            self._records[name.removeprefix(f"{root}data/")] = record
        return archive.read(pickles[0])


class _Window(io.RawIOBase):
    """Some bytes of a file, as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, size: int | None) -> None:
        self._file, self._start, self._place = file, start, 0
        self._size = file.seek(0, io.SEEK_END) - start if size is None else size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if origin + position < 0:
            raise OSError("a position before the first byte")
        self._place = origin + position
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._place)
        left = max(0, self._size - self._place)
        data = self._file.read(min(len(buffer), left))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class InertUnpickler(pickle.Unpickler):
    """Looks globals up in the tables above. Nothing is ever imported."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path
        # A class of this file's own: pickled state that is set on the class does not outlive it.
        self.namespace = type("Namespace", (argparse.Namespace,), {})
        self.ignored = type("Ignored", (Ignored,), {})

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global. Raises UserError naming one that has none."""
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): _Call(_rebuild_parameter),
            ("torch", "Size"): _Call(_plain_tuple),
            ("torch", "device"): _Call(_plain_device),
            ("builtins", "getattr"): _Call(_enum_member),
            ("__builtin__", "getattr"): _Call(_enum_member),
            ("argparse", "Namespace"): self.namespace,
        }
        if (module, name) in known:
            return known[module, name]
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if (module, name) in IGNORED:
            return self.ignored
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return f"torch.{name}"
        if module.split(".", maxsplit=1)[0] in ENUM_PACKAGES:
            return _EnumType(name)
        raise UserError(
            f"{self.path} would run or build {module}.{name}, which is neither a tensor nor a "
            "plain value: refused"
        )

    def persistent_load(self, pid: Any) -> Any:
        """A reference to a storage, as torch.save writes it."""
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, _StorageType) or not isinstance(key, str):
            raise UserError(f"{self.path} refers to {kind!r}, which torch.save doesn't: refused")
        return _Storage(key, dtype.dtype)


@dataclass(frozen=True, slots=True)
class _Call:
    """A function of ours, in an object that pickled state can't be set on."""

    function: Callable[..., Any]

    def __call__(self, *arguments: object) -> Any:
        return self.function(*arguments)


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _EnumType:
    """An enum of Megatron's: called with a value, it gives a string such as "ModelType(1)"."""

    name: str

    def __call__(self, value: object) -> str:
        if not isinstance(value, int | str | float):
            raise UserError(f"{self.name} is built of {value!r}, as no enum is: refused")
        return f"{self.name}({value!r})"


def _enum_member(owner: object, name: object) -> str:
    """What some Python versions pickle an enum's member as: getattr(class, name)."""
    if not isinstance(owner, _EnumType) or not isinstance(name, str):
        raise UserError(f"getattr of {owner!r} is no enum's member: refused")
    return f"{owner.name}.{name}"


def _rebuild_tensor(
    storage: object, offset: object, shape: object, stride: object, *_: object
) -> TensorEntry:
    if not isinstance(storage, _Storage) or type(offset) is not int:
        raise ValueError("a tensor without a storage")
    return TensorEntry(
        storage=storage.key,
        dtype=storage.dtype,
        offset=offset,
        shape=_integers(shape),
        stride=_integers(stride),
    )


def _integers(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise ValueError(f"{values!r} is no shape")
    return tuple(values)


def _rebuild_parameter(data: object, *_: object) -> object:
    return data


def _plain_tuple(values: Any) -> tuple[int, ...]:
    return _integers(values)


def _plain_device(kind: object, index: object = 0) -> str:
    return f"{kind}:{index}"
