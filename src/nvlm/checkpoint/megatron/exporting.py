"""A checkpoint as Megatron-LM's ``torch`` format: one ``.pt`` file a rank of the grid.

Names, shards and dummy heads are those that the converters of Megatron-LM's tag NVLM-1.0 give for
the same weights; directories are named as its loader looks for them (two digits of tensor rank and
three of pipeline rank, where the converters write ``mp_rank_010`` and ``_0010`` above 9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvlm.atomic import write_text
from nvlm.checkpoint.format.files import link_files, new_checkpoint, read_part
from nvlm.checkpoint.format.layout import LANGUAGE
from nvlm.checkpoint.format.manifest import Manifest, read_manifest
from nvlm.checkpoint.format.writing import write_files
from nvlm.checkpoint.megatron.args import ITERATION, to_args
from nvlm.checkpoint.megatron.names import (
    EMBEDDING,
    TABLE,
    TIED_HEAD,
    extra_states,
    megatron_name,
    repeats_embedding,
    stage_parts,
)
from nvlm.checkpoint.megatron.pt_writer import PendingTensor, write_pt
from nvlm.checkpoint.parts import language
from nvlm.checkpoint.parts.adapter import read_layer
from nvlm.checkpoint.parts.shapes import core_shapes

FILE = "model_optim_rng.pt"
LATEST = "latest_checkpointed_iteration.txt"


def export_megatron(source: Path, destination: Path) -> None:
    """Write the checkpoint ``source`` for Megatron-LM, on the grid that it is laid out for.

    One part of each worker's file is in memory. The tokenizer goes to ``tokenizer/``. An adapter is
    folded in.
    """
    manifest = read_manifest(source)
    total = sum(entry.bytes for entry in manifest.files.values())
    with new_checkpoint(destination) as directory:
        tasks = _tasks(source, directory / f"iter_{ITERATION:07d}", manifest)
        for _ in write_files(tasks, total, "export"):
            pass
        tokenizer = [name for name in manifest.other_files if name.startswith("tokenizer/")]
        link_files(source, directory, {name: manifest.files[name] for name in tokenizer})
        write_text(directory / LATEST, str(ITERATION))


def rank_directory(tensor: int, stage: int, stages: int) -> str:
    """Megatron's name for a rank's directory; the stage is left out where there is one only."""
    return f"mp_rank_{tensor:02d}" + (f"_{stage:03d}" if stages > 1 else "")


def _tasks(
    source: Path, directory: Path, manifest: Manifest
) -> Iterator[Callable[[], tuple[Path, None]]]:
    stages = manifest.grid.pipeline
    for rank in range(manifest.grid.tensor):
        for stage in range(stages):
            path = directory / rank_directory(rank, stage, stages) / FILE
            yield partial(_write_rank, source, path, manifest, rank, stage)


def _write_rank(
    source: Path, path: Path, manifest: Manifest, rank: int, stage: int
) -> tuple[Path, None]:
    architecture, vocabulary = manifest.architecture, manifest.vocabulary
    padded = vocabulary.padded if vocabulary else None
    dtype = getattr(torch, manifest.dtype)
    parts = stage_parts(architecture, manifest.grid, stage)
    model: dict[str, PendingTensor | None] = {}
    for part, number in parts:
        shapes = core_shapes(architecture, part, size=manifest.grid.tensor, padded=padded)
        for name in sorted(shapes):
            megatron = megatron_name(architecture, part, number, name)
            model[megatron] = PendingTensor(shape=shapes[name], dtype=dtype)
    repeats = repeats_embedding(architecture, manifest.grid, stage)
    if repeats:
        shape = core_shapes(architecture, EMBEDDING, size=manifest.grid.tensor, padded=padded)[
            TABLE
        ]
        tied = megatron_name(architecture, f"{LANGUAGE}.head", 0, TIED_HEAD)
        model[tied] = PendingTensor(shape=shape, dtype=dtype)
    model |= dict.fromkeys(extra_states(model))
    content: dict[str, Any] = {
        "args": to_args(manifest),
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "model": model,
    }

    def tensors() -> Iterator[Tensor]:
        for part, _ in parts:
            for _, tensor in sorted(read_folded(source, manifest, rank, part).items()):
                yield tensor
        if repeats:
            yield read_part(source, rank, EMBEDDING)[TABLE]

    path.parent.mkdir(parents=True)
    write_pt(path, content, tensors)
    return path, None


def read_folded(source: Path, manifest: Manifest, rank: int, part: str) -> dict[str, Tensor]:
    """The tensors of a part, with an adapter folded in."""
    decoder = manifest.architecture.language
    if manifest.adapter is None or decoder is None or not part.startswith(f"{LANGUAGE}.layer."):
        return read_part(source, rank, part)
    layer = read_layer(source, manifest, rank, part)
    return language.layer_to_core(layer, decoder, manifest.grid.tensor)
