"""A training stage from checkpoint to checkpoint: pretraining, or supervised fine-tuning."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from nvlm.checkpoint.architecture import Architecture
from nvlm.data.batch import Batch
from nvlm.data.loader import build_loader
from nvlm.errors import UserError
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.state import save_model
from nvlm.train.curves import Curves
from nvlm.train.params import TrainParams
from nvlm.train.snapshots import Snapshots, run_digest
from nvlm.train.trainer import Trainer

RESUME = Path(".resume")  # ignored by git; beside the outputs, which DVC deletes before a run


def train(
    params: TrainParams, *, checkpoint: Path, data: Path, out: Path, curves: Curves, mesh: Mesh
) -> None:
    """Train ``checkpoint`` on the blend of the datasets in ``data``; write a checkpoint to ``out``.

    Same inputs, parameters and kind of machine give the same bytes, however often the run was
    killed and started again. Raises UserError if the loss is no longer a number, and, with the
    state kept, after a SIGTERM.
    """
    trainer = Trainer(params, checkpoint, mesh)
    loader = _loader(params, checkpoint, data, trainer.model.architecture, mesh)
    snapshots = Snapshots(
        RESUME / f"{out.name}-{run_digest(params, checkpoint, data)}", trainer, loader, curves
    )
    done = snapshots.restore()
    batches = _batches(loader, mesh)
    terminated = _watch_for_termination()
    progress = tqdm(
        range(done + 1, params.steps + 1),
        desc=out.name,
        unit="step",
        initial=done,
        total=params.steps,
        disable=None if mesh.is_main else True,
    )
    for step in progress:
        started = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - started
        result = trainer.step(step, batch, stop=bool(terminated))
        progress.set_postfix(loss=f"{result.loss:.3f}", refresh=False)
        if step % params.log_every == 0 or step == params.steps:
            curves.add(
                step, loss=result.loss, lr=result.learning_rate, grad_norm=result.gradient_norm
            )
            curves.add_timing(step, **_timing(batch, time.monotonic() - started, waited, mesh))
        if result.stop:
            snapshots.save(step, wait=True)
            raise UserError(f"stopped by SIGTERM after step {step}; run the stage again to go on")
        if step % params.snapshot_every == 0 and step < params.steps:
            snapshots.save(step)
    save_model(trainer.model, checkpoint, out, mesh, params.trainable)
    if mesh.is_main:
        curves.write()
    snapshots.remove()


def _timing(batch: Batch, seconds: float, waited: float, mesh: Mesh) -> dict[str, float]:
    """How fast a step went, over all replicas; shares are of this rank."""
    tokens = int(batch.segment_ids.gt(0).sum())
    return {
        "seconds": seconds,
        "tokens_per_second": tokens * mesh.grid.data / seconds,
        "tiles_per_second": batch.tiles.shape[0] * mesh.grid.data / seconds,
        "waiting_for_data": waited / seconds,
        "padding": 1 - tokens / batch.segment_ids.numel(),
    }


def _watch_for_termination() -> list[bool]:
    """A list that is no longer empty once this process was sent SIGTERM."""
    terminated: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    return terminated


def _loader(
    params: TrainParams, checkpoint: Path, data: Path, architecture: Architecture, mesh: Mesh
) -> Any | None:
    """The loader of this replica, on the one rank of it that reads; None on the others."""
    if not (mesh.is_first and mesh.tensor_rank == 0):
        return None
    return build_loader(
        data,
        params.data,
        tokenizer=load_tokenizer(checkpoint / "tokenizer"),
        architecture=architecture,
        rows=params.global_batch // mesh.grid.data,
        rank=mesh.data_rank,
        world=mesh.grid.data,
    )


def _batches(loader: Any | None, mesh: Mesh) -> Iterator[Batch]:
    """Batches of this replica: read and packed by one rank of it, broadcast to the others."""
    stream = iter(loader) if loader is not None else None
    while True:
        message = [next(stream) if stream is not None else None]
        dist.broadcast_object_list(message, group=mesh.replica.get_group(), group_src=0)
        assert message[0] is not None
        yield message[0].to(mesh.device)
