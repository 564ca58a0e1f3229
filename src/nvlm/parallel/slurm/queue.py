"""Slurm's own commands: sbatch, squeue, sacct, scancel."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

from nvlm.errors import UserError

# States of a job that has not ended (squeue(1), "JOB STATE CODES"); all others are ends.
ACTIVE = frozenset(
    (
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED"),
        *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "SPECIAL_EXIT"),
        *("RESV_DEL_HOLD", "POWER_UP_NODE"),
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
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored stays so in a child
    try:
        waiting = subprocess.Popen(
            ["sbatch", "--wait", "--parsable", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert waiting.stdout is not None
    job = waiting.stdout.readline().strip().split(";")[0]  # "id" or "id;cluster", told at once
    if not job.isdigit():
        said = " ".join(f"{job} {waiting.communicate()[1]}".split()) or "nothing"
        raise UserError(f"sbatch refused {script} (it says: {said}): correct launch.slurm in conf/")
    return job, waiting


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


def cancel(job: str) -> None:
    """Cancel ``job``: its ranks get SIGTERM, and SIGKILL if they stay (Slurm's KillWait)."""
    _run("scancel", job)


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
