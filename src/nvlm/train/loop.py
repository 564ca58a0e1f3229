"""The training loop of both stages: pretraining (projector) and supervised fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from nvlm.data.batch import Batch
from nvlm.data.loader import build_loader
from nvlm.errors import UserError
from nvlm.model.nvlm import NVLM
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.loss import IGNORED
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.pipeline import StepRunner
from nvlm.parallel.state import load_model, save_model
from nvlm.train.curves import Curves
from nvlm.train.optimizer import build_optimizer, clip_gradients, learning_rate
from nvlm.train.params import TrainParams


def train(
    params: TrainParams, *, checkpoint: Path, data: Path, out: Path, curves: Curves, mesh: Mesh
) -> None:
    """Train ``checkpoint`` on the blend of the datasets in ``data``; write a checkpoint to ``out``.

    Same inputs, parameters and kind of machine give the same bytes. Raises UserError if the loss
    is no longer a number.
    """
    torch.manual_seed(params.seed)
    torch.use_deterministic_algorithms(True)
    model = load_model(checkpoint, mesh, getattr(torch, params.dtype))
    for name in params.trainable:
        module = getattr(model, name)
        if module is not None:
            module.requires_grad_(True)
    optimizer = build_optimizer(model, params)
    runner = StepRunner(
        model, mesh, micro_batch=params.micro_batch, tile_chunk=params.tile_chunk
    )
    batches = _batches(params, checkpoint, data, model, mesh)
    progress = tqdm(
        range(1, params.steps + 1), desc=out.name, unit="step", disable=not mesh.is_main or None
    )
    for step in progress:
        started = time.monotonic()
        batch = next(batches)
        rate = learning_rate(step, params)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, answers = _gradients(runner, batch, mesh)
        if not torch.isfinite(loss):
            raise UserError(f"the loss of step {step} is {loss.item()}: lower lr (now {rate:.3g})")
        norm = clip_gradients(model.parameters(), params.clip_grad, mesh)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if mesh.is_main and (step % params.log_every == 0 or step == params.steps):
            curves.add(step, loss=loss.item(), lr=rate, grad_norm=norm.item())
            curves.add_speed(step, time.monotonic() - started, int(batch.segment_ids.gt(0).sum()))
    save_model(model, checkpoint, out, mesh, params.trainable)
    if mesh.is_main:
        curves.write()


def _gradients(runner: StepRunner, batch: Batch, mesh: Mesh) -> tuple[torch.Tensor, int]:
    """Gradients of the mean loss over the answer tokens of the whole global batch; that mean."""
    answers = batch.labels.ne(IGNORED).sum()
    dist.all_reduce(answers, group=mesh.data.get_group())
    total = runner.run(batch, 1.0 / max(1, int(answers)))
    dist.all_reduce(total, group=mesh.pipeline.get_group())
    dist.all_reduce(total, group=mesh.data.get_group())
    return total / answers, int(answers)


def _batches(
    params: TrainParams, checkpoint: Path, data: Path, model: NVLM, mesh: Mesh
) -> Iterator[Batch]:
    """Batches of this replica: read and packed by one rank of it, broadcast to the others."""
    rows = params.global_batch // mesh.data.size()
    replica = mesh.whole["pipeline", "tensor"]._flatten("replica")
    reads = mesh.is_first and mesh.tensor_rank == 0
    loader = None
    if reads:
        loader = iter(
            build_loader(
                data,
                params.data,
                tokenizer=load_tokenizer(checkpoint / "tokenizer"),
                architecture=model.architecture,
                rows=rows,
                rank=mesh.data_rank,
                world=mesh.data.size(),
            )
        )
    while True:
        message = [next(loader) if loader else None]
        dist.broadcast_object_list(message, group=replica.get_group(), group_src=0)
        assert message[0] is not None
        yield message[0].to(mesh.device)
