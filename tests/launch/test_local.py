"""Launching ranks: results, one-sentence errors, and machines that are too small."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.launch.stage import LaunchParams, choose, launch_stage
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import CUDA_ENVIRONMENT, leave_group, parallel_mesh
from nvlm.params import composed

ROOT = Path(__file__).parents[2]


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


def test_a_rank_without_a_torchrun(monkeypatch):
    """Some clusters number their containers so."""
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"LOCAL_RANK is not: start under torchrun.* unset RANK"):
        params = LaunchParams(kind="local", device="cpu", stop_seconds=7)
        launch_stage(
            params, crash, 1, name="stage", inputs=[], imports="nvlm.parallel.mesh", progress=int
        )


@pytest.mark.parametrize(("kind", "finished"), [("cuda", True), ("cpu", True), ("cpu", False)])
def test_a_failed_rank_of_gpus_does_not_wait_in_its_group(kind, finished, monkeypatch):
    """NCCL would, for what the others never send, and the error would be told by its watchdog."""
    left = []
    monkeypatch.setattr("nvlm.parallel.mesh.dist.destroy_process_group", lambda: left.append(kind))
    leave_group(torch.device("cuda", 0), finished=False)
    assert left == []
    leave_group(torch.device(kind, 0), finished=finished)
    assert left == [kind]


def test_ranks_of_gpus_know_their_device_and_what_is_late(monkeypatch, tmp_path):
    """What NCCL is started with; nothing of it is there on this machine."""
    given: dict[str, object] = {}

    class StartedError(Exception):
        pass

    def start(backend, **options):
        given.update(options, backend=backend)
        raise StartedError

    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    for name in CUDA_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nvlm.parallel.mesh.dist.init_process_group", start)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    with pytest.raises(StartedError), parallel_mesh(GridParams(tensor=1)):
        pass
    assert (given["backend"], given["device_id"]) == ("nccl", torch.device("cuda", 0))
    assert given["timeout"] == timedelta(minutes=30)
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("LOCAL_RANK", "1")
    refused = pytest.raises(UserError, match="the number 1 of its machine, which has 1 GPUs")
    with refused, parallel_mesh(GridParams(tensor=1)):
        pass
    for name in CUDA_ENVIRONMENT:
        os.environ.pop(name, None)


def test_the_image_holds_what_nccl_needs_for_infiniband():
    """Without it 16 nodes would talk TCP, and say nothing of it."""
    image = (ROOT / "Dockerfile").read_text()
    for needed in ("libibverbs1", "ibverbs-providers", "librdmacm1", "--ulimit memlock=-1"):
        assert needed in image


def test_the_cpu_is_taken_unless_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for scale, device in (("smoke", "cpu"), ("full", "cuda")):
        assert OmegaConf.create(composed([f"scale={scale}"])).launch.device == device
    choose("auto")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    choose("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(UserError, match=r"launch\.device is cuda and PyTorch sees no GPU here"):
        choose("cuda")
    with pytest.raises(ValueError, match=r"device: 'tpu' should be one of"):
        LaunchParams(kind="local", device="tpu", stop_seconds=7)


@pytest.fixture
def torchrun(tmp_path):
    """Runs tests/launch/stage.py under two torchruns of one rank each, as on two machines."""
    (tmp_path / "params.yaml").write_text("launch: {kind: local, device: cpu, stop_seconds: 7}")
    (tmp_path / "input").touch()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"

    def run(*arguments: str) -> tuple[list[int], str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting]
        stage = ["--rdzv-id", "stage", str(ROOT / "tests/launch/stage.py"), *arguments]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
        with (tmp_path / "log").open("w") as log:
            machines = [
                subprocess.Popen(
                    # By its name, localhost, each of them would take itself for the host.
                    [*command, "--rdzv-conf", f"is_host={first}", *stage],
                    cwd=tmp_path,
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
                for first in (True, False)
            ]
            try:
                codes = [machine.wait(timeout=60) for machine in machines]
            finally:
                for machine in machines:
                    machine.kill()
        return codes, (tmp_path / "log").read_text()

    return run


def test_ranks_on_two_machines_without_slurm(torchrun, tmp_path):
    codes, log = torchrun("out")
    assert codes == [0, 0], log
    found = [(tmp_path / "out" / rank).read_text() for rank in "01"]
    assert found == ["3.0 of local rank 0 on cpu"] * 2


@pytest.mark.parametrize("failing", ["all", "1", "early"])
def test_an_error_of_ranks_on_two_machines_is_told_once(failing, torchrun):
    codes, log = torchrun("out", failing)
    assert 0 not in codes
    assert log.count("error: the soup is cold: heat it\n") == 1
