"""A checkpoint as Megatron-LM's ``torch_dist`` format: one set of files for every grid.

What ``tools/checkpoint/dist_checkpoint_io.py`` of Megatron-LM writes from one process, without a
model, a process group or a GPU: PyTorch's distributed checkpoint, whose tensors have their whole
shapes and lie in blocks, beside ``common.pt`` (args) and ``metadata.json``. Here a block is what a
tensor-parallel rank holds, written as it is read, and layers are numbered over all stages
(Megatron-core's ``non_homogeneous_layers``). Extra states, which a model asks for with Transformer
Engine or without it, are empty.

The tower's dummy heads are those of the checkpoint's tensor-parallel size, as in Megatron's own
files: its tower of another size has other shapes, and wants the checkpoint resharded first.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nvlm.atomic import write_bytes, write_text
from nvlm.checkpoint.format.files import link_files, new_checkpoint
from nvlm.checkpoint.format.layout import part_names
from nvlm.checkpoint.format.manifest import Manifest, read_manifest
from nvlm.checkpoint.format.writing import write_files
from nvlm.checkpoint.megatron.args import ITERATION, to_args
from nvlm.checkpoint.megatron.blocks import Block, blocks, whole_shape
from nvlm.checkpoint.megatron.exporting import LATEST, read_folded
from nvlm.checkpoint.megatron.names import EXTRA_STATE, extra_states, full_name, megatron_name
from nvlm.checkpoint.megatron.pt_writer import PendingTensor, write_archive, write_pt

CONFIG, COMMON, METADATA = "metadata.json", "common.pt", ".metadata"
BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# What Megatron-LM's loader asks: how its model is to name and cut tensors.
CONTENT = {"non_homogeneous_layers": True, "singleton_local_shards": False}


# Modules of a decoder that keep extra state beside its linear layers, by version of Transformer
# Engine; a loader passes over what its model does not ask for.
STATEFUL = {"self_attention.linear_proj": "self_attention.core_attention"}
NORM = "decoder.final_layernorm"
# How Megatron-core names and pickles the extra state of a module that has none.
NO_STATE_KEY, NO_STATE = "/shard_0_1", [None]


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A block in a file, or an extra state."""

    key: str
    shape: tuple[int, ...]  # of the whole tensor
    block: Block | None  # None: no tensor
    file: str
    start: int
    bytes: int


def export_torch_dist(source: Path, destination: Path) -> None:
    """Write the checkpoint ``source`` for Megatron-LM on any grid, its tokenizer beside it.

    One part of each worker's file is in memory. An adapter is folded in.
    """
    manifest = read_manifest(source)
    total = sum(entry.bytes for entry in manifest.files.values())
    with new_checkpoint(destination) as directory:
        iteration = directory / f"iter_{ITERATION:07d}"
        iteration.mkdir()
        tasks = _tasks(source, iteration, manifest)
        written = [block for own in write_files(tasks, total, "export") for block in own]
        _write_metadata(iteration / METADATA, written, getattr(torch, manifest.dtype))
        common = {
            "args": to_args(manifest),
            "checkpoint_version": 3.0,
            "iteration": ITERATION,
            "content_metadata": CONTENT,
        }
        write_pt(iteration / COMMON, common, lambda: iter(()))
        write_text(iteration / CONFIG, json.dumps(BACKEND))
        tokenizer = [name for name in manifest.other_files if name.startswith("tokenizer/")]
        link_files(source, directory, {name: manifest.files[name] for name in tokenizer})
        write_text(directory / LATEST, str(ITERATION))


def _tasks(
    source: Path, directory: Path, manifest: Manifest
) -> Iterator[Callable[[], tuple[Path, list[_Written]]]]:
    for number, part in enumerate(part_names(manifest.architecture)):
        for rank in range(manifest.grid.tensor):
            path = directory / f"__{rank}_{number}.distcp"
            yield partial(_write_part, source, path, manifest, part, rank)


def _write_part(
    source: Path, path: Path, manifest: Manifest, part: str, rank: int
) -> tuple[Path, list[_Written]]:
    size, kind = manifest.grid.tensor, part.partition(".")[2]
    number = int(kind.removeprefix("layer.")) if kind.startswith("layer") else 0
    written: list[_Written] = []
    keys: list[str] = []

    def note(key: str, shape: tuple[int, ...], block: Block | None, start: int) -> None:
        size = file.tell() - start
        written.append(
            _Written(key=key, shape=shape, block=block, file=path.name, start=start, bytes=size)
        )

    with path.open("xb") as file:
        for name, tensor in sorted(read_folded(source, manifest, rank, part).items()):
            key = megatron_name(manifest.architecture, part, number, name)
            keys.append(key)
            full = full_name(manifest.architecture, part, number, name)
            shape = tuple(tensor.shape)
            whole = whole_shape(full, shape, size)
            if whole == shape and rank > 0 and size > 1:
                continue  # the same on every rank
            for block in blocks(full, shape, rank, size):
                rows = tensor[block.first_row : block.first_row + block.sizes[0]]
                pending = PendingTensor(shape=block.sizes, dtype=tensor.dtype)
                start = file.tell()
                write_archive(file, "archive", pending, partial(iter, [rows]))
                note(key, whole, block, start)
        for key in _stateful(keys) if rank == 0 else ():
            start = file.tell()
            write_archive(file, "archive", NO_STATE, lambda: iter(()))
            note(key, (), None, start)
    return path, written


def _stateful(keys: Sequence[str]) -> list[str]:
    """The keys of the extra states of the modules that own ``keys``."""
    states = extra_states(keys)
    for linear, module in STATEFUL.items():
        states += [state.replace(linear, module) for state in states if linear in state]
    owners = {key.rpartition(".")[0] for key in keys}
    states += [f"{owner}.{EXTRA_STATE}" for owner in owners if owner.endswith(NORM)]
    return [state + NO_STATE_KEY for state in states]


def _write_metadata(path: Path, written: list[_Written], dtype: torch.dtype) -> None:
    """PyTorch's own description of its distributed checkpoint, pickled as it reads it."""
    tensors: dict[str, TensorStorageMetadata] = {}
    states: dict[str, BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for own in written:
        place = _StorageInfo(own.file, own.start, own.bytes)
        if own.block is None:
            states[own.key] = BytesStorageMetadata()
            places[MetadataIndex(own.key)] = place
            continue
        tensor = tensors.setdefault(
            own.key,
            TensorStorageMetadata(
                properties=TensorProperties(dtype=dtype), size=torch.Size(own.shape), chunks=[]
            ),
        )
        offsets = torch.Size(own.block.offsets)
        index = MetadataIndex(own.key, offsets, len(tensor.chunks))
        places[index] = place
        sizes = torch.Size(own.block.sizes)
        tensor.chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=sizes))
    metadata = Metadata(
        state_dict_metadata={**tensors, **states},
        planner_data={key: (key,) for key in (*tensors, *states)},
        storage_data=places,
        version=CURRENT_DCP_VERSION,
    )
    write_bytes(path, pickle.dumps(metadata))
