"""What is in a checkpoint, for people to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from nvlm.checkpoint.format.manifest import Manifest

GIB = 1 << 30


def describe(manifest: Manifest) -> str:
    """Architecture, grid, vocabulary, origin and size of a checkpoint, a line each."""
    grid = manifest.grid
    lines = [
        f"dtype           {manifest.dtype}",
        f"grid            tensor {grid.tensor} x pipeline {grid.pipeline}",
    ]
    if grid.layers_per_stage:
        lines.append(f"stages          {' '.join(map(str, grid.layers_per_stage))} layers")
    if manifest.vocabulary:
        rows = manifest.vocabulary
        lines.append(f"vocabulary      {rows.true:,} rows, {rows.padded:,} with padding")
    for half, content in asdict(manifest.architecture).items():
        if content:
            values = ", ".join(f"{name} {value}" for name, value in content.items())
            lines.append(f"{half:<15} {values}")
    for source in manifest.sources:
        lines.append(f"{source.part:<15} from {source.repo} at {source.revision}")
    if manifest.adapter:
        adapter = manifest.adapter
        values = f"rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.targets)}"
        lines.append(f"not folded in   {values}")
    sizes: Counter[str] = Counter()
    for name, entry in manifest.files.items():
        place, _, rest = name.partition("/")  # tp03/..., tokenizer/... or adapter/...
        sizes[rest.partition(".")[0] if name[:2] == "tp" else place] += entry.bytes
    lines += [f"{kind:<15} {size:,} bytes" for kind, size in sorted(sizes.items())]
    total = sum(sizes.values())
    lines.append(
        f"total           {total:,} bytes ({total / GIB:.2f} GiB) in {len(manifest.files)} files"
    )
    return "\n".join(lines)
