"""A batch from the rank that reads it to its replica's other ranks.

Two broadcasts of plain tensors, on the device where they are used, and a small header. As one
pickled object a batch of the 72B's fine-tuning, 135 MB of pixels, would go from the CPU to the GPU,
over the wire, and back to be unpickled, on every rank and in each step's way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from nvlm.data.loading.batch import Batch
from nvlm.parallel.mesh import Mesh

# The tensors of int64, which travel as one.
INTEGERS = (
    *("input_ids", "position_ids", "segment_ids", "segment_lengths", "labels"),
    *("visual_index", "tiles_per_row"),
)


def broadcast_batch(batch: Batch | None, mesh: Mesh) -> Batch:
    """``batch`` of the replica's first rank, on every rank's device; the others give None."""
    group = mesh.replica.get_group()
    header: list[Any] = [None if batch is None else _header(batch)]
    dist.broadcast_object_list(header, group=group, group_src=0)
    shapes, told = header[0]
    sizes = [torch.Size(shapes[name]).numel() for name in INTEGERS]
    if batch is None:
        integers = torch.empty(sum(sizes), dtype=torch.int64, device=mesh.device)
        tiles = torch.empty(shapes["tiles"], dtype=torch.uint8, device=mesh.device)
    else:
        flat = [getattr(batch, name).flatten() for name in INTEGERS]
        integers = torch.cat(flat).to(mesh.device)
        tiles = batch.tiles.to(mesh.device)
    for tensor in (integers, tiles):
        if tensor.numel():
            dist.broadcast(tensor, group=group, group_src=0)
    parts: dict[str, Any] = {
        name: part.view(shapes[name])
        for name, part in zip(INTEGERS, integers.split(sizes), strict=True)
    }
    return Batch(**parts, tiles=tiles, **told)


def _header(batch: Batch) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The shapes of the tensors, and all that is no tensor."""
    shapes = {name: list(getattr(batch, name).shape) for name in (*INTEGERS, "tiles")}
    return shapes, {name: value for name, value in vars(batch).items() if name not in shapes}
