"""What stops the ranks of a run, and what does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nvlm.launch.local import launch

ROOT = Path(__file__).parents[2]
STAGE = "from tests.launch.test_stopping import sleep_on_two_ranks as s; s()"


def sleep_on_two_ranks() -> None:
    launch(_sleep, 2)


def _sleep() -> None:
    (Path(os.environ["READY"]) / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(300)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


@pytest.fixture
def start(tmp_path):
    """Starts a command as a session of its own; returns it, its ranks and their launcher."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "READY": str(tmp_path),
    }
    started: list[psutil.Process] = []

    def start(*command: str):
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdin=subprocess.PIPE, start_new_session=True
        )
        started.append(psutil.Process(process.pid))
        files = [tmp_path / "0", tmp_path / "1"]
        wait_for(lambda: all(file.exists() and file.read_text() for file in files))
        ranks = [psutil.Process(int(file.read_text())) for file in files]
        launcher = ranks[0].parent()
        assert launcher is not None
        started.extend([launcher, *ranks])
        return process, ranks, launcher

    yield start
    for process in started:
        if process.is_running():  # psutil knows a process from another with its number
            process.kill()


def test_a_run_under_nohup_outlives_its_terminal(start):
    """A terminal that closes sends SIGHUP to all."""
    process, ranks, launcher = start("nohup", sys.executable, "-c", STAGE)
    assert launcher.pid == process.pid
    os.killpg(process.pid, signal.SIGHUP)
    _, alive = psutil.wait_procs([launcher, *ranks], timeout=3)
    assert len(alive) == 3
    launcher.terminate()
    assert not psutil.wait_procs(ranks, timeout=10)[1]


def test_a_terminal_that_closes_ends_other_runs(start):
    heeded = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # also in nohup pytest
    process, ranks, _ = start(sys.executable, "-c", f"{heeded}; {STAGE}")
    os.killpg(process.pid, signal.SIGHUP)
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    assert process.wait() != 0


@pytest.mark.parametrize("shell", ["bash", "dash"])  # the one becomes the stage, the other waits
def test_a_run_lives_as_long_as_dvc_and_no_shorter(shell, start, tmp_path):
    """As nohup dvc repro & in a shell that is left: dvc goes on, under another parent."""
    run = [shell, "-c", f"{sys.executable} -c '{STAGE}'"]
    dvc = tmp_path / "dvc.py"
    dvc.write_text(f"import subprocess; subprocess.run({run})")
    shell_left, ranks, launcher = start("bash", "-c", f"{sys.executable} {dvc} & read")
    parents = launcher.parents()
    shell_left.communicate("")
    _, alive = psutil.wait_procs([launcher, *ranks], timeout=3)
    assert len(alive) == 3
    next(parent for parent in parents if str(dvc) in parent.cmdline()).terminate()
    assert not psutil.wait_procs([launcher, *ranks], timeout=10)[1]


def test_ranks_end_with_a_torchrun_that_is_killed(start, tmp_path):
    (tmp_path / "params.yaml").write_text("launch: {kind: local, device: cpu, stop_seconds: 7}")
    torchrun, ranks, launcher = start(
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(ROOT / "tests/launch/stage.py"), str(tmp_path), "sleep"),
    )
    assert launcher.pid == torchrun.pid
    torchrun.kill()
    assert not psutil.wait_procs(ranks, timeout=10)[1]
