"""A batch arrives as it was sent, on every rank of its replica."""

from dataclasses import fields
from pathlib import Path

import torch
from tests.parallel.grids import make_batch

from nvlm.data.loading.shortfall import Shortfall
from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.parallel.batches import broadcast_batch
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh


def receive(directory: Path) -> None:
    """Worker: rank 0 sends two batches, of which the second has no picture."""
    with parallel_mesh(GridParams(tensor=1, pipeline=2)) as mesh:
        for rows in (5, 1):
            sent = make_batch(rows, seed=rows)
            sent.shortfalls.append(Shortfall(key="a/1", kind="too long", tokens=rows))
            if rows == 1:
                sent = type(sent)(**(vars(sent) | {"tiles": sent.tiles[:0]}))
            got = broadcast_batch(sent if mesh.is_main else None, mesh)
            for field in fields(sent):
                one, other = getattr(sent, field.name), getattr(got, field.name)
                same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
                if not same or type(one) is not type(other):
                    raise UserError(f"{field.name} changed on the way")
        (directory / str(mesh.pipeline_rank)).touch()


def test_a_batch_arrives_as_it_was_sent(tmp_path):
    launch(receive, 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
