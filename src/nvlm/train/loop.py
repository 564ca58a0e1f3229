"""A training stage from checkpoint to checkpoint: pretraining, or supervised fine-tuning."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.data.loading.batch import Batch
from nvlm.data.loading.blend import find_blend
from nvlm.data.loading.loader import build_loader
from nvlm.errors import UserError
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.batches import broadcast_batch
from nvlm.parallel.mesh import Mesh, expect_steps
from nvlm.parallel.state import save_model
from nvlm.train.curves import Curves
from nvlm.train.params import TrainParams
from nvlm.train.runs import identify
from nvlm.train.snapshots import Snapshots
from nvlm.train.telemetry.logs import Logs
from nvlm.train.telemetry.observer import Observer
from nvlm.train.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Python looks for cycles among all objects, for a second at full scale: all ranks at once, and
# seldom, so that none waits for another's.
STEPS_TO_COLLECT = 50


def train(
    params: TrainParams,
    *,
    checkpoint: Path,
    data: Path,
    out: Path,
    curves: Curves,
    logs: Logs,
    mesh: Mesh,
) -> None:
    """Train ``checkpoint`` on the blend of the datasets in ``data``; write a checkpoint to ``out``.

    Same inputs, parameters and kind of machine give the same bytes, however often the run was
    killed and started again. Raises UserError if the loss is no longer a number, and, with the
    state kept, after a SIGTERM.
    """
    trainer = Trainer(params, checkpoint, mesh)
    tokenizer = load_tokenizer(checkpoint / "tokenizer")
    read = partial(_loader, params, data, tokenizer, trainer.model.architecture, mesh)
    loader = read()
    run = identify(params, checkpoint, data, out)
    snapshots = Snapshots(run, trainer, loader, curves, logs)
    observer = Observer(params, trainer, tokenizer, logs)
    observer.start(find_blend(data, params.data.blend))
    done, anew = snapshots.restore()
    if anew:  # other samples than those that came before
        loader = read(seed=params.data.seed + done)
        snapshots.read_from(loader)
    batches = _batches(loader, mesh)
    terminated = _watch_for_termination()
    for step in observer.steps(done + 1, out.name):
        started = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - started
        try:
            result = trainer.step(step, batch, stop=bool(terminated))
        except UserError:
            snapshots.finish()  # the last whole state stays, to look into
            raise
        if step % params.log_every == 0 or step == params.steps:
            curves.add(
                step, loss=result.loss, lr=result.learning_rate, grad_norm=result.gradient_norm
            )
        observer.after(step, result, batch, seconds=time.monotonic() - started, waited=waited)
        if result.stop:
            snapshots.save(step, wait=True)
            raise UserError(f"stopped by SIGTERM after step {step}; run the stage again to go on")
        if step % params.snapshot_every == 0 and step < params.steps:
            snapshots.save(step)
            observer.write(curves)
        _keep_in_step(step, step == done + 1, mesh)
    save_model(trainer.model, checkpoint, out, mesh, params.trained)
    if mesh.is_main:
        curves.write()
    observer.write(curves)
    snapshots.remove()


def _keep_in_step(step: int, first: bool, mesh: Mesh) -> None:
    """Collect garbage on all ranks at once, and know from the ``first`` step on what is late."""
    if first:
        gc.collect()
        gc.disable()
        expect_steps(mesh)
    elif step % STEPS_TO_COLLECT == 0:
        gc.collect(1)


def _watch_for_termination() -> list[bool]:
    """A list that is no longer empty once this process was sent SIGTERM."""
    terminated: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    return terminated


def _loader(
    params: TrainParams,
    data: Path,
    tokenizer: PreTrainedTokenizerFast,
    architecture: Architecture,
    mesh: Mesh,
    *,
    seed: int | None = None,
) -> Any | None:
    """The loader of this replica, on the one rank of it that reads; None on the others."""
    if not (mesh.is_first and mesh.tensor_rank == 0):
        return None
    return build_loader(
        data,
        params.data if seed is None else replace(params.data, seed=seed),
        tokenizer=tokenizer,
        architecture=architecture,
        rows=params.global_batch // mesh.grid.data,
        rank=mesh.data_rank,
        world=mesh.grid.data,
    )


def _batches(loader: Any | None, mesh: Mesh) -> Iterator[Batch]:
    """Batches of this replica: read and packed by one rank of it, broadcast to the others."""
    stream = iter(loader) if loader is not None else None
    while True:
        yield broadcast_batch(next(stream) if stream is not None else None, mesh)
