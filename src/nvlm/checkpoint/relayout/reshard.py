"""Another tensor-parallel layout: every part rewritten, a layer in a worker's memory at a time.

Where the tensor-parallel size stays, nothing is rewritten: ``repartition``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from nvlm.checkpoint.format.files import link_files, new_checkpoint, read_part
from nvlm.checkpoint.format.layout import (
    LANGUAGE,
    PROJECTION,
    VISION,
    check_tensor_parallel,
    part_names,
    pipeline_grid,
)
from nvlm.checkpoint.format.manifest import Manifest, Vocabulary, read_manifest, write_manifest
from nvlm.checkpoint.format.sharding import reshard as reshard_tensor
from nvlm.checkpoint.format.writing import Job, write_parts
from nvlm.checkpoint.parts import language, projector, vision
from nvlm.checkpoint.relayout.repartition import repartition


def reshard(
    source: Path,
    destination: Path,
    *,
    tensor: int | None = None,
    pipeline: int | None = None,
    layers_per_stage: Sequence[int] | None = None,
) -> Manifest:
    """Lay ``source`` out for ``tensor`` x ``pipeline`` ranks; None keeps what it has.

    The padded vocabulary stays as it is where ``tensor`` divides it: there and back returns every
    bit. Otherwise rows are added that repeat the last one. Raises UserError if the architecture
    does not divide, or the layer counts don't sum to the decoder's layers.
    """
    manifest = read_manifest(source)
    tensor = manifest.grid.tensor if tensor is None else tensor
    if pipeline is None and layers_per_stage is None:
        layers_per_stage = manifest.grid.layers_per_stage or None
    if tensor == manifest.grid.tensor and manifest.architecture.language is not None:
        return repartition(
            source, destination, pipeline=pipeline, layers_per_stage=layers_per_stage
        )
    check_tensor_parallel(manifest.architecture, tensor)
    grid = pipeline_grid(
        manifest.architecture, tensor=tensor, pipeline=pipeline, layers_per_stage=layers_per_stage
    )
    changed = dataclasses.replace(
        manifest, grid=grid, vocabulary=_vocabulary(manifest.vocabulary, tensor)
    )
    total = sum(entry.bytes for entry in manifest.files.values())
    others = {name: manifest.files[name] for name in manifest.other_files}
    with new_checkpoint(destination) as directory:
        link_files(source, directory, others)
        files = write_parts(directory, _jobs(source, manifest, changed), total, "reshard")
        changed = changed.with_files(others | files)
        write_manifest(directory, changed)
    return changed


def _vocabulary(vocabulary: Vocabulary | None, tensor: int) -> Vocabulary | None:
    if vocabulary is None:
        return None
    padded = -(-vocabulary.padded // tensor) * tensor
    return Vocabulary(true=vocabulary.true, padded=padded)


def _jobs(source: Path, old: Manifest, new: Manifest) -> Iterator[Job]:
    for part in part_names(old.architecture):
        for rank in range(new.grid.tensor):
            yield rank, part, partial(_reshard_part, source, old, new, part, rank)


def _reshard_part(
    source: Path, old: Manifest, new: Manifest, part: str, rank: int
) -> Mapping[str, Tensor | Sequence[Tensor]]:
    """Rank ``rank``'s tensors of ``part`` in the layout ``new``."""
    shards = [read_part(source, other, part) for other in range(old.grid.tensor)]
    size = new.grid.tensor
    half, _, kind = part.partition(".")
    if half == PROJECTION:
        return {
            name: _gather(shards, name, projector.SPLIT.get(name), rank, size) for name in shards[0]
        }
    if half == VISION:
        if kind == "embedding":
            return {name: _gather(shards, name, None, rank, size) for name in shards[0]}
        tower = old.architecture.vision
        assert tower is not None
        return vision.layer_to_pieces(vision.layer_to_hf(shards, tower), tower, rank, size)
    assert half == LANGUAGE and new.vocabulary is not None
    if kind.startswith("layer"):
        return _language_layer(shards, old, rank, size)
    rows = new.vocabulary.padded // size
    return {
        name: _gather(shards, name, None, rank, size)
        if name == "final_layernorm.weight"
        else language.vocabulary_rows(
            [shard[name] for shard in shards], rank * rows, (rank + 1) * rows
        )
        for name in shards[0]
    }


def _gather(
    shards: Sequence[dict[str, Tensor]], name: str, split: int | None, rank: int, size: int
) -> Tensor:
    return reshard_tensor([shard[name] for shard in shards], split, rank, size, name)


def _language_layer(
    shards: Sequence[dict[str, Tensor]], old: Manifest, rank: int, size: int
) -> dict[str, list[Tensor]]:
    decoder = old.architecture.language
    assert decoder is not None
    layers = [language.layer_to_hf(shard, decoder, old.grid.tensor) for shard in shards]
    own = {name: _gather(layers, name, language.SPLIT.get(name), rank, size) for name in layers[0]}
    return language.layer_to_pieces(own, decoder, size)
