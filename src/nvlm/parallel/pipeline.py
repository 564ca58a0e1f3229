"""One optimizer step's forward and backward: micro-batches in turn, or PyTorch's 1F1B pipeline."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import loss_parallel

from nvlm.data.batch import Batch
from nvlm.model.nvlm import NVLM, features_by_row
from nvlm.parallel.data import synchronize_gradients
from nvlm.parallel.loss import token_losses
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.tensor import encode_shared


class StepRunner:
    """Accumulates the gradients of one batch into the model's parameters."""

    def __init__(self, model: NVLM, mesh: Mesh, *, micro_batch: int, tile_chunk: int) -> None:
        self.model, self.mesh = model, mesh
        self.micro_batch, self.tile_chunk = micro_batch, tile_chunk
        self.scale = 1.0
        self.schedule: Schedule1F1B | None = None

    def run(self, batch: Batch, scale: float) -> Tensor:
        """Backpropagate ``scale`` times the summed answer-token loss of ``batch``.

        Returns the summed, unscaled loss of this replica on the last stage, 0 on the others.
        """
        self.scale = scale
        features = None
        if self.mesh.is_first:
            group = self.mesh.tensor.get_group()
            encoded = encode_shared(self.model, batch.tiles, group, self.tile_chunk)
            features = features_by_row(encoded, batch.tiles_per_row)
        context: AbstractContextManager[None] = (
            loss_parallel() if self.mesh.tensor.size() > 1 else nullcontext()
        )
        with context:
            if self.mesh.pipeline.size() == 1:
                return self._run_in_turn(batch, features)
            return self._run_pipeline(batch, features)

    def _run_in_turn(self, batch: Batch, features: Tensor | None) -> Tensor:
        assert features is not None
        total = torch.zeros((), device=self.mesh.device)
        rows = batch.input_ids.shape[0]
        for start in range(0, rows, self.micro_batch):
            part = slice(start, start + self.micro_batch)
            synchronize_gradients(self.model, start + self.micro_batch >= rows)
            output = self.model(
                batch.input_ids[part],
                position_ids=batch.position_ids[part],
                segment_ids=batch.segment_ids[part],
                visual_index=batch.visual_index[part],
                features=features[part],
            )
            loss = self._loss(output, batch.labels[part])
            loss.backward()
            total += loss.detach()
        return total / self.scale

    def _run_pipeline(self, batch: Batch, features: Tensor | None) -> Tensor:
        if self.schedule is None:
            self.schedule = self._build_schedule(batch)
        kwargs: dict[str, Any] = {
            "position_ids": batch.position_ids,
            "segment_ids": batch.segment_ids,
        }
        losses: list[Tensor] = []
        if self.mesh.is_first:
            assert features is not None
            kwargs |= {"visual_index": batch.visual_index, "features": features}
            self.schedule.step(batch.input_ids, return_outputs=False, **kwargs)
        elif self.mesh.is_last:
            self.schedule.step(target=batch.labels, losses=losses, return_outputs=False, **kwargs)
        else:
            self.schedule.step(return_outputs=False, **kwargs)
        total = torch.zeros((), device=self.mesh.device)
        return total + sum(loss.detach() for loss in losses) / self.scale

    def _build_schedule(self, batch: Batch) -> Schedule1F1B:
        rows, length = batch.input_ids.shape
        language = self.model.architecture.language
        assert language is not None
        dtype = next(self.model.language_model.parameters()).dtype
        micro = (self.micro_batch, length)
        hidden = torch.empty(*micro, language.hidden_size, dtype=dtype, device="meta")
        hidden.requires_grad_()  # tells the stages that gradients come back
        tokens = torch.empty(*micro, dtype=torch.long, device="meta")
        held = language_rows(self.model, self.mesh)
        logits = torch.empty(*micro, held, dtype=dtype, device="meta")
        stage = PipelineStage(
            self.model,
            self.mesh.pipeline_rank,
            self.mesh.pipeline.size(),
            self.mesh.device,
            input_args=tokens if self.mesh.is_first else hidden,
            output_args=logits if self.mesh.is_last else hidden,
            group=self.mesh.pipeline.get_group(),
        )
        return Schedule1F1B(stage, rows // self.micro_batch, loss_fn=self._loss, scale_grads=False)

    def _loss(self, output: Tensor, labels: Tensor) -> Tensor:
        losses = token_losses(output, labels, self.model.vocabulary, self.mesh.tensor)
        return losses.sum() * self.scale


def language_rows(model: NVLM, mesh: Mesh) -> int:
    """Rows of the padded vocabulary that one tensor-parallel rank holds."""
    return int(model.language_model.config.vocab_size) // mesh.tensor.size()
