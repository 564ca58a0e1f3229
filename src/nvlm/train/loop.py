"""The training loop of both stages: pretraining (projector) and supervised fine-tuning."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from nvlm.data.batch import Batch
from nvlm.data.loader import build_loader
from nvlm.errors import UserError
from nvlm.model.nvlm import NVLM
from nvlm.model.tokens import IGNORED, load_tokenizer
from nvlm.parallel.data import apply_data_parallel
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.pipeline import StepRunner
from nvlm.parallel.state import load_model, save_model
from nvlm.train.curves import Curves
from nvlm.train.optimizer import build_optimizer, clip_gradients, learning_rate
from nvlm.train.params import TrainParams
from nvlm.train.snapshots import Snapshots, run_digest

RESUME = Path(".resume")  # ignored by git; beside the outputs, which DVC deletes before a run


def train(
    params: TrainParams, *, checkpoint: Path, data: Path, out: Path, curves: Curves, mesh: Mesh
) -> None:
    """Train ``checkpoint`` on the blend of the datasets in ``data``; write a checkpoint to ``out``.

    Same inputs, parameters and kind of machine give the same bytes, however often the run was
    killed and started again. Raises UserError if the loss is no longer a number, or after a
    SIGTERM, with the state kept.
    """
    torch.use_deterministic_algorithms(True)
    compute: torch.dtype = getattr(torch, params.dtype)
    model = load_model(checkpoint, mesh, compute, trained=params.trainable)
    if mesh.grid.data > 1 or compute != torch.float32:
        apply_data_parallel(model, mesh, compute)
    optimizer = build_optimizer(model, params)
    runner = StepRunner(model, mesh, micro_batch=params.micro_batch, tile_chunk=params.tile_chunk)
    loader = _loader(params, checkpoint, data, model, mesh)
    snapshots = Snapshots(
        RESUME / f"{out.name}-{run_digest(params, checkpoint, data)}",
        model=model,
        optimizer=optimizer,
        loader=loader,
        curves=curves,
        mesh=mesh,
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
        torch.manual_seed(params.seed + step)
        rate = learning_rate(step, params)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, stop = _gradients(runner, batch, mesh, terminated)
        norm = clip_gradients(model.parameters(), params.clip_grad, mesh).item()
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            raise UserError(
                f"step {step}: the loss is {loss}, the gradient norm {norm}: lower lr ({rate:.3g})"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % params.log_every == 0 or step == params.steps:
            curves.add(step, loss=loss, lr=rate, grad_norm=norm)
            seconds = time.monotonic() - started
            tokens = int(batch.segment_ids.gt(0).sum()) * mesh.grid.data
            curves.add_timing(
                step,
                seconds=seconds,
                tokens_per_second=tokens / seconds,
                tiles_per_second=batch.tiles.shape[0] * mesh.grid.data / seconds,
                waiting_for_data=waited / seconds,
                padding=batch.segment_ids.eq(0).float().mean().item(),
            )
        if stop:
            snapshots.save(step, wait=True)
            raise UserError(f"stopped by SIGTERM after step {step}; run the stage again to go on")
        if step % params.snapshot_every == 0 and step < params.steps:
            snapshots.save(step)
    save_model(model, checkpoint, out, mesh, params.trainable)
    if mesh.is_main:
        curves.write()
    snapshots.remove()


def _gradients(
    runner: StepRunner, batch: Batch, mesh: Mesh, terminated: list[bool]
) -> tuple[float, bool]:
    """Accumulate the gradients of the mean loss over all answer tokens of the global batch.

    Returns that mean, and whether any rank was told to stop.
    """
    answers = batch.labels.ne(IGNORED).sum()
    dist.all_reduce(answers, group=mesh.data.get_group())
    total = runner.run(batch, 1.0 / max(1, int(answers)))
    counted = total if mesh.tensor_rank == 0 else torch.zeros_like(total)
    status = torch.stack([counted, torch.tensor(float(bool(terminated)), device=mesh.device)])
    dist.all_reduce(status)
    return status[0].item() / max(1, int(answers)), bool(status[1])


def _watch_for_termination() -> list[bool]:
    """A list that is no longer empty once this process was sent SIGTERM."""
    terminated: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    return terminated


def _loader(
    params: TrainParams, checkpoint: Path, data: Path, model: NVLM, mesh: Mesh
) -> Any | None:
    """The loader of this replica, on the one rank of it that reads; None on the others."""
    if not (mesh.is_first and mesh.tensor_rank == 0):
        return None
    return build_loader(
        data,
        params.data,
        tokenizer=load_tokenizer(checkpoint / "tokenizer"),
        architecture=model.architecture,
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
