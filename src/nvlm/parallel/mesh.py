"""The device mesh: pipeline x data x tensor, one process a rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

from nvlm.errors import UserError
from nvlm.parallel.grid import GridParams

DIMENSIONS = ("pipeline", "replicate", "shard", "tensor")
# How long a collective may take until the ranks take each other for lost (NCCL alone heeds it).
FIRST_STEP_TIMEOUT, STEP_TIMEOUT = timedelta(minutes=30), timedelta(minutes=5)
# What is waited for is a file system that writes a checkpoint.
FILES_TIMEOUT = timedelta(hours=6)
CUDA_ENVIRONMENT = {
    # cuBLAS refuses deterministic algorithms without it (PyTorch's notes on reproducibility).
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Rows and tiles differ in number, which leaves holes in segments of fixed size.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # The last collectives of every rank, written down when one of them is lost.
    "TORCH_FR_BUFFER_SIZE": "20000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_DUMP_TEMP_FILE": "logs/nccl_trace_rank_",
    # End the process when a collective fails, without waiting for the communicator's cleaning up.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
}


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """This process's place in the grid, and the groups it talks to."""

    grid: GridParams
    device: torch.device
    whole: DeviceMesh  # dimensions "pipeline", "replicate", "shard", "tensor"
    data: DeviceMesh  # "replicate" and "shard" as one dimension
    replica: DeviceMesh  # the ranks that together hold one replica's batch: pipeline x tensor
    files: dist.ProcessGroup | None  # all ranks, over gloo: waits for disks; None in a rehearsal

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
    as in Megatron-LM. After an error the group of GPUs is left alone: NCCL would wait there for
    what the other ranks will never send, and the error be told ten minutes later. Raises UserError
    if the grid isn't the number of processes.
    """
    processes = int(os.environ["WORLD_SIZE"])
    if grid.processes != processes:
        raise UserError(
            f"a grid of tensor {grid.tensor} x pipeline {grid.pipeline} x data {grid.data} needs "
            f"{grid.processes} processes, not {processes}"
        )
    device = _device()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=FIRST_STEP_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    finished = False
    try:
        whole = init_device_mesh(
            device.type,
            (grid.pipeline, grid.replicate, grid.shard, grid.tensor),
            mesh_dim_names=DIMENSIONS,
        )
        yield Mesh(
            grid=grid,
            device=device,
            whole=whole,
            data=whole["replicate", "shard"]._flatten("data"),
            replica=whole["pipeline", "tensor"]._flatten("replica"),
            files=dist.new_group(backend="gloo", timeout=FILES_TIMEOUT),
        )
        finished = True
    finally:
        leave_group(device, finished=finished)


def leave_group(device: torch.device, *, finished: bool) -> None:
    """Leave the process group, unless NCCL would wait in it for ranks that have failed."""
    if finished or device.type == "cpu":
        dist.destroy_process_group()


def expect_steps(mesh: Mesh) -> None:
    """From here on a collective that takes ``STEP_TIMEOUT`` is lost: the first step is over.

    The first one compiles, allocates and connects; after it a rank that is waited for has died.
    """
    if mesh.device.type == "cuda":
        torch.cuda.synchronize()
        dist.barrier()
        for group in (None, *(mesh.whole[name].get_group() for name in DIMENSIONS)):
            set_timeout(STEP_TIMEOUT, group)


def _device() -> torch.device:
    """This rank's device, set up; what has to be in the environment before CUDA starts is."""
    if not torch.cuda.is_available():
        torch.set_flush_denormal(True)  # attention of a trained model has many, ten times slower
        return torch.device("cpu")
    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    Path("logs").mkdir(exist_ok=True)
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise UserError(
            f"rank {os.environ['RANK']} is the number {local} of its machine, which has "
            f"{torch.cuda.device_count()} GPUs: start one rank a GPU"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
