"""The device mesh: pipeline x data x tensor, one process a rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from nvlm.errors import UserError
from nvlm.parallel.grid import GridParams


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """This process's place in the grid, and the groups it talks to."""

    grid: GridParams
    device: torch.device
    whole: DeviceMesh  # dimensions "pipeline", "replicate", "shard", "tensor"
    data: DeviceMesh  # "replicate" and "shard" as one dimension
    replica: DeviceMesh  # the ranks that together hold one replica's batch: pipeline x tensor

    @property
    def tensor(self) -> DeviceMesh:
        """The tensor-parallel ranks that share this one's layers."""
        return self.whole["tensor"]

    @property
    def pipeline(self) -> DeviceMesh:
        """The ranks that hold the other stages of this replica."""
        return self.whole["pipeline"]

    @property
    def fully_sharded(self) -> DeviceMesh:
        """The mesh that FSDP2 shards over: one dimension, or two for HSDP."""
        return self.whole["replicate", "shard"] if self.grid.replicate > 1 else self.whole["shard"]

    @property
    def tensor_rank(self) -> int:
        """Place among the tensor-parallel ranks."""
        return self.tensor.get_local_rank()

    @property
    def pipeline_rank(self) -> int:
        """Pipeline stage."""
        return self.pipeline.get_local_rank()

    @property
    def data_rank(self) -> int:
        """Replica (or, under FSDP2, share of the global batch)."""
        return self.data.get_local_rank()

    @property
    def is_first(self) -> bool:
        """Whether this rank is in the first pipeline stage."""
        return self.pipeline_rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank is in the last pipeline stage."""
        return self.pipeline_rank == self.grid.pipeline - 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes manifests and reports progress."""
        return dist.get_rank() == 0


@contextmanager
def parallel_mesh(grid: GridParams) -> Iterator[Mesh]:
    """Join the process group and lay out the grid; leave the group at the end.

    Tensor-parallel ranks are neighbours (the fastest links), pipeline stages are farthest apart,
    as in Megatron-LM. Raises UserError if the grid isn't the number of processes.
    """
    processes = int(os.environ["WORLD_SIZE"])
    if grid.processes != processes:
        raise UserError(
            f"a grid of tensor {grid.tensor} x pipeline {grid.pipeline} x data {grid.data} needs "
            f"{grid.processes} processes, not {processes}"
        )
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        # cuBLAS refuses deterministic algorithms without it (PyTorch's notes on reproducibility).
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    else:
        device = torch.device("cpu")
        torch.set_flush_denormal(True)  # attention of a trained model has many, ten times slower
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        whole = init_device_mesh(
            device.type,
            (grid.pipeline, grid.replicate, grid.shard, grid.tensor),
            mesh_dim_names=("pipeline", "replicate", "shard", "tensor"),
        )
        yield Mesh(
            grid=grid,
            device=device,
            whole=whole,
            data=whole["replicate", "shard"]._flatten("data"),
            replica=whole["pipeline", "tensor"]._flatten("replica"),
        )
    finally:
        dist.destroy_process_group()
