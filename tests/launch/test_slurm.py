"""Jobs of Slurm: their script, waiting, finding them again, cancelling; against a stand-in."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import yaml
from omegaconf import OmegaConf
from tests.launch.slurm_standin import install

from nvlm.errors import UserError
from nvlm.launch.slurm.job import RECORDS, run_job
from nvlm.launch.slurm.script import SlurmParams, batch_script
from nvlm.launch.stage import LaunchParams, _digest, launch_stage
from nvlm.params import composed, load_params

ROOT = Path(__file__).parents[2]
PARAMS = SlurmParams(
    partition="gpu",
    account=None,
    time="2-00:00:00",
    resubmit=0,
    ranks_per_node=8,
    gpus=True,
    cpus_per_rank=4,
    options=["--qos=long"],
    srun=["--container-image=nvlm.sqsh"],
    setup=["module load cuda", "source .venv/bin/activate"],
    port=29500,
    poll_seconds=1,
)
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=nvlm-sft_72b
#SBATCH --output=logs/launch/sft_72b-%j.log
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --time=2-00:00:00
#SBATCH --signal=TERM@120
#SBATCH --no-requeue
#SBATCH --partition=gpu
#SBATCH --qos=long

set -e -o pipefail
module load cuda
source .venv/bin/activate
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
export NVLM_RUN=0123
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
meeting="$SLURMD_NODENAME:29500"
srun --kill-on-bad-exit=1 --cpus-per-task=32 --container-image=nvlm.sqsh \\
  torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "$meeting" \
--rdzv-id "$SLURM_JOB_ID" \\
  src/train.py --out 'a b'
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The directory of the stand-in's jobs; the working directory is empty but for it."""
    for key, value in install(tmp_path).items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    return tmp_path / "jobs"


def start(
    shell: str,
    *,
    name: str = "stage",
    digest: str = "0123",
    progress: Callable[[], int] = int,
    **changed: object,
) -> None:
    """A job whose batch script does ``shell`` before its ranks, of which there are none."""
    params = replace(PARAMS, setup=[shell, "exit"], **changed)
    options = {"processes": 1, "stop_seconds": 9, "progress": progress}
    run_job(params, ["stage.py", name], name=name, digest=digest, **options)


def submitted(slurm: Path) -> list[Path]:
    return sorted(path for path in slurm.iterdir() if path.is_dir())


def meanwhile(condition: Callable[[], object], then: Callable[[], object]) -> threading.Thread:
    """Do ``then`` in the background once ``condition`` holds."""

    def watch():
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def record_of(slurm: Path, shell: str, digest: str = "0123") -> Path:
    """What a run that was killed while its job runs ``shell`` leaves behind; returns the job."""
    script = Path("left.sh")
    script.write_text(f"#SBATCH --output=left-%j.log\n#SBATCH --nodes=1\n{shell}\n")
    command = [slurm.parent / "bin/sbatch", "--wait", "--parsable", script]
    sbatch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    job = sbatch.stdout.readline().strip()
    sbatch.kill()
    sbatch.wait()
    RECORDS.mkdir(parents=True, exist_ok=True)
    record = {"job": job, "command": ["stage.py", "stage"], "cancelled": False}
    (RECORDS / f"stage-{digest}.json").write_text(json.dumps(record))
    return slurm / job


def test_the_script_of_a_grid_of_four_nodes():
    text = batch_script(
        PARAMS,
        ["src/train.py", "--out", "a b"],
        processes=32,
        name="sft_72b",
        log="logs/launch/sft_72b-%j.log",
        environment={"NVLM_RUN": "0123"},
        stop_seconds=120,
    )
    assert text == SCRIPT
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_nodes_hold_as_many_ranks_each():
    assert PARAMS.nodes(2) == (1, 2)
    assert PARAMS.nodes(128) == (16, 8)
    with pytest.raises(UserError, match="12 processes do not fill nodes of 8"):
        PARAMS.nodes(12)


@pytest.mark.parametrize(
    ("key", "value"),
    [("time", "a day"), ("options", ["qos=long"]), ("srun", ["-x\n-y"]), ("port", 0)],
)
def test_wrong_values_are_named(key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        replace(PARAMS, **{key: value})


def test_conf_holds_both_ways(tmp_path):
    for kind in ("local", "slurm"):
        (tmp_path / kind).write_text(composed([f"launch={kind}"]))
        assert load_params("launch", LaunchParams, tmp_path / kind).kind == kind
    (tmp_path / "wrong").write_text("launch: {kind: cloud, device: cpu, stop_seconds: 7}")
    with pytest.raises(UserError, match=r"launch\.kind: 'cloud'"):
        load_params("launch", LaunchParams, tmp_path / "wrong")


def test_a_login_node_needs_no_gpus_and_a_jobs_node_does(tmp_path, monkeypatch):
    """The first stage of the full scale, where dvc runs beside Slurm; then a job's first second."""
    full = OmegaConf.create(composed(["scale=full", "launch=slurm"]))
    full.environment.disk_gib = 0
    (tmp_path / "params.yaml").write_text(OmegaConf.to_yaml(full))
    script = [sys.executable, ROOT / "src/environment.py", "--out", "ready.json"]
    monkeypatch.chdir(tmp_path)
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    params = LaunchParams(kind="slurm", device="cpu", stop_seconds=9, slurm=PARAMS)
    digest = _digest(["stage.py"], (), [])
    monkeypatch.setenv("NVLM_RUN", digest)
    with pytest.raises(UserError, match=r"a node of this job lacks .*GPUs 8 \(here 0\)"):
        launch_stage(params, print, 1, name="x", inputs=[], imports="os", progress=int)


def test_a_job_at_its_time_limit_is_followed_by_another_while_it_advances(slurm, capsys):
    steps = iter([0, 40, 40])
    limit = 'printf TIMEOUT > "$SLURM_STANDIN/$SLURM_JOB_ID/state"'
    with pytest.raises(UserError, match=r"reached launch\.slurm\.time"):
        start(limit, resubmit=5, progress=lambda: next(steps))
    assert len(submitted(slurm)) == 2
    assert "reached its time limit at 40 (before it 0): another" in capsys.readouterr().err


def test_a_job_that_succeeds_is_forgotten(slurm):
    start("echo done > made; exit 0")
    assert Path("made").read_text() == "done\n"
    assert not list(RECORDS.glob("*.json"))
    start("exit 0")
    assert len(submitted(slurm)) == 2


def test_a_failed_job_comes_back_as_its_ranks_sentence(slurm, capfd):
    with pytest.raises(UserError, match=r"^the soup is cold: heat it \(job 100\)$"):
        start("echo 'error: the soup is cold: heat it'; exit 2")
    with pytest.raises(UserError, match=r"job 101 failed; the end of logs/launch/stage-101\.log"):
        start("seq 100; exit 3")
    assert "\n80" not in (shown := capfd.readouterr().err) and "\n81\n" in shown
    assert not list(RECORDS.glob("*.json"))


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("TIMEOUT", "reached launch.slurm.time, 2-00:00:00: run the stage again"),
        ("CANCELLED", "job 100 was cancelled"),
        ("NODE_FAIL", "ended as NODE_FAIL"),
    ],
)
@pytest.mark.parametrize("purged", [False, True])
def test_how_a_job_ended(state, sentence, purged, slurm):
    """``purged``: the queue has forgotten the job, and accounting still knows."""
    forget = f"touch {slurm}/100/purged; " if purged else ""
    with pytest.raises(UserError, match=sentence):
        start(f"{forget}echo -n {state} > {slurm}/100/state; sleep 5")


def test_a_job_that_even_accounting_has_forgotten(slurm):
    """What sbatch said of it is all there is."""
    forget = f"touch {slurm}/$SLURM_JOB_ID/purged {slurm}/$SLURM_JOB_ID/forgotten; "
    start(f"{forget}exit 0")
    with pytest.raises(UserError, match="forgotten how job 101 ended: see logs/launch/stage-101"):
        start(f"{forget}exit 1")


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no sbatch on PATH: start from a login node"):
        start("exit 0")


def test_a_refusal_tells_what_sbatch_says(slurm):
    (slurm / "refuse").touch()
    with pytest.raises(UserError, match=r"invalid partition specified: moon.*launch\.slurm"):
        start("exit 0")
    assert not list(RECORDS.glob("*.json"))


@pytest.mark.parametrize("code", [0, 1])
def test_a_second_run_waits_for_the_first_ones_job(code, slurm):
    record_of(slurm, f"sleep 1; exit {code}")
    (slurm / "silent").touch()  # the controller is away for a while, in which the job ends
    threading.Timer(2.5, (slurm / "silent").unlink).start()
    if code:
        with pytest.raises(UserError, match="job 100 failed"):
            start("exit 0")
    else:
        start("exit 0")
    assert len(submitted(slurm)) == 1
    assert not list(RECORDS.glob("*.json"))


def test_a_job_that_ended_unseen_is_submitted_anew(slurm):
    job = record_of(slurm, "exit 0")
    while not (job / "exit").exists():
        time.sleep(0.05)
    start("exit 0")
    assert len(submitted(slurm)) == 2


def test_a_job_for_other_parameters_is_not_taken(slurm):
    job = record_of(slurm, "sleep 60", digest="4567")
    with pytest.raises(UserError, match=r"job 100 runs this stage with other parameters.*scancel"):
        start("exit 0")
    assert len(submitted(slurm)) == 1
    subprocess.run(["scancel", job.name], check=True)
    start("exit 0")
    assert not list(RECORDS.glob("*.json"))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("found_again", [False, True])
def test_a_signal_cancels_the_job(sent, found_again, slurm):
    shell = "touch running; sleep 60"
    if found_again:
        record_of(slurm, shell)
    running = slurm.parent / "running"
    default = signal.getsignal(sent)
    thread = meanwhile(
        lambda: running.exists() and signal.getsignal(sent) != default,
        lambda: os.kill(os.getpid(), sent),
    )
    if sent == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            start(shell)
    else:
        with pytest.raises(UserError, match="SIGTERM stopped the run, job 100 is cancelled"):
            start(shell)
    thread.join()
    assert [(job / "state").read_text() for job in submitted(slurm)] == ["CANCELLED"]
    assert not list(RECORDS.glob("*.json"))


def test_a_job_that_slurm_does_not_cancel_goes_on_and_is_found_again(slurm):
    silent, running = slurm / "silent", slurm.parent / "running"

    def interrupt() -> None:
        silent.touch()
        os.kill(os.getpid(), signal.SIGINT)

    default = signal.getsignal(signal.SIGINT)
    thread = meanwhile(
        lambda: running.exists() and signal.getsignal(signal.SIGINT) != default, interrupt
    )
    with pytest.raises(UserError, match=r"job 100 goes on.* try scancel 100"):
        start("touch running; while [ ! -f over ]; do sleep 0.1; done; exit 0")
    thread.join()
    silent.unlink()
    threading.Timer(2, Path("over").touch).start()
    start("exit 0")
    assert len(submitted(slurm)) == 1


def test_a_cancelled_job_is_waited_for_and_not_taken(slurm, capfd):
    job = record_of(slurm, "sleep 2; exit 0")
    record = RECORDS / "stage-0123.json"
    record.write_text(record.read_text().replace("false", "true"))
    start("exit 0")
    assert f"job {job.name} was cancelled and is ending" in capfd.readouterr().err
    assert len(submitted(slurm)) == 2


def test_the_end_of_dvc_cancels_the_job(slurm):
    """As dvc: a parent that runs the stage through a shell, and dies without telling it."""
    stage = "import tests.launch.test_slurm as t; t.start('touch running; sleep 60')"
    shell = f"{sys.executable} -c {stage!r}; true"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({shell!r}, shell=True)"]
    )
    deadline = time.monotonic() + 60
    while not Path("running").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 3  # shell, stage, sbatch
    parent.terminate()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert [(job / "state").read_text() for job in submitted(slurm)] == ["CANCELLED"]


@pytest.fixture
def stage(slurm):
    """Runs tests/launch/stage.py as a user would, for nodes of one rank each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    params = replace(PARAMS, ranks_per_node=1, gpus=False, srun=[], setup=[], port=port)
    launch = {"kind": "slurm", "device": "cpu", "stop_seconds": 9, "slurm": asdict(params)}
    section = {"launch": launch}
    Path("params.yaml").write_text(yaml.safe_dump(section))
    Path("input").write_text("1")

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, ROOT / "tests/launch/stage.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_ranks_really_run_in_the_job(stage, slurm):
    """The rendered script, torchrun on each of two nodes, and their meeting on loopback."""
    result = stage("out")
    assert result.returncode == 0, result.stderr
    expected = "3.0 of local rank 0 on cpu"
    assert [(Path("out") / rank).read_text() for rank in "01"] == [expected, expected]
    assert not list(RECORDS.glob("*.json"))


def test_a_rank_that_fails_in_the_job_comes_back_in_one_sentence(stage, slurm):
    result = stage("out", "all")
    assert (result.returncode, result.stderr.count("error: ")) == (2, 1)
    assert "error: the soup is cold: heat it (job 100)\n" in result.stderr
    assert Path("logs/launch/stage-100.log").read_text().count("the soup is cold") == 1


def test_a_job_whose_inputs_have_changed_does_not_start(stage, slurm):
    """Between submission and start hours can pass, in which somebody edits params.yaml."""
    Path("params.yaml").write_text(
        Path("params.yaml").read_text().replace("setup: []", "setup: ['echo 2 > input']")
    )
    result = stage("out")
    assert "error: parameters or inputs have changed since this job was submitted" in result.stderr
    assert not Path("out").exists()
