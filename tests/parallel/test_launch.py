"""Launching ranks: results, one-sentence errors, and machines that are too small."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nvlm.errors import UserError
from nvlm.parallel.launch import launch
from nvlm.parallel.mesh import GridParams, parallel_mesh


def write_place(directory: Path) -> None:
    with parallel_mesh(GridParams(tensor=2, pipeline=2)) as mesh:
        place = f"{mesh.pipeline_rank} {mesh.data_rank} {mesh.tensor_rank}"
        (directory / f"{dist.get_rank()}").write_text(place)


def complain() -> None:
    if os.environ["RANK"] == "1":
        raise UserError("the soup is cold: heat it")
    with parallel_mesh(GridParams(tensor=2)):
        dist.all_reduce(torch.zeros(1))


def crash() -> None:
    raise RuntimeError("a bug")


def wrong_grid() -> None:
    with parallel_mesh(GridParams(tensor=3)):
        pass


def test_tensor_ranks_are_neighbours(tmp_path):
    launch(write_place, 4, tmp_path)
    places = [(tmp_path / str(rank)).read_text() for rank in range(4)]
    assert places == ["0 0 0", "0 0 1", "1 0 0", "1 0 1"]


def test_a_workers_user_error_reaches_the_caller():
    with pytest.raises(UserError, match="the soup is cold: heat it"):
        launch(complain, 2)


def test_a_crash_names_the_rank():
    with pytest.raises(UserError, match="rank 0 ended with exit code 1"):
        launch(crash, 1)


def test_a_grid_larger_than_the_machine_is_refused():
    with pytest.raises(UserError, match=r"needs 4096 processes .* smaller parallel sizes"):
        launch(crash, 4096)


def test_a_grid_that_is_not_the_number_of_processes_is_refused():
    with pytest.raises(UserError, match="tensor 3 x pipeline 1 x data 1 needs 3 processes, not 2"):
        launch(wrong_grid, 2)
