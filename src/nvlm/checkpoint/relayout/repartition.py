"""Another pipeline layout for a checkpoint: one new manifest, and links to every file.

Which stage reads a layer is metadata, so nothing can get lost on the way. (Upstream's
``pp_checkpoint_converter.py`` rewrites everything, its merge to one stage drops ``final_layernorm``
since it compares the stage with the number of stages that it writes, and a list of layers that sums
short loses layers without a word.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nvlm.checkpoint.format.files import link_files, new_checkpoint
from nvlm.checkpoint.format.layout import pipeline_grid
from nvlm.checkpoint.format.manifest import Manifest, read_manifest, write_manifest
from nvlm.errors import UserError


def repartition(
    source: Path,
    destination: Path,
    *,
    pipeline: int | None = None,
    layers_per_stage: Sequence[int] | None = None,
) -> Manifest:
    """Lay the checkpoint ``source`` out for ``pipeline`` stages, of equally many layers by default.

    ``pipeline`` None: as many stages as ``layers_per_stage`` has counts. No tensor byte is read or
    written (on one file system). Raises UserError if the layers don't divide, the counts don't sum
    to them, or there is no decoder.
    """
    manifest = read_manifest(source)
    if manifest.architecture.language is None:
        raise UserError(f"{source} has no decoder that a pipeline could share out")
    grid = pipeline_grid(
        manifest.architecture,
        tensor=manifest.grid.tensor,
        pipeline=pipeline,
        layers_per_stage=layers_per_stage,
    )
    changed = dataclasses.replace(manifest, grid=grid)
    with new_checkpoint(destination) as directory:
        link_files(source, directory, manifest.files)
        write_manifest(directory, changed)
    return changed
