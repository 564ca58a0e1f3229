"""Another pipeline layout for a checkpoint: one new manifest, and links to every file.

Which stage reads a layer is metadata, so nothing can get lost on the way. (Upstream's
``pp_checkpoint_converter.py`` rewrites everything, and its merge to one stage drops
``final_layernorm`` since it compares the stage with the number of stages that it writes.)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nvlm.checkpoint.files import link_file, new_checkpoint
from nvlm.checkpoint.layout import even_grid
from nvlm.checkpoint.manifest import Manifest, read_manifest, write_manifest
from nvlm.errors import UserError


def repartition(source: Path, destination: Path, *, pipeline: int) -> Manifest:
    """Lay the checkpoint ``source`` out for ``pipeline`` stages of equally many decoder layers.

    No tensor byte is read or written (on one file system). Raises UserError if the layers don't
    divide, or there is no decoder.
    """
    manifest = read_manifest(source)
    if manifest.architecture.language is None:
        raise UserError(f"{source} has no decoder that a pipeline could share out")
    grid = even_grid(manifest.architecture, tensor=manifest.grid.tensor, pipeline=pipeline)
    changed = dataclasses.replace(manifest, grid=grid)
    with new_checkpoint(destination) as partial:
        for name in sorted(manifest.files):
            link_file(source, partial, name)
        write_manifest(partial, changed)
    return changed
