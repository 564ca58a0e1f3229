"""One optimizer step on this rank's part of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm.checkpoint.parts.adapter import fresh_matrices
from nvlm.data.loading.batch import Batch
from nvlm.errors import UserError
from nvlm.model.lora import add_adapter
from nvlm.parallel.data import apply_data_parallel
from nvlm.parallel.loss import turn_weights
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.pipeline import StepRunner
from nvlm.parallel.sequence import reduce_shared
from nvlm.parallel.state import load_model
from nvlm.parallel.tied import sum_tied_gradients
from nvlm.train.decoder import prepare_decoder
from nvlm.train.lora import LoraParams
from nvlm.train.optimizer import build_optimizer, clip_gradients, learning_rate
from nvlm.train.params import TrainParams

SEED_STRIDE = 1_000_003  # between the seeds of two replicas: more than a run has steps
KEYS_SHOWN = 20  # samples that a message names


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did; the same on every rank."""

    loss: float  # weighted mean over the answer tokens of the global batch, in nats
    learning_rate: float
    gradient_norm: float  # before clipping
    stop: bool  # whether any rank asked to stop after this step


class Trainer:
    """Model, optimizer and schedule of a run, on its grid."""

    def __init__(self, params: TrainParams, checkpoint: Path, mesh: Mesh) -> None:
        """Load ``checkpoint``; raises UserError if it is damaged or laid out otherwise."""
        self.params, self.mesh = params, mesh
        torch.use_deterministic_algorithms(params.deterministic)
        # It would also fill fresh memory with NaN, to find bugs by: a slow thing.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        compute: torch.dtype = getattr(torch, params.dtype)
        self.model = load_model(checkpoint, mesh, compute, trained=params.trained)
        if params.lora is not None:
            self._adapt(params.lora)
        if self.model.split is not None:
            self.model.split.active = params.sequence_parallel
        prepare_decoder(self.model.language_model, params, mesh.device)
        if mesh.grid.data > 1 or compute != torch.float32:
            apply_data_parallel(self.model, mesh, compute, keep_gathered=params.keep_gathered)
        self.optimizer = build_optimizer(self.model, params)
        self.runner = StepRunner(
            self.model,
            mesh,
            micro_batch=params.micro_batch,
            tile_chunk=params.tile_chunk,
            turn_weighting=params.turn_weighting,
            packed=params.data.packing,
            keep_gathered=params.keep_gathered,
            compute=compute,
        )

    def step(self, number: int, batch: Batch, *, stop: bool = False) -> StepResult:
        """Step ``number`` (from 1) on this replica's share of the global batch.

        Raises UserError if the loss is no longer a number or the gradient norm has exploded: the
        parameters are then those before the step.
        """
        # Replicas draw their own dropout; the ranks of one replica must agree.
        torch.manual_seed(self.params.seed + number + SEED_STRIDE * self.mesh.data_rank)
        rate = learning_rate(number, self.params)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses, weight = self._accumulate(batch)
        loss, stopping = self._sum_up(losses, weight, stop)
        if self.model.split is not None:
            reduce_shared(self.model, self.mesh.tensor)
        repeated = sum_tied_gradients(self.model, self.mesh)
        norm = clip_gradients(
            self.model.parameters(), self.params.clip_grad, self.mesh, repeated=repeated
        ).item()
        if not (math.isfinite(loss) and norm <= self.params.stop_above_norm):
            raise UserError(
                f"step {number}: the loss is {loss:.4g}, the gradient norm {norm:.4g} (more than "
                f"stop_above_norm, {self.params.stop_above_norm:g}, or no number) on the samples "
                f"{self._suspects(batch, losses)}: look at them, or lower lr (now {rate:.3g})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss=loss, learning_rate=rate, gradient_norm=norm, stop=stopping)

    def _adapt(self, lora: LoraParams) -> None:
        language = self.model.architecture.language
        assert language is not None
        adapter, seed = lora.adapter, self.params.seed

        def fresh(layer: int) -> dict[str, Tensor]:
            return fresh_matrices(language, adapter, layer, seed)

        add_adapter(self.model, self.mesh.tensor, adapter, fresh, dropout=lora.dropout)

    def _accumulate(self, batch: Batch) -> tuple[Tensor, float]:
        """Gradients of the global batch's mean loss; this replica's summed loss of each micro-batch
        (on the last stage, zeros on the others), and the weight of the whole global batch."""
        weight = turn_weights(batch.labels, self.params.turn_weighting).double().sum()
        dist.all_reduce(weight, group=self.mesh.data.get_group())
        whole = weight.item() or 1.0
        return self.runner.run(batch, 1.0 / whole), whole

    def _sum_up(self, losses: Tensor, weight: float, stop: bool) -> tuple[float, bool]:
        """The mean loss, and whether any rank was told to stop: one collective tells every rank."""
        total = losses.sum() if self.mesh.tensor_rank == 0 else losses.new_zeros(())
        status = torch.stack([total, torch.full_like(total, float(stop))])
        dist.all_reduce(status)
        return status[0].item() / weight, bool(status[1])

    def _suspects(self, batch: Batch, losses: Tensor) -> str:
        """Keys of the samples whose micro-batch has no finite loss; if there is none, of all."""
        size = self.params.micro_batch
        rows = [
            row
            for number, loss in enumerate(losses.tolist())
            if not math.isfinite(loss)
            for row in range(number * size, (number + 1) * size)
        ]
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (_keys(batch, rows), _keys(batch, None)))
        found = {key for suspects, _ in everywhere for key in suspects}
        keys = sorted(found or {key for _, every in everywhere for key in every})
        more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
        return ", ".join(keys[:KEYS_SHOWN]) + more


def _keys(batch: Batch, rows: list[int] | None) -> list[str]:
    """Keys of the samples in ``rows``, or in all rows."""
    chosen = range(len(batch.keys)) if rows is None else rows
    return [key for row in chosen for key in batch.keys[row]]
