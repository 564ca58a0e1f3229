"""One optimizer step on this rank's part of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm.data.batch import Batch
from nvlm.errors import UserError
from nvlm.model.tokens import IGNORED
from nvlm.parallel.data import apply_data_parallel
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.pipeline import StepRunner
from nvlm.parallel.state import load_model
from nvlm.train.optimizer import build_optimizer, clip_gradients, learning_rate
from nvlm.train.params import TrainParams


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did; the same on every rank."""

    loss: float  # mean over the answer tokens of the global batch, in nats
    learning_rate: float
    gradient_norm: float  # before clipping
    stop: bool  # whether any rank asked to stop after this step


class Trainer:
    """Model, optimizer and schedule of a run, on its grid."""

    def __init__(self, params: TrainParams, checkpoint: Path, mesh: Mesh) -> None:
        """Load ``checkpoint``; raises UserError if it is damaged or laid out otherwise."""
        self.params, self.mesh = params, mesh
        torch.use_deterministic_algorithms(True)
        compute: torch.dtype = getattr(torch, params.dtype)
        self.model = load_model(checkpoint, mesh, compute, trained=params.trainable)
        if mesh.grid.data > 1 or compute != torch.float32:
            apply_data_parallel(self.model, mesh, compute)
        self.optimizer = build_optimizer(self.model, params)
        self.runner = StepRunner(
            self.model, mesh, micro_batch=params.micro_batch, tile_chunk=params.tile_chunk
        )

    def step(self, number: int, batch: Batch, *, stop: bool = False) -> StepResult:
        """Step ``number`` (from 1) on this replica's share of the global batch.

        Raises UserError if loss or gradient norm is no longer a number: the parameters are then
        those before the step.
        """
        torch.manual_seed(self.params.seed + number)
        rate = learning_rate(number, self.params)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, stopping = self._accumulate(batch, stop)
        norm = clip_gradients(self.model.parameters(), self.params.clip_grad, self.mesh).item()
        if not torch.isfinite(torch.tensor([loss, norm])).all():
            raise UserError(
                f"step {number}: the loss is {loss}, the gradient norm {norm}: lower the learning "
                f"rate (now {rate:.3g})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss=loss, learning_rate=rate, gradient_norm=norm, stop=stopping)

    def _accumulate(self, batch: Batch, stop: bool) -> tuple[float, bool]:
        """Gradients of the mean loss over all answer tokens of the global batch; that mean."""
        answers = batch.labels.ne(IGNORED).sum()
        dist.all_reduce(answers, group=self.mesh.data.get_group())
        count = max(1, int(answers))
        total = self.runner.run(batch, 1.0 / count)
        # One collective tells every rank the loss, and whether any was told to stop.
        counted = total if self.mesh.tensor_rank == 0 else torch.zeros_like(total)
        status = torch.stack([counted, torch.full_like(total, float(stop))])
        dist.all_reduce(status)
        return status[0].item() / count, bool(status[1])
