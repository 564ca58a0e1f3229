"""How fast a step went and what it took: nothing of it is an output."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping

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
    tokens = sum(batch.lengths)
    answers = int(batch.labels.ne(IGNORED).sum())
    flops, needed = (
        grid.data
        * step_flops(
            trainer.model.architecture,
            trainable=params.trained,
            lengths=lengths,
            tiles=batch.tiles.shape[0],
            answers=answers,
        )
        for lengths in ([length] * rows, batch.lengths)
    )
    peak = (peak_flops(device) or math.inf) * grid.processes * seconds
    return {
        "seconds": seconds,
        "tokens_per_second": tokens * grid.data / seconds,
        "tokens_per_second_a_rank": tokens * grid.data / seconds / grid.processes,
        "tiles_per_second": batch.tiles.shape[0] * grid.data / seconds,
        "waiting_for_data": waited / seconds,
        "padding": 1 - tokens / batch.segment_ids.numel(),
        "peak_memory_gib": _peak_memory(device) / GIB,
        "teraflops_per_second": flops / seconds / 1e12,
        "flops_utilization": flops / peak,
        "utilization_without_padding": needed / peak,
    }


def line(step: int, steps: int, point: Mapping[str, float], measured: Mapping[str, float]) -> str:
    """What a person reads of ``step``, on whatever stderr is."""
    left = (steps - step) * measured["seconds"] / 3600
    return (
        f"step {step}/{steps}  loss {point['loss']:.4f}  norm {point['grad_norm']:.3f}  "
        f"lr {point['lr']:.2e}  {measured['seconds']:.3f} s  "
        f"{measured['tokens_per_second_a_rank']:,.0f} tokens/s a rank  "
        f"utilization {measured['flops_utilization']:.1%} "
        f"({measured['utilization_without_padding']:.1%} without padding)  "
        f"{measured['peak_memory_gib']:.1f} GiB  data {measured['waiting_for_data']:.0%}  "
        f"{left:.1f} h left"
    )


def _peak_memory(device: torch.device) -> int:
    """Most bytes that this rank has held: of the GPU's memory, or of this machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
