"""A run that is killed and started again ends with the bytes of one that was not.

Ten runs lose a rank to SIGKILL, each at a step and a moment within it that a seeded generator
draws: before the first snapshot, between snapshots, while one is being written. Each is started
again once. One more is killed at every start until it has no steps left. What is not covered: power
failures (files that were written and not flushed), and both ranks killed at the same instant.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from tests.parallel.grids import make_checkpoint, train_params

from nvlm.errors import UserError
from nvlm.launch.local import launch
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.train.curves import Curves
from nvlm.train.loop import train
from nvlm.train.online import OnlineParams
from nvlm.train.params import TrainParams
from nvlm.train.runs import RESUME, find_snapshots, identify, remove, table, unlike
from nvlm.train.telemetry.logs import Logs
from nvlm.train.trainer import Trainer

GRID = GridParams(tensor=2)
STEPS = 12
LONGEST = 0.05  # seconds after which a strike falls; the last two steps and saving take longer


def params_of(grid: GridParams) -> TrainParams:
    base = train_params(grid, ["vision_projection", "language_model"], STEPS)
    data = replace(
        base.data, blend={"shapes": 1.0}, sequence_length=300, shuffle_buffer=10, workers=2
    )
    return replace(base, data=data, global_batch=4, snapshot_every=3)


@dataclass(frozen=True, kw_only=True)
class Strike:
    """A signal that hits a rank some seconds after the start of a step."""

    rank: int
    step: int
    after: float
    signal: int = signal.SIGKILL
    workers: bool = False  # whether it hits the processes that read for the rank too

    def __str__(self) -> str:
        return f"rank {self.rank}, step {self.step} + {self.after:.3f} s"


def random_strikes(seed: int, count: int) -> list[Strike]:
    """Every other one falls at the very start of a step, the others anywhere after it."""
    draw = random.Random(seed)
    return [
        Strike(
            rank=draw.randrange(2),
            step=draw.randint(1, STEPS - 2),
            after=draw.uniform(0, LONGEST) * (number % 2),
        )
        for number in range(count)
    ]


def run(directory: Path, data: Path, strike: Strike | None = None) -> None:
    """Worker: train in ``directory`` until ``strike``."""
    os.chdir(directory)
    if strike is not None and int(os.environ["RANK"]) == strike.rank:
        step = Trainer.step

        def step_struck(self, number, batch, *, stop=False):
            if number == strike.step and strike.after:
                timer = threading.Timer(strike.after, os.kill, (os.getpid(), strike.signal))
                timer.daemon = True
                timer.start()
            elif number == strike.step:
                workers = psutil.Process().children() if strike.workers else []
                struck = [os.getpid(), *(worker.pid for worker in workers)]
                subprocess.run(["kill", f"-{strike.signal}", *map(str, struck)], check=True)
            return step(self, number, batch, stop=stop)

        Trainer.step = step_struck  # type: ignore[method-assign]
    params = params_of(GRID)
    with parallel_mesh(params.grid) as mesh:
        train(
            params,
            checkpoint=directory / "combined",
            data=data,
            out=directory / "out",
            curves=Curves(directory / "loss.csv"),
            logs=Logs(directory / "logs", "loss", tensorboard=False),
            mesh=mesh,
        )


def content(directory: Path) -> dict[str, bytes]:
    files = [*sorted((directory / "out").rglob("*")), directory / "loss.csv"]
    return {str(f.relative_to(directory)): f.read_bytes() for f in files if f.is_file()}


def snapshots_of(directory: Path, data: Path) -> Path:
    """Where a run in ``directory`` keeps its snapshots."""
    out = directory / "out"
    return directory / identify(params_of(GRID), directory / "combined", data, out).directory


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


@pytest.mark.parametrize("strike", random_strikes(seed=5, count=10), ids=str)
def test_a_killed_run_ends_with_the_same_bytes(strike, make, datasets, uninterrupted):
    directory = make()
    # The rank that lost its neighbour can be seen to end before the one that was killed.
    with pytest.raises(UserError, match=r"rank \d ended with exit code"):
        launch(run, 2, directory, datasets, strike)
    assert not (directory / "out").exists()
    launch(run, 2, directory, datasets)
    assert content(directory) == uninterrupted


def test_a_run_that_is_killed_at_every_start(make, datasets, uninterrupted):
    """Each start goes on from the newest snapshot, of every third step, and dies two steps on."""
    directory = make()
    for step in (5, 8, 11):
        with pytest.raises(UserError, match=r"rank \d ended with exit code"):
            launch(run, 2, directory, datasets, Strike(rank=step % 2, step=step, after=0))
        newest = max(path.parent.name for path in (directory / RESUME).glob("*/step-*/.metadata"))
        assert newest == f"step-{step - 2:08d}"
    launch(run, 2, directory, datasets)
    assert content(directory) == uninterrupted


def test_snapshots_are_of_what_determines_a_run_and_not_of_who_watches_it(make, datasets):
    checkpoint = make() / "combined"
    params = params_of(GRID)

    def kept_in(**changes):
        changed = replace(params, **changes)
        return identify(changed, checkpoint, datasets, Path("34b/sft")).directory

    online = OnlineParams(every=1, tasks=["VQAv2"], questions=1, batch_size=1)
    watching = {"online": online, "tensorboard": True, "log_every": 7, "snapshot_every": 5}
    assert kept_in(**watching, snapshots_kept=3, resume="reshard") == kept_in()
    assert kept_in(seed=2) != kept_in()
    assert kept_in(deterministic=False) != kept_in()
    assert kept_in(data=replace(params.data, workers=1)) != kept_in()


@pytest.mark.parametrize("workers", [False, True])
def test_sigterm_keeps_the_state_of_the_step_it_came_in(workers, make, datasets, uninterrupted):
    directory = make()
    strike = Strike(rank=0, step=4, after=0, signal=signal.SIGTERM, workers=workers)
    with pytest.raises(UserError, match="stopped by SIGTERM after step"):
        launch(run, 2, directory, datasets, strike)
    steps = [p.parent.name for p in (directory / RESUME).glob("*/step-*/.metadata")]
    assert max(steps) in {"step-00000004", "step-00000005"}
    launch(run, 2, directory, datasets)
    assert content(directory) == uninterrupted


def test_a_full_disk_ends_the_run_in_a_sentence(make, datasets, uninterrupted):
    directory = make()
    second = snapshots_of(directory, datasets) / "step-00000006"
    second.mkdir(parents=True)
    for rank in (0, 1):
        (second / f"__{rank}_0.distcp").symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"could not be written \(rank \d: .*No space left.*make room"
    ):
        launch(run, 2, directory, datasets)
    shutil.rmtree(second)
    launch(run, 2, directory, datasets)
    assert content(directory) == uninterrupted


def test_a_damaged_snapshot_is_named(make, datasets, uninterrupted):
    directory = make()
    with pytest.raises(UserError, match="ended with exit code"):
        launch(run, 2, directory, datasets, Strike(rank=0, step=11, after=0))
    newest = max((directory / RESUME).glob("*/step-*/.metadata")).parent
    for file in newest.glob("*.distcp"):
        os.truncate(file, 100)
    with pytest.raises(UserError, match=rf"snapshot .*{newest.name} is damaged .*: remove it"):
        launch(run, 2, directory, datasets)
    shutil.rmtree(newest)
    launch(run, 2, directory, datasets)
    assert content(directory) == uninterrupted


def test_half_written_snapshots_are_neither_loaded_nor_kept(make, datasets):
    """The metadata file is written last."""
    directory = make()
    snapshots = snapshots_of(directory, datasets)
    for step in (1, 11):
        (snapshots / f"step-{step:08d}").mkdir(parents=True)
        (snapshots / f"step-{step:08d}" / "__0_0.distcp").write_text("half")
    with pytest.raises(UserError, match="ended with exit code"):
        launch(run, 2, directory, datasets, Strike(rank=0, step=11, after=0))
    left = sorted(path.name for path in snapshots.glob("step-*"))
    assert left[0] in ("step-00000003", "step-00000006") and left[-1] == "step-00000011"


def run_until_removal(directory: Path, data: Path) -> None:
    """Worker: as ``run``, and killed when the newest snapshot is half removed."""
    remove = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        newest = path.name == "step-00000009" or path.parent.name == str(RESUME)
        if newest and (directory / "out").exists():
            for file in path.rglob("*.distcp"):
                file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        remove(path, **options)

    shutil.rmtree = killed  # type: ignore[assignment]
    run(directory, data)


def test_a_run_that_is_killed_after_its_success(make, datasets, uninterrupted):
    directory = make()
    with pytest.raises(UserError, match="ended with exit code"):
        launch(run_until_removal, 2, directory, datasets)
    shutil.rmtree(directory / "out")  # as dvc does
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


def test_a_sibling_runs_state_is_never_thrown_away_silently(make, datasets, monkeypatch):
    """Another number of workers is the same run shared out otherwise; another seed is another."""
    directory = make()
    monkeypatch.chdir(directory)
    with pytest.raises(UserError, match="ended with exit code"):
        launch(run, 2, directory, datasets, Strike(rank=0, step=8, after=0))
    params = params_of(GRID)

    def run_with(**changes):
        changed = replace(params, **changes)
        return identify(changed, directory / "combined", datasets, directory / "out")

    here = run_with()
    assert find_snapshots(here) == here.directory
    fewer = {"data": replace(params.data, workers=1)}
    with pytest.raises(UserError, match=r"step 6 of a run with data.workers 2 \(here 1\): resume"):
        find_snapshots(run_with(**fewer))
    assert find_snapshots(run_with(**fewer, resume="reshard")) == here.directory
    other = run_with(seed=2)
    assert find_snapshots(other) is None
    assert "step 6 of a run with seed 1 (here 2); this run does not" in unlike(other)[0]
    assert unlike(here) == []
    assert f"{here.directory.name:45}         6         2" in table()
    remove(here.directory)
    assert find_snapshots(run_with(**fewer)) is None
    with pytest.raises(UserError, match="holds no run"):
        remove(here.directory)


def train_on(shard: int, directory: Path, data: Path, resume: str, until: int) -> None:
    """Worker: steps on ``shard`` data ranks, which end after ``until`` as a killed run does."""
    os.chdir(directory)
    grid = GridParams(tensor=1, shard=shard)
    options = {"resume": resume, "snapshot_every": 2, "steps": 24, "micro_batch": 1}
    params = replace(params_of(GRID), grid=grid, **options)
    step = Trainer.step

    def step_until(self, number, batch, *, stop=False):
        return step(self, number, batch, stop=stop or number == until)

    Trainer.step = step_until  # type: ignore[method-assign]
    with parallel_mesh(params.grid) as mesh:
        train(
            params,
            checkpoint=directory / "combined",
            data=data,
            out=directory / "out",
            curves=Curves(directory / "loss.csv"),
            logs=Logs(directory / "logs", "loss", tensorboard=False),
            mesh=mesh,
        )


def losses_in(directory: Path) -> list[float]:
    lines = (directory / "loss.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def test_a_run_goes_on_with_fewer_data_ranks(byte_tokenizer, datasets, tmp_path):
    """Four data ranks, then two: the curve goes on, with no jump above the noise of its steps."""
    grid = GridParams(tensor=1)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for directory in (whole, halved):
        make_checkpoint(directory, "qwen2", grid, vocabulary=258, tokenizer=byte_tokenizer)
    launch(train_on, 4, 4, whole, datasets, "exact", 0)
    with pytest.raises(UserError, match="stopped by SIGTERM after step 16"):
        launch(train_on, 4, 4, halved, datasets, "exact", 16)
    launch(train_on, 2, 2, halved, datasets, "reshard", 0)
    expected, found = losses_in(whole), losses_in(halved)
    assert found[:16] == expected[:16]
    noise = max(abs(a - b) for a, b in itertools.pairwise(expected[8:]))
    assert abs(found[16] - found[15]) <= noise
    mean = [sum(curve[16:]) / 8 for curve in (found, expected)]
    assert mean[0] == pytest.approx(mean[1], abs=noise)
    assert not list((halved / RESUME).glob("*"))


def test_a_running_run_tells_and_a_dead_one_can_be_looked_at(make, datasets):
    """On whatever stderr is: here it is a pipe."""
    directory = make()
    words = "from pathlib import Path as P; from tests.train.test_resume import *; "
    words += f"launch(run, 2, P({str(directory)!r}), P({str(datasets)!r}), "
    words += "Strike(rank=1, step=8, after=0))"
    environment = os.environ | {"PYTHONPATH": f"src{os.pathsep}."}
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "ended with exit code" in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(told) == 7, done.stderr  # one for each step, of all ranks together
    for word in ("loss ", "norm ", "lr ", "tokens/s a rank", "without padding", "GiB", "h left"):
        assert word in told[0]
    curves = (directory / "logs/loss_curves.csv").read_text().splitlines()
    assert curves[0] == "step,loss,lr,grad_norm" and len(curves) == 1 + 6
    assert len((directory / "logs/loss_speed.csv").read_text().splitlines()) == 1 + 6
