"""A training stage from checkpoint to checkpoint: pretraining, or supervised fine-tuning."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from tqdm import tqdm

from nvlm.checkpoint.format.architecture import Architecture
from nvlm.data.loading.batch import Batch
from nvlm.data.loading.loader import build_loader
from nvlm.errors import UserError
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.state import save_model
from nvlm.train.curves import Curves
from nvlm.train.params import TrainParams
from nvlm.train.snapshots import Snapshots, run_digest
from nvlm.train.telemetry.logs import Logs
from nvlm.train.telemetry.measurements import measurements
from nvlm.train.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nvlm.evaluate.online import OnlineEvaluation

RESUME = Path(".resume")  # ignored by git; beside the outputs, which DVC deletes before a run


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
    loader = _loader(params, data, tokenizer, trainer.model.architecture, mesh)
    snapshots = Snapshots(
        RESUME / f"{out.name}-{run_digest(params, checkpoint, data)}", trainer, loader, curves, logs
    )
    online = _online(params, trainer, tokenizer)
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
        try:
            result = trainer.step(step, batch, stop=bool(terminated))
        except UserError:
            snapshots.finish()  # the last whole state stays, to look into
            raise
        progress.set_postfix(loss=f"{result.loss:.3f}", refresh=False)
        if step % params.log_every == 0 or step == params.steps:
            point = {
                "loss": result.loss,
                "lr": result.learning_rate,
                "grad_norm": result.gradient_norm,
            }
            curves.add(step, **point)
            logs.show(step, "training", point)
            seconds = time.monotonic() - started
            logs.add_timing(step, **measurements(params, trainer, batch, seconds, waited))
        if online is not None and params.online is not None and step % params.online.every == 0:
            scores = online.scores()
            if mesh.is_main:
                logs.add_scores(step, **scores)
        if result.stop:
            snapshots.save(step, wait=True)
            raise UserError(f"stopped by SIGTERM after step {step}; run the stage again to go on")
        if step % params.snapshot_every == 0 and step < params.steps:
            snapshots.save(step)
    save_model(trainer.model, checkpoint, out, mesh, params.trainable)
    if mesh.is_main:
        curves.write()
        logs.write()
    snapshots.remove()


def _watch_for_termination() -> list[bool]:
    """A list that is no longer empty once this process was sent SIGTERM."""
    terminated: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    return terminated


def _online(
    params: TrainParams, trainer: Trainer, tokenizer: PreTrainedTokenizerFast
) -> OnlineEvaluation | None:
    """What scores the model on the way, where that is asked for."""
    if params.online is None:
        return None
    from nvlm.evaluate.online import OnlineEvaluation  # an observer: it changes no output

    return OnlineEvaluation(params.online, trainer.model, tokenizer, trainer.mesh)


def _loader(
    params: TrainParams,
    data: Path,
    tokenizer: PreTrainedTokenizerFast,
    architecture: Architecture,
    mesh: Mesh,
) -> Any | None:
    """The loader of this replica, on the one rank of it that reads; None on the others."""
    if not (mesh.is_first and mesh.tensor_rank == 0):
        return None
    return build_loader(
        data,
        params.data,
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
        message = [next(stream) if stream is not None else None]
        dist.broadcast_object_list(message, group=mesh.replica.get_group(), group_src=0)
        assert message[0] is not None
        yield message[0].to(mesh.device)
