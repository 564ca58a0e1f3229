"""A vision checkpoint and a language checkpoint as one, with a fresh projector between them."""

from __future__ import annotations

from pathlib import Path

import torch

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.files import FileEntry, link_files, new_checkpoint, write_part
from nvlm.checkpoint.format.layout import PROJECTION
from nvlm.checkpoint.format.manifest import Manifest, read_manifest, write_manifest
from nvlm.checkpoint.parts.projector import ProjectorParams, fresh_projector, slice_projector
from nvlm.errors import UserError


def combine(vision: Path, language: Path, destination: Path, params: ProjectorParams) -> Manifest:
    """Join two checkpoints of the same tensor-parallel size: links, and a new projector.

    The result has the pipeline layout of ``language``. Raises UserError if the two don't fit.
    """
    tower, decoder = read_manifest(vision), read_manifest(language)
    _check_fit(vision, tower, language, decoder)
    architecture = Architecture(
        vision=tower.architecture.vision, language=decoder.architecture.language
    )
    size = decoder.grid.tensor
    files: dict[str, FileEntry] = {**tower.files, **decoder.files}
    with new_checkpoint(destination) as partial:
        for source, manifest in ((vision, tower), (language, decoder)):
            link_files(source, partial, manifest.files)
        projector = fresh_projector(architecture, params, getattr(torch, decoder.dtype))
        for rank in range(size):
            name, entry = write_part(
                partial, rank, PROJECTION, slice_projector(projector, rank, size)
            )
            files[name] = entry
        combined = Manifest(
            architecture=architecture,
            grid=decoder.grid,
            vocabulary=decoder.vocabulary,
            dtype=decoder.dtype,
            sources=(*tower.sources, *decoder.sources),
            files=files,
        )
        write_manifest(partial, combined)
    return combined


def _check_fit(vision: Path, tower: Manifest, language: Path, decoder: Manifest) -> None:
    for path, architecture, wanted in (
        (vision, tower.architecture, ("vision",)),
        (language, decoder.architecture, ("language",)),
    ):
        halves = tuple(half for half in ("vision", "language") if getattr(architecture, half))
        if halves != wanted:
            raise UserError(
                f"{path} holds {' and '.join(halves)}: give a checkpoint of {wanted[0]} alone"
            )
    if tower.grid.tensor != decoder.grid.tensor:
        raise UserError(
            f"{vision} is laid out for tensor parallel {tower.grid.tensor} and {language} for "
            f"{decoder.grid.tensor}: convert one of them again"
        )
    if tower.dtype != decoder.dtype:
        raise UserError(
            f"{vision} is in {tower.dtype} and {language} in {decoder.dtype}: convert one of them "
            "again"
        )
