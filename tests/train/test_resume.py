"""A run that is killed and started again ends with the bytes of one that was not."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.parallel.grids import make_checkpoint, train_params

from nvlm.errors import UserError
from nvlm.parallel.launch import launch
from nvlm.parallel.mesh import GridParams, parallel_mesh
from nvlm.train.curves import Curves
from nvlm.train.loop import RESUME, train
from nvlm.train.params import TrainParams
from nvlm.train.trainer import Trainer

GRID = GridParams(tensor=2)
STEPS = 12


def params_of(grid: GridParams) -> TrainParams:
    base = train_params(grid, ["vision_projection", "language_model"], STEPS)
    data = replace(base.data, blend={"shapes": 1.0}, sequence_length=300, shuffle_buffer=10)
    return replace(base, data=data, global_batch=4, snapshot_every=3)


def run(directory: Path, data: Path, killed: tuple[int, int, int] | None = None) -> None:
    """Worker: train in ``directory``; (rank, step, signal) strikes before the step's end."""
    os.chdir(directory)
    if killed is not None:
        rank, at, sent = killed
        step = Trainer.step

        def struck(self, number, batch, *, stop=False):
            if number == at and int(os.environ["RANK"]) == rank:
                os.kill(os.getpid(), sent)
            return step(self, number, batch, stop=stop)

        Trainer.step = struck  # type: ignore[method-assign]
    params = params_of(GRID)
    with parallel_mesh(params.grid) as mesh:
        train(
            params,
            checkpoint=directory / "combined",
            data=data,
            out=directory / "out",
            curves=Curves(directory / "loss.csv", directory / "logs", tensorboard=False),
            mesh=mesh,
        )


def content(directory: Path) -> dict[str, bytes]:
    files = [*sorted((directory / "out").rglob("*")), directory / "loss.csv"]
    return {str(f.relative_to(directory)): f.read_bytes() for f in files if f.is_file()}


@pytest.fixture(scope="module")
def make(byte_tokenizer, tmp_path_factory):
    def make():
        directory = tmp_path_factory.mktemp("run")
        make_checkpoint(directory, "qwen2", GRID, vocabulary=258, tokenizer=byte_tokenizer)
        return directory

    return make


@pytest.fixture(scope="module")
def uninterrupted(make, datasets):
    directory = make()
    launch(run, 2, directory, datasets)
    assert not list((directory / RESUME).glob("*")), "snapshots are removed on success"
    return content(directory)


@pytest.mark.parametrize("killed", [(0, 5, signal.SIGKILL), (1, 10, signal.SIGKILL)])
def test_a_killed_run_ends_with_the_same_bytes(killed, make, datasets, uninterrupted):
    directory = make()
    with pytest.raises(UserError, match="ended with exit code -9"):
        launch(run, 2, directory, datasets, killed)
    assert not (directory / "out").exists()
    assert list((directory / RESUME).glob("*/step-*/.metadata"))
    launch(run, 2, directory, datasets)
    assert content(directory) == uninterrupted


def test_sigterm_keeps_the_state_of_the_step_it_came_in(make, datasets, uninterrupted):
    directory = make()
    with pytest.raises(UserError, match="stopped by SIGTERM after step"):
        launch(run, 2, directory, datasets, (0, 4, signal.SIGTERM))
    steps = [p.parent.name for p in (directory / RESUME).glob("*/step-*/.metadata")]
    assert max(steps) in {"step-00000004", "step-00000005"}
    launch(run, 2, directory, datasets)
    assert content(directory) == uninterrupted


def test_sigterm_to_the_stages_parent_alone_leaves_no_process(tmp_path):
    """As dvc: a parent that runs the stage through a shell, and dies without telling it."""
    stage = "from tests.train.test_resume import sleep_on_two_ranks as s; s()"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess; subprocess.run({f'{sys.executable} -c {stage!r}; true'!r}, "
            "shell=True)",
        ],
        env=os.environ | {"PYTHONPATH": f"src{os.pathsep}.", "READY": str(tmp_path)},
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 4  # shell, launcher, two ranks
    parent.terminate()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def sleep_on_two_ranks() -> None:
    launch(_sleep, 2)


def _sleep() -> None:
    (Path(os.environ["READY"]) / os.environ["RANK"]).touch()
    time.sleep(300)
