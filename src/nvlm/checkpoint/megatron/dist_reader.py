"""Megatron-LM's ``torch_dist`` files, read block by block without running what is pickled in them.

``.metadata`` is a pickle of PyTorch's description of its distributed checkpoint: its classes become
inert records here, and any other global is refused by name. Each block is a ``.pt`` file within a
larger file (``pt_reader``).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvlm.checkpoint.format.files import stays_inside
from nvlm.checkpoint.megatron.args import OWN
from nvlm.checkpoint.megatron.blocks import blocks, rank_shape
from nvlm.checkpoint.megatron.dist_exporting import COMMON, METADATA
from nvlm.checkpoint.megatron.names import with_prefix
from nvlm.checkpoint.megatron.pt_reader import InertUnpickler, PtFile, TensorEntry
from nvlm.errors import UserError

CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}
# What Megatron stores beside the model.
OTHER_STATE = ("optimizer.", "chained_", "rng_state", "rerun_state_machine_state")
LAYERS = "decoder.layers."
MOST_RANKS = 1 << 10


class Record:
    """Stands for an object of PyTorch's: its fields, whatever it was made of."""

    fields: dict[str, Any]

    def __new__(cls, *arguments: object) -> Record:
        """Unpickling makes an object before it has a state, and some never get one."""
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __init__(self, *arguments: object) -> None:
        del arguments

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {"state": state}


@dataclass(frozen=True, kw_only=True)
class StoredBlock:
    """A block of a tensor, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of the checkpoint."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: tuple[StoredBlock, ...]


@dataclass(frozen=True, kw_only=True)
class RankEntry:
    """A rank's share of a stored tensor, or of one layer of a tensor of stacked layers."""

    name: str  # of a combined file
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the stored tensor
    stored: StoredTensor
    layer: int | None  # along the first dimension of the stored tensor


class DistRankFile:
    """What a rank of any tensor-parallel size finds in a ``torch_dist`` checkpoint."""

    def __init__(self, directory: Path, rank: int, size: int, stored: Sequence[StoredTensor]):
        """``rank`` of ``size``. Raises UserError if a tensor does not divide."""
        self.path = directory / METADATA
        self._directory, self._rank, self._size = directory, rank, size
        self.content = PtFile(directory / COMMON).content
        self.tensors = self._entries(stored)

    def read(self, entries: Iterable[RankEntry]) -> list[Tensor]:
        """The tensors of ``entries``. Raises UserError if their blocks are damaged, or too few."""
        return [self._read(entry) for entry in entries]

    def saved(self, axis: str) -> int:
        """Ranks along ``axis`` ("tensor", "pipeline") of whoever saved the checkpoint."""
        args = self.content.get("args") if isinstance(self.content, dict) else None
        count = getattr(args, f"{axis}_model_parallel_size", 1)
        return count if type(count) is int and 0 < count <= MOST_RANKS else 1

    def stages(self) -> tuple[int, ...]:
        """Decoder layers of each pipeline stage of whoever saved the checkpoint."""
        args = self.content.get("args") if isinstance(self.content, dict) else None
        own = getattr(args, OWN, None)
        told = own.get("layers_per_stage") if isinstance(own, dict) else None
        if isinstance(told, list) and all(type(count) is int and count > 0 for count in told):
            return tuple(told)
        layers, pipeline = getattr(args, "num_layers", 0), self.saved("pipeline")
        return (layers // pipeline if type(layers) is int else 0,) * pipeline

    def _entries(self, stored: Sequence[StoredTensor]) -> dict[str, RankEntry]:
        whole: dict[str, tuple[StoredTensor, int | None]] = {}
        for tensor in stored:
            head, layers, tail = tensor.key.partition(LAYERS)
            if layers and not tail.split(".")[0].isdecimal():
                for number in range(tensor.shape[0]):  # the older form: all layers in one tensor
                    whole[f"{head}{layers}{number}.{tail}"] = (tensor, number)
            else:
                whole[tensor.key] = (tensor, None)
        entries = {}
        for full, name in with_prefix(whole).items():
            tensor, layer = whole[name]
            shape = tensor.shape if layer is None else tensor.shape[1:]
            try:
                own = rank_shape(full, shape, self._size)
            except ValueError as error:
                raise UserError(f"{self.path}: {error}: give another --tensor") from error
            entries[full] = RankEntry(
                name=full, shape=own, dtype=tensor.dtype, stored=tensor, layer=layer
            )
        return entries

    def _read(self, entry: RankEntry) -> Tensor:
        lead = () if entry.layer is None else (entry.layer,)
        pieces = []
        for block in blocks(entry.name, entry.shape, self._rank, self._size):
            sizes = (*(1 for _ in lead), *block.sizes)
            piece = self._region(entry.stored, (*lead, *block.offsets), sizes)
            pieces.append(piece.reshape(block.sizes))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _region(
        self, stored: StoredTensor, offsets: tuple[int, ...], sizes: tuple[int, ...]
    ) -> Tensor:
        """The elements of ``stored`` from ``offsets`` on, put together from its blocks."""
        region, filled = None, 0
        for block in stored.blocks:
            low = [max(a, b) for a, b in zip(offsets, block.offsets, strict=True)]
            ends = zip(offsets, sizes, block.offsets, block.sizes, strict=True)
            high = [min(a + n, b + m) for a, n, b, m in ends]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            here = zip(low, high, block.offsets, strict=True)
            found = self._load(stored, block)[tuple(slice(a - o, b - o) for a, b, o in here)]
            if tuple(found.shape) == sizes:
                return found
            if region is None:
                region = torch.empty(sizes, dtype=stored.dtype)
            there = zip(low, high, offsets, strict=True)
            region[tuple(slice(a - o, b - o) for a, b, o in there)] = found
            filled += found.numel()
        if region is None or filled != math.prod(sizes):
            raise UserError(f"{self.path}: blocks of {stored.key} overlap: refused")
        return region

    def _load(self, stored: StoredTensor, block: StoredBlock) -> Tensor:
        path = self._directory / block.file
        file = PtFile(path, block.start, block.bytes)
        entry = file.content
        if (
            not isinstance(entry, TensorEntry)
            or entry.shape != block.sizes
            or entry.dtype != stored.dtype
        ):
            raise UserError(f"{path}: the block of {stored.key} is not what {METADATA} says")
        return file.read([entry])[0]


def read_stored(directory: Path) -> list[StoredTensor]:
    """The tensors of the model that ``directory/.metadata`` describes.

    Raises UserError if it is damaged, names a global of another kind, or files that can't hold
    what it says.
    """
    path = directory / METADATA
    try:
        content = _MetadataUnpickler(io.BytesIO(path.read_bytes()), path).load().fields
        places = {
            (index.fields["fqn"], index.fields.get("offset")): info.fields
            for index, info in content["storage_data"].items()
        }
        tensors = [
            _stored(key, record.fields, places)
            for key, record in content["state_dict_metadata"].items()
            if "chunks" in record.fields and not key.startswith(OTHER_STATE)
        ]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy the whole checkpoint") from error
    except Exception as error:  # unpickling damaged bytes raises nearly anything
        raise UserError(f"{path} can't be read ({error!r}): copy it again") from error
    for tensor in tensors:
        _check(directory, tensor)
    return _without_prefix(tensors)


class _MetadataUnpickler(InertUnpickler):
    """PyTorch's classes of a distributed checkpoint as records, beside what a ``.pt`` may hold."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, path)
        # Classes of this file's own: pickled state that is set on one does not outlive it.
        self._record = type("Record", (Record,), {})

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global. Raises UserError naming one that has none."""
        if name in CLASSES.get(module, ()):
            return self._record
        return super().find_class(module, name)


def _stored(key: str, fields: dict[str, Any], places: dict[Any, dict[str, Any]]) -> StoredTensor:
    """A tensor's description, with the place of each of its blocks."""
    dtype = getattr(torch, fields["properties"].fields["state"][0].removeprefix("torch."))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{key} is of {dtype!r}")
    found = []
    for chunk in fields["chunks"]:
        offsets, sizes = chunk.fields["offsets"], chunk.fields["sizes"]
        place = places[key, offsets]
        if place.get("transform_descriptors"):
            raise ValueError(f"{key} is compressed or encrypted")
        numbers = {"start": int(place["offset"]), "bytes": int(place["length"])}
        file = str(place["relative_path"])
        found.append(StoredBlock(offsets=offsets, sizes=sizes, file=file, **numbers))
    return StoredTensor(key=key, dtype=dtype, shape=fields["size"], blocks=tuple(found))


def _check(directory: Path, tensor: StoredTensor) -> None:
    """Raise UserError unless blocks make up the tensor, and lie whole in files of ``directory``."""
    path = directory / METADATA
    for block in tensor.blocks:
        if not stays_inside(block.file):
            raise UserError(f"{path} names {block.file!r}, which is outside of it: refused")
        file = directory / block.file
        if not file.is_file():
            raise UserError(f"{file} is missing: copy the whole checkpoint")
        needed = math.prod(block.sizes) * tensor.dtype.itemsize
        within = block.start >= 0 and block.start + block.bytes <= file.stat().st_size
        if not within or needed > block.bytes or min(block.sizes, default=1) < 1:
            raise UserError(f"{file} is cut short, it can't hold {tensor.key}: copy it again")
        axes = zip(block.offsets, block.sizes, tensor.shape, strict=False)
        ranks = {len(block.offsets), len(block.sizes), len(tensor.shape)}
        if len(ranks) != 1 or any(not 0 <= o <= whole - n for o, n, whole in axes):
            raise UserError(f"{path}: a block lies outside of {tensor.key}: refused")
    if sum(math.prod(block.sizes) for block in tensor.blocks) != math.prod(tensor.shape):
        raise UserError(f"{path} has no blocks for all of {tensor.key}: copy it again")


def _without_prefix(tensors: list[StoredTensor]) -> list[StoredTensor]:
    """Names as the model has them: ``dist_checkpoint_io.py`` puts "model." before each."""
    prefix = "model."
    if not all(tensor.key.startswith(prefix) for tensor in tensors):
        return tensors
    return [replace(tensor, key=tensor.key.removeprefix(prefix)) for tensor in tensors]
