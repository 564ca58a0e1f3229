"""Start one process a rank: on this machine, as a job of Slurm, or under a torchrun of one's own.

- This machine (``launch.kind: local``): torchrun's own launcher (``elastic_launch``) starts the
  processes and stops all when one fails.
- Slurm (``launch.kind: slurm``): nvlm.launch.slurm submits a job that runs the same command under
  torchrun on each of its nodes, and waits for it.
- Several machines without Slurm: the machines share the working directory, and on each of them one
  runs the stage's command under torchrun::

      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 \\
          --rdzv-id sft_72b src/train.py --params train.sft_72b ...

  FIRST is the name of one of the machines. What dvc removes before it runs a stage (its outputs)
  has to be removed by hand; ``dvc commit STAGE`` afterwards takes in what was made.

Under torchrun, on one machine or many, RANK is set, and ``launch`` runs the worker right there:
LOCAL_RANK picks the device (nvlm.parallel.mesh), rank 0 alone reports, and of the same error of
many ranks one is told (nvlm.launch.failure).
"""

from __future__ import annotations

import gc
import hashlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nvlm.errors import UserError
from nvlm.launch.orphan import Ancestors
from nvlm.launch.slurm.job import RUN, run_job
from nvlm.launch.slurm.script import SlurmParams

# More processes than this a core would only wait for one another.
CPU_PROCESSES_PER_CORE = 4
# What an orphaned rank gets to finish its step and save its state.
SECONDS_TO_STOP = 7
KINDS = ("local", "slurm")
# What torchrun tells a rank, besides RANK.
OF_A_RANK = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What stops a run. What is ignored when it starts (nohup ignores SIGHUP) stays so.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# With transformers: seconds, once rather than once a rank.
RANKS_IMPORT = "nvlm.parallel.state"


@dataclass(frozen=True, kw_only=True)
class LaunchParams:
    """Where the ranks of a stage run. It changes no output, and no stage depends on it."""

    kind: str  # local: on this machine; slurm: in a job
    slurm: SlurmParams | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} should be one of {list(KINDS)}")
        if self.kind == "slurm" and self.slurm is None:
            raise ValueError("slurm: what conf/launch/slurm.yaml holds is missing")


def launch_stage(
    params: LaunchParams,
    worker: Callable[..., None],
    processes: int,
    *args: Any,
    name: str,
    inputs: Iterable[Path],
) -> None:
    """Run ``worker(*args)`` of this stage's script in ``processes`` processes, as ``params`` say.

    ``inputs``: small files that identify what the stage reads, such as a checkpoint's manifest.
    With the command and ``args`` they determine the run: a job of Slurm that was submitted for the
    same ones is waited for, and one whose parameters or inputs have changed since then refuses to
    start. ``name``: of the job, for people. Raises UserError as ``launch`` and ``run_job`` do.
    Under an outer launcher a rank that has done its work ends here: this does not return.
    """
    command = [os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    if "RANK" in os.environ:
        if missing := [name for name in OF_A_RANK if name not in os.environ]:
            raise UserError(
                f"RANK is set in the environment and {missing[0]} is not: start under torchrun, "
                "which sets both, or unset RANK"
            )
        if RUN in os.environ and os.environ[RUN] != _digest(command, args, inputs):
            raise UserError(
                "parameters or inputs have changed since this job was submitted: start it again"
            )
        worker(*args)
        _end_process()
    elif params.kind == "slurm":
        assert params.slurm is not None
        digest = _digest(command, args, inputs)
        run_job(params.slurm, command, processes=processes, name=name, digest=digest)
    else:
        launch(worker, processes, *args)


def _end_process() -> NoReturn:
    """End this rank as multiprocessing ends those of ``launch``: without taking Python apart.

    Threads of gloo and of the store can outlast their owners there, and the rank would then abort
    ("terminate called without an active exception") with all its work done, once in some runs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _digest(command: list[str], args: tuple[Any, ...], inputs: Iterable[Path]) -> str:
    digest = hashlib.sha256(repr((command, args)).encode())
    for path in inputs:
        # A rank says better what is missing.
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        digest.update(repr((str(path), content)).encode())
    return digest.hexdigest()[:16]


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(*args)`` in ``processes`` processes here with torchrun's environment set.

    ``worker`` must be importable by name. Under an outer launcher (RANK is set) it runs here.
    Raises UserError if the machine is too small, or with the message of a worker's UserError.
    """
    if "RANK" in os.environ:
        worker(*args)
        return
    check_machine(processes)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than cores are 10 times slower
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; those here say when they show
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="nvlm",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method=_start_method(),
        signals_to_handle=",".join(number.name for number in _heeded()),
    )
    with tempfile.TemporaryDirectory(prefix="nvlm-launch-") as directory:
        message = Path(directory) / "error"
        threading.Thread(target=_stop_when_orphaned, daemon=True).start()
        try:
            elastic_launch(config, _run_worker)(worker, message, args)
        except SignalException as error:
            raise UserError(f"{error.sigval.name} stopped the run: start it again") from None
        except ChildFailedError as error:
            if message.is_file():
                raise UserError(message.read_text()) from None
            # Others lose their connection to one that was killed, and end in the same second.
            rank, failure = min(
                error.failures.items(), key=lambda of: (of[1].exitcode >= 0, of[1].timestamp)
            )
            raise UserError(
                f"rank {rank} ended with exit code {failure.exitcode}; its output above says why"
            ) from None


def check_machine(processes: int) -> None:
    """Raise UserError if this machine can't hold ``processes`` ranks."""
    if torch.cuda.is_available():
        have, what = torch.cuda.device_count(), "GPUs"
    else:
        have = CPU_PROCESSES_PER_CORE * (os.cpu_count() or 1)
        what = f"CPU processes ({CPU_PROCESSES_PER_CORE} a core)"
    if processes > have:
        raise UserError(
            f"the grid needs {processes} processes and this machine has room for {have} {what}: "
            "choose smaller parallel sizes in conf/, or a larger machine"
        )


def _start_method() -> str:
    """Forked ranks share what this process has imported, but locks of its threads stay locked in
    them and CUDA does not survive a fork: a stage forks its ranks, a process that ran more has them
    forked by a server without threads.
    """
    if torch.cuda.is_available() or threading.active_count() > 1:
        multiprocessing.set_forkserver_preload([RANKS_IMPORT])
        return "forkserver"
    import_module(RANKS_IMPORT)
    return "fork"


def _heeded() -> list[signal.Signals]:
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _run_worker(worker: Callable[..., None], message: Path, args: tuple[Any, ...]) -> None:
    gc.freeze()  # nor may a rank collect the launcher's store: it would wait for a thread for ever
    for number in _heeded():  # torchrun's own handlers, which a fork inherits
        interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if interrupt else signal.SIG_DFL)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        worker(*args)
    except UserError as error:
        partial = message.with_name(f"error.{os.getpid()}")
        partial.write_text(str(error))
        partial.replace(message)
        raise SystemExit(2) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    # Its work is done, and torchrun keeps it until all are: it need not save its state any more.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_with_launcher() -> None:
    """Kill this worker once its launcher is gone.

    A forked sibling can hold the launcher's end of the pipe that tells ``is_alive`` of its end, so
    that the parent is asked for too: the launcher, or the server that ends with it.
    """
    launcher, parent = multiprocessing.parent_process(), os.getppid()
    assert launcher is not None
    while launcher.is_alive() and os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_when_orphaned() -> None:
    """Stop the ranks once who started this run is gone."""
    ancestors = Ancestors()
    while not ancestors.gone():
        time.sleep(1)
    ranks = [psutil.Process(rank.pid) for rank in multiprocessing.active_children()]
    for rank in ranks:
        rank.terminate()
    for rank in psutil.wait_procs(ranks, timeout=SECONDS_TO_STOP)[1]:
        rank.kill()
