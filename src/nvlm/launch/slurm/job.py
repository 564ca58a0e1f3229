"""A stage's ranks as a job of Slurm: submit it or find it again, wait for its end, cancel it.

What this process's end means for the job:

- SIGINT or SIGTERM, or the end of dvc or of the shell between (SIGTERM to dvc alone ends only dvc):
  the user wants the stage to stop, as it would on this machine. The job is cancelled.
- A lost connection (SIGHUP reaches dvc, shell and stage alike), SIGKILL, or a crash of this
  machine: nobody asked for an end. The job goes on, and the next run of the stage waits for it
  instead of submitting another. Should the job have ended by then, the next run submits one anew,
  since dvc has removed the outputs before it starts a stage; ``dvc commit STAGE`` keeps them.

The job's id is kept in .resume/launch/, in a file named by a digest of what determines the run.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.errors import UserError
from nvlm.launch.orphan import Ancestors
from nvlm.launch.slurm import queue
from nvlm.launch.slurm.script import SlurmParams, batch_script

RECORDS = Path(".resume/launch")  # ignored by git
LOGS = Path("logs/launch")
# The digest that a job was submitted for, in its ranks' environment.
RUN = "NVLM_RUN"
# What a cancelled job gets to end before this process does; dvc's end is to leave none for long.
SECONDS_TO_CANCEL = 7
LINES_SHOWN = 20
# How nvlm.errors tells a UserError; srun and slurmstepd put their names before theirs.
TOLD = re.compile(r"^error: (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A job that was submitted and has not been seen to end."""

    job: str
    command: list[str]
    cancelled: bool = False


def run_job(
    params: SlurmParams,
    command: Sequence[str],
    *,
    processes: int,
    name: str,
    digest: str,
    stop_seconds: int,
    progress: Callable[[], int],
) -> None:
    """Run ``command`` on ``processes`` ranks, in a job submitted now or by an earlier run.

    ``digest``: of all that determines the run; ``name`` is for people. A job that ends at its time
    limit is followed by another as long as ``progress`` grows, ``resubmit`` times at most. Raises
    UserError if the job is refused or doesn't succeed, or after a SIGTERM; KeyboardInterrupt after
    a SIGINT.
    """
    kept = RECORDS / f"{name}-{digest}.json"
    text = batch_script(
        params,
        command,
        processes=processes,
        name=name,
        log=str(LOGS / f"{name}-%j.log"),
        environment={RUN: digest},
        stop_seconds=stop_seconds,
    )
    before = progress()
    for left in range(params.resubmit, -1, -1):
        job, end = _run_once(params, command, name, kept, text)
        if end == "COMPLETED":
            return
        after = progress()
        if end != "TIMEOUT" or not left or after <= before:
            log = LOGS / f"{name}-{job}.log"
            raise UserError(_explained(job, end, log, params))
        print(
            f"job {job} reached its time limit at {after} (before it {before}): another goes on "
            f"from there, and {left - 1} may follow",
            file=sys.stderr,
            flush=True,
        )
        before = after


def _run_once(
    params: SlurmParams, command: Sequence[str], name: str, kept: Path, text: str
) -> tuple[str, str]:
    """One job, to its end: its id, and the state in which it ended."""
    ancestors = Ancestors()
    with _signals() as signals:
        _refuse_a_second_run(list(command), kept)
        record, waiting = _running(kept, params, signals, ancestors), None
        if record is None:
            script = kept.with_suffix(".sh")
            LOGS.mkdir(parents=True, exist_ok=True)
            write_text(script, text)
            job, waiting = queue.submit(script)
            record = Record(job=job, command=list(command))
            _keep(kept, record)
        log = LOGS / f"{name}-{record.job}.log"
        verb = "submitted" if waiting else "found again"
        print(f"job {record.job} {verb}: its log is {log}", file=sys.stderr, flush=True)
        end = _wait(record.job, waiting, params, signals, ancestors)
        if end is None:
            cancelled = _cancel(kept, record, waiting)
            if cancelled and signals == [signal.SIGINT]:
                raise KeyboardInterrupt
            why = signal.Signals(signals[0]).name if signals else "the end of dvc"
            raise UserError(
                f"{why} stopped the run, job {record.job} is cancelled: start it again"
                if cancelled
                else f"{why} stopped the run, and job {record.job} goes on, since Slurm took no "
                f"scancel: try scancel {record.job}, or start the stage again to wait for the job"
            )
    kept.unlink()
    return record.job, end


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals to stop that come meanwhile; none of them interrupts anything."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_a_second_run(command: list[str], kept: Path) -> None:
    """Raise UserError if a job of the same command, for other parameters or inputs, is active."""
    for path in sorted(RECORDS.glob("*.json")):
        record = _read(path)
        if path == kept or record.command != command:
            continue
        if _state(record.job) in queue.ACTIVE:
            raise UserError(
                f"job {record.job} runs this stage with other parameters or inputs: "
                f"end it with scancel {record.job}, or wait for it"
            )
        path.unlink()


def _running(
    kept: Path, params: SlurmParams, signals: list[int], ancestors: Ancestors
) -> Record | None:
    """The job of an earlier run that is still active, if there is one.

    One that was cancelled and is still about to end is waited for, and not taken.
    """
    if not kept.is_file():
        return None
    record = _read(kept)
    if _state(record.job) in queue.ACTIVE:
        if not record.cancelled:
            return record
        print(f"job {record.job} was cancelled and is ending", file=sys.stderr, flush=True)
        if _wait(record.job, None, params, signals, ancestors) is None:
            raise KeyboardInterrupt
    kept.unlink()
    return None


def _wait(
    job: str,
    waiting: subprocess.Popen[str] | None,
    params: SlurmParams,
    signals: list[int],
    ancestors: Ancestors,
) -> str | None:
    """The state in which ``job`` ends; None if this process is to end before.

    sbatch waits for the job that this process has submitted; one found again is asked after. That
    sbatch ends with 0 says little: so it does for a job that was cancelled before it started.
    """
    asked, forgotten = time.monotonic(), "UNKNOWN"
    while not signals and not ancestors.gone():
        if waiting is not None:
            code = waiting.poll()
            over = code is not None
            waiting = None if over else waiting
            forgotten = "COMPLETED" if code == 0 else "UNKNOWN"
        else:
            over = time.monotonic() - asked >= params.poll_seconds
        if over:
            asked = time.monotonic()
            state = _state(job) or forgotten
            if state not in queue.ACTIVE:
                return state
        time.sleep(0.2)
    return None


def _cancel(kept: Path, record: Record, waiting: subprocess.Popen[str] | None) -> bool:
    """Cancel the job; forget it if it ends soon, and otherwise note that it was cancelled.

    False if it goes on: the next run takes it.
    """
    cancelled = queue.cancel(record.job)
    _keep(kept, replace(record, cancelled=cancelled))
    deadline = time.monotonic() + SECONDS_TO_CANCEL
    while (active := _state(record.job) in queue.ACTIVE) and cancelled:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if not active:
        kept.unlink()
    if waiting is not None:
        waiting.kill()
        waiting.wait()
    return cancelled or not active


def _state(job: str) -> str | None:
    """As ``queue.state``; a job is taken for RUNNING as long as the controller is silent."""
    try:
        return queue.state(job)
    except queue.UnreachableError as error:
        print(f"squeue: {error}", file=sys.stderr, flush=True)
        return "RUNNING"


def _explained(job: str, end: str, log: Path, params: SlurmParams) -> str:
    """One sentence about a job that ended as ``end``; shows the end of its log if that is needed.

    Rank 0, or the first rank that failed, told its UserError in the log.
    """
    again = "run the stage again to go on from its last snapshot"
    if end == "TIMEOUT":
        return (
            f"job {job} reached launch.slurm.time, {params.time}: {again}, raise the limit, or let "
            "launch.slurm.resubmit do so as long as it advances"
        )
    if end == "CANCELLED":
        return f"job {job} was cancelled: {again}"
    text = log.read_text(errors="replace") if log.is_file() else ""
    if told := TOLD.search(text):
        return f"{told[1]} (job {job})"
    print(*text.splitlines()[-LINES_SHOWN:], sep="\n", file=sys.stderr, flush=True)
    if end == "UNKNOWN":
        return f"Slurm has forgotten how job {job} ended: see {log}, and run the stage again"
    if end == "FAILED":
        return f"job {job} failed; the end of {log}, above, says why"
    return f"job {job} ended as {end}: see the end of {log} above, and {again}"


def _keep(path: Path, record: Record) -> None:
    write_text(path, json.dumps(asdict(record)) + "\n")


def _read(path: Path) -> Record:
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: see squeue for its job, then remove it") from error
