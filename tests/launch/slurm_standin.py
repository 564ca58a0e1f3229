"""A stand-in for Slurm's commands: one file that acts by the name it is called by.

Its jobs run on this machine, in sessions of their own; what it knows of them lies in
$SLURM_STANDIN, in a directory for each job: ``state``, ``group`` (of processes), ``exit``.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("sbatch", "squeue", "sacct", "scancel", "srun")


def install(directory: Path) -> dict[str, str]:
    """The environment in which ``directory``/bin holds the commands and no job has run yet."""
    commands = directory / "bin"
    commands.mkdir()
    for name in NAMES:
        script = commands / name
        script.write_text(f"#!{sys.executable} -S\n{Path(__file__).read_text()}")
        script.chmod(0o755)
    jobs = directory / "jobs"
    jobs.mkdir()
    return {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "SLURM_STANDIN": str(jobs),
    }


def sbatch(arguments: list[str]) -> int:
    assert arguments[:2] == ["--wait", "--parsable"]
    jobs = Path(os.environ["SLURM_STANDIN"])
    if (jobs / "refuse").exists():
        print("sbatch: error: invalid partition specified: moon", file=sys.stderr)
        return 1
    script = Path(arguments[2])
    job = jobs / str(len(list(jobs.iterdir())) + 100)
    job.mkdir()
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE)
    given = dict(options)
    (job / "state").write_text("RUNNING")
    (job / "script").write_text(script.read_text())
    log = given["output"].replace("%j", job.name)
    runs = f"{script}; code=$?; echo $code > {job}/exit"
    with Path(log).open("w") as output:
        started = subprocess.Popen(
            ["bash", "-c", f"bash {runs}"],
            env=os.environ
            | {
                "SLURM_JOB_ID": job.name,
                "SLURMD_NODENAME": "localhost",
                "SLURM_NNODES": given["nodes"],
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (job / "group").write_text(str(started.pid))
    print(job.name, flush=True)
    while state(job) == "RUNNING":
        time.sleep(0.05)
    # As sbatch(1): the job's exit code, which is 0 for one that was cancelled before it started.
    return int((job / "exit").read_text()) if (job / "exit").exists() else 0


def state(job: Path) -> str:
    if (job / "exit").exists() and (job / "state").read_text() == "RUNNING":
        code = (job / "exit").read_text().strip()
        return "COMPLETED" if code == "0" else "FAILED"
    return (job / "state").read_text()


def squeue(arguments: list[str]) -> int:
    job = _job(arguments)
    if (job.parent / "silent").exists():
        print("slurm_load_jobs error: Unable to contact slurm controller", file=sys.stderr)
        return 1
    if not job.exists() or (job / "purged").exists():
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        return 1
    print(state(job))
    return 0


def sacct(arguments: list[str]) -> int:
    job = _job(arguments)
    if job.exists() and not (job / "forgotten").exists():
        print({"CANCELLED": "CANCELLED by 1000"}.get(state(job), state(job)))
    return 0


def scancel(arguments: list[str]) -> int:
    job = _job(arguments)
    if (job.parent / "silent").exists():
        print("scancel: error: Unable to contact slurm controller", file=sys.stderr)
        return 1
    (job / "state").write_text("CANCELLED")
    os.killpg(int((job / "group").read_text()), signal.SIGKILL)
    return 0


def srun(arguments: list[str]) -> int:
    """Run the command, a torchrun, once a node, all of them here: the first is the meeting's host.

    By name each of them would take itself for the host.
    """
    while arguments[0].startswith("-"):
        arguments.pop(0)
    nodes = [
        subprocess.Popen([arguments[0], "--rdzv-conf", f"is_host={node == 0}", *arguments[1:]])
        for node in range(int(os.environ["SLURM_NNODES"]))
    ]
    return max(node.wait() for node in nodes)


def _job(arguments: list[str]) -> Path:
    number = re.search(r"\d+$", arguments[-1])
    assert number
    return Path(os.environ["SLURM_STANDIN"]) / number[0]


if __name__ == "__main__":
    sys.exit(globals()[Path(sys.argv[0]).name](sys.argv[1:]))
