"""How fast a step went and what it took: nothing of it is an output."""

from __future__ import annotations

import resource

import torch

from nvlm.data.loading.batch import Batch
from nvlm.model.flops import peak_flops, step_flops
from nvlm.model.tokens import IGNORED
from nvlm.train.params import TrainParams
from nvlm.train.trainer import Trainer

GIB = 2**30


def measurements(
    params: TrainParams, trainer: Trainer, batch: Batch, seconds: float, waited: float
) -> dict[str, float]:
    """Rates over the whole grid, taking each replica to be as busy as this one; shares and memory
    of this rank. ``waited``: seconds of ``seconds`` until the batch was there.

    Utilization is of the model's FLOPs (activation checkpointing does not count) over the devices'
    dense bf16 peak; it is 0 where that is not known, as on a CPU.
    """
    grid, device = trainer.mesh.grid, trainer.mesh.device
    rows, length = batch.input_ids.shape
    tokens = int(batch.segment_ids.gt(0).sum())
    flops = grid.data * step_flops(
        trainer.model.architecture,
        trainable=params.trainable,
        rows=rows,
        sequence_length=length,
        tiles=batch.tiles.shape[0],
        answers=int(batch.labels.ne(IGNORED).sum()),
    )
    peak = peak_flops(device)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens * grid.data / seconds,
        "tiles_per_second": batch.tiles.shape[0] * grid.data / seconds,
        "waiting_for_data": waited / seconds,
        "padding": 1 - tokens / batch.segment_ids.numel(),
        "peak_memory_gib": _peak_memory(device) / GIB,
        "teraflops_per_second": flops / seconds / 1e12,
        "flops_utilization": flops / seconds / (peak * grid.processes) if peak else 0.0,
    }


def _peak_memory(device: torch.device) -> int:
    """Most bytes that this rank has held: of the GPU's memory, or of this machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
