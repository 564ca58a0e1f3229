"""An adapter folded into the weights that it adapts, a layer in a worker's memory at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from nvlm.checkpoint.format.adapter import adapter_path
from nvlm.checkpoint.format.files import link_files, new_checkpoint
from nvlm.checkpoint.format.layout import LANGUAGE, layer_part, part_path
from nvlm.checkpoint.format.manifest import Manifest, read_manifest, write_manifest
from nvlm.checkpoint.format.writing import Job, write_parts
from nvlm.checkpoint.parts import language
from nvlm.checkpoint.parts.adapter import read_layer
from nvlm.errors import UserError


def merge_adapter(source: Path, destination: Path) -> Manifest:
    """Write ``source`` with its adapter folded in, in the same layout; the rest is hard-linked.

    Raises UserError if there is no adapter.
    """
    manifest = read_manifest(source)
    decoder = manifest.architecture.language
    if manifest.adapter is None or decoder is None:
        raise UserError(f"{source} has no adapter to fold in: it can be used as it is")
    jobs = list(_jobs(source, manifest))
    changed = {part_path(rank, part) for rank, part, _ in jobs}
    gone = {adapter_path(layer) for layer in range(decoder.layers)}
    kept = {n: entry for n, entry in manifest.files.items() if n not in changed | gone}
    total = sum(manifest.files[name].bytes for name in changed)
    with new_checkpoint(destination) as directory:
        link_files(source, directory, kept)
        files = write_parts(directory, jobs, total, "merge")
        merged = dataclasses.replace(manifest, adapter=None, files=kept | files)
        write_manifest(directory, merged)
    return merged


def _jobs(source: Path, manifest: Manifest) -> Iterator[Job]:
    assert manifest.architecture.language is not None
    for layer in range(manifest.architecture.language.layers):
        part = layer_part(LANGUAGE, layer)
        for rank in range(manifest.grid.tensor):
            yield rank, part, partial(_folded, source, manifest, part, rank)


def _folded(
    source: Path, manifest: Manifest, part: str, rank: int
) -> Mapping[str, Tensor | Sequence[Tensor]]:
    decoder = manifest.architecture.language
    assert decoder is not None
    shard = read_layer(source, manifest, rank, part)
    return language.layer_to_pieces(shard, decoder, manifest.grid.tensor)
