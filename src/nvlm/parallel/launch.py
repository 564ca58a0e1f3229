"""Start one process a rank on this machine, and tell their user errors in one sentence.

torchrun's own launcher (``elastic_launch``) starts the processes and stops all when one fails.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nvlm.errors import UserError

# More processes than this a core would only wait for one another.
CPU_PROCESSES_PER_CORE = 4
# What an orphaned rank gets to finish its step and save its state.
SECONDS_TO_STOP = 7


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(*args)`` in ``processes`` processes with torchrun's environment set.

    ``worker`` must be importable by name. Under an outer launcher (RANK is set) it runs here.
    Raises UserError if the machine is too small, or with the message of a worker's UserError.
    """
    if "RANK" in os.environ:
        worker(*args)
        return
    check_machine(processes)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than cores are 10 times slower
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
    )
    with tempfile.TemporaryDirectory(prefix="nvlm-launch-") as directory:
        message = Path(directory) / "error"
        threading.Thread(target=_stop_when_orphaned, daemon=True).start()
        try:
            elastic_launch(config, _run_worker)(worker, os.getpid(), message, args)
        except SignalException as error:
            raise UserError(f"{error.sigval.name} stopped the run: start it again") from None
        except ChildFailedError as error:
            if message.is_file():
                raise UserError(message.read_text()) from None
            rank, failure = error.get_first_failure()
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


def _run_worker(
    worker: Callable[..., None], launcher: int, message: Path, args: tuple[Any, ...]
) -> None:
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
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


def _end_with(launcher: int) -> None:
    """Kill this worker once its launcher is gone."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_when_orphaned() -> None:
    """Stop the ranks once the shell that started this run, or that shell's parent, is gone.

    dvc runs a stage through a shell. SIGTERM to dvc alone ends dvc, and leaves shell and stage.
    """
    ancestors = psutil.Process().parents()[:2]
    while all(_is_alive(ancestor) for ancestor in ancestors):
        time.sleep(1)
    ranks = psutil.Process().children()
    for rank in ranks:
        rank.terminate()
    for rank in psutil.wait_procs(ranks, timeout=SECONDS_TO_STOP)[1]:
        rank.kill()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
