"""Slurm's own commands: sbatch, squeue, sacct, scancel."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from nvlm.errors import UserError

# States of a job that has not ended (squeue(1), "JOB STATE CODES"); all others are ends.
ACTIVE = frozenset(
    (
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED"),
        *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "SPECIAL_EXIT"),
        *("RESV_DEL_HOLD", "POWER_UP_NODE", "EXPEDITING"),
    )
)


class UnreachableError(Exception):
    """Slurm's controller doesn't answer for the moment."""


def submit(script: Path) -> tuple[str, subprocess.Popen[str]]:
    """Submit ``script``; return the job's id, and the sbatch that waits for its end.

    Raises UserError where there is no sbatch, or with what it says when it refuses. A Ctrl+C in the
    terminal passes this sbatch by: killed before it tells the job's id, it would leave a job that
    nobody knows.
    """
    _require("sbatch")
    # A pipe that nobody reads fills up in days without a controller, and sbatch would stand still.
    with tempfile.TemporaryFile("w+") as complaints:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored stays so in a child
        try:
            waiting = subprocess.Popen(
                ["sbatch", "--wait", "--parsable", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)
        assert waiting.stdout is not None
        job = waiting.stdout.readline().strip().split(";")[0]  # "id" or "id;cluster", told at once
        if job.isdigit():
            return job, waiting
        waiting.wait()
        complaints.seek(0)
        said = " ".join(f"{job} {complaints.read()}".split()) or "nothing"
    raise UserError(f"sbatch refused {script} (it says: {said}): correct launch.slurm in conf/")


def state(job: str) -> str | None:
    """The state of ``job``, such as RUNNING or TIMEOUT; None if Slurm doesn't know it (any more).

    The queue knows a job until some minutes after its end, accounting, where there is any, for
    longer. Raises UnreachableError if the controller gives no answer.
    """
    _require("squeue")
    asked = _run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
    if asked.returncode and "Invalid job id" not in asked.stderr:
        raise UnreachableError(asked.stderr.strip())
    words = asked.stdout.split()
    if not words and shutil.which("sacct"):
        told = _run(
            "sacct", "--noheader", "--allocations", "--parsable2", "--format=State", "-j", job
        )
        words = told.stdout.split()  # a cancelled job is "CANCELLED by 1000"
    return words[0] if words else None


def cancel(job: str) -> bool:
    """Cancel ``job``: its ranks get SIGTERM, and SIGKILL if they stay (Slurm's KillWait).

    Whether Slurm has taken the order; it takes none for a job that has ended.
    """
    return _run("scancel", job).returncode == 0


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise UserError(
            f"launch.kind is slurm and there is no {program} on PATH: start from a login node of "
            "the cluster, or compose with launch=local"
        )
