"""One optimizer step's forward and backward: micro-batches in turn, or PyTorch's 1F1B pipeline."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import loss_parallel

from nvlm.data.loading.batch import Batch
from nvlm.model.nvlm import NVLM, features_by_row
from nvlm.parallel.data import accumulate
from nvlm.parallel.loss import answer_loss
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.tensor import encode_shared

# Rows are cut to a multiple of so many positions: the kernels' tiles, and few different shapes.
CUT_TO = 64


class StepRunner:
    """Accumulates the gradients of one batch into the model's parameters."""

    def __init__(
        self,
        model: NVLM,
        mesh: Mesh,
        *,
        micro_batch: int,
        tile_chunk: int,
        turn_weighting: str,
        packed: bool,
        keep_gathered: bool,
        compute: torch.dtype,
    ) -> None:
        """``micro_batch``: rows at once; ``tile_chunk``: tiles at once; ``turn_weighting``: what
        the tokens of an answer count (``nvlm.parallel.loss``); ``packed``: whether rows hold
        several samples; ``keep_gathered``: see ``nvlm.parallel.data``; ``compute``: what the layers
        compute in, which the parameters, masters in fp32, don't say."""
        self.model, self.mesh, self.compute = model, mesh, compute
        self.micro_batch, self.tile_chunk = micro_batch, tile_chunk
        self.turn_weighting, self.packed = turn_weighting, packed
        self.keep_gathered = keep_gathered
        self.scale = 1.0
        self.schedule: Schedule1F1B | None = None

    def run(self, batch: Batch, scale: float) -> Tensor:
        """Backpropagate ``scale`` times the summed answer-token loss of ``batch``.

        Returns the summed, unscaled loss of each micro-batch of this replica (M,) on the last
        stage, zeros on the others.
        """
        self.scale = scale
        group = self.mesh.replica.get_group()
        encoded = encode_shared(self.model, batch.tiles, group, self.tile_chunk)
        features = None
        if self.mesh.is_first:
            features = features_by_row(encoded, batch.tiles_per_row)
        del encoded
        context: AbstractContextManager[None] = (
            loss_parallel() if self.mesh.tensor.size() > 1 else nullcontext()
        )
        with context:
            if self.mesh.pipeline.size() == 1:
                return self._run_in_turn(batch, features)
            return self._run_pipeline(batch, features)

    def _run_in_turn(self, batch: Batch, features: Tensor | None) -> Tensor:
        assert features is not None
        losses: list[Tensor] = []
        rows = batch.input_ids.shape[0]
        for start in range(0, rows, self.micro_batch):
            part = slice(start, start + self.micro_batch)
            cut = part, slice(self._length(batch, part))
            last = start + self.micro_batch >= rows
            accumulate(self.model, last=last, keep_gathered=self.keep_gathered)
            output = self.model(
                batch.input_ids[cut],
                position_ids=batch.position_ids[cut],
                visual_index=batch.visual_index[cut],
                features=features[part],
                **self._segments(batch, part),
            )
            losses.append(self._loss(output, batch.labels[cut]))
            losses[-1].backward()
        return torch.stack(losses).detach() / self.scale

    def _length(self, batch: Batch, part: slice) -> int:
        """Positions that a micro-batch is cut to: those of its longest row, a multiple of CUT_TO.

        A step's mathematics is that of whole rows. Packed rows are full.
        """
        whole = batch.input_ids.shape[1]
        if self.packed:
            return whole
        return min(whole, -(-max(batch.lengths[part]) // CUT_TO) * CUT_TO)

    def _segments(self, batch: Batch, part: slice) -> dict[str, Tensor]:
        """Who sees whom; rows of one sample need no telling."""
        if not self.packed:
            return {}
        names = ("segment_ids", "segment_lengths")
        return {name: getattr(batch, name)[part] for name in names}

    def _run_pipeline(self, batch: Batch, features: Tensor | None) -> Tensor:
        if self.schedule is None:
            self.schedule = self._build_schedule(batch)
        kwargs: dict[str, Any] = {
            "position_ids": batch.position_ids,
            **self._segments(batch, slice(None)),
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
        if self.mesh.is_last:
            return torch.stack(losses).detach() / self.scale
        return torch.zeros(self.schedule._n_microbatches, device=self.mesh.device)

    def _build_schedule(self, batch: Batch) -> Schedule1F1B:
        rows, length = batch.input_ids.shape
        language = self.model.architecture.language
        assert language is not None
        micro = (self.micro_batch, length)
        whole = torch.empty(*micro, language.hidden_size, dtype=self.compute, device="meta")
        split = self.model.split
        ranks = self.mesh.tensor.size() if split is not None and split.active else 1
        hidden = whole[:, : length // ranks].clone()  # what stages send one another
        hidden.requires_grad_()  # tells the stages that gradients come back
        tokens = torch.empty(*micro, dtype=torch.long, device="meta")
        stage = PipelineStage(
            self.model,
            self.mesh.pipeline_rank,
            self.mesh.pipeline.size(),
            self.mesh.device,
            input_args=tokens if self.mesh.is_first else hidden,
            output_args=whole if self.mesh.is_last else hidden,
            group=self.mesh.pipeline.get_group(),
        )
        return Schedule1F1B(stage, rows // self.micro_batch, loss_fn=self._loss, scale_grads=False)

    def _loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        decoder = self.model.language_model
        total = answer_loss(
            decoder.lm_head,
            hidden,
            labels,
            vocabulary=self.model.vocabulary,
            mesh=self.mesh.tensor,
            turn_weighting=self.turn_weighting,
        )
        return total * self.scale
