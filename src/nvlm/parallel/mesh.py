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


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """This process's place in the grid, and the groups it talks to."""

    device: torch.device
    whole: DeviceMesh  # dimensions "pipeline", "data", "tensor"

    @property
    def tensor(self) -> DeviceMesh:
        return self.whole["tensor"]

    @property
    def pipeline(self) -> DeviceMesh:
        return self.whole["pipeline"]

    @property
    def data(self) -> DeviceMesh:
        return self.whole["data"]

    @property
    def tensor_rank(self) -> int:
        return self.tensor.get_local_rank()

    @property
    def pipeline_rank(self) -> int:
        return self.pipeline.get_local_rank()

    @property
    def data_rank(self) -> int:
        return self.data.get_local_rank()

    @property
    def is_first(self) -> bool:
        """Whether this rank is in the first pipeline stage."""
        return self.pipeline_rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank is in the last pipeline stage."""
        return self.pipeline_rank == self.pipeline.size() - 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes manifests and reports progress."""
        return dist.get_rank() == 0


@contextmanager
def parallel_mesh(*, tensor: int, pipeline: int, data: int = 1) -> Iterator[Mesh]:
    """Join the process group and lay out the grid; leave the group at the end.

    Tensor-parallel ranks are neighbours (the fastest links), pipeline stages are farthest apart,
    as in Megatron-LM. Raises UserError if the grid isn't the number of processes.
    """
    processes = int(os.environ["WORLD_SIZE"])
    if tensor * pipeline * data != processes:
        raise UserError(
            f"a grid of tensor {tensor} x pipeline {pipeline} x data {data} needs "
            f"{tensor * pipeline * data} processes, not {processes}"
        )
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        names = ("pipeline", "data", "tensor")
        whole = init_device_mesh(device.type, (pipeline, data, tensor), mesh_dim_names=names)
        yield Mesh(device=device, whole=whole)
    finally:
        dist.destroy_process_group()
