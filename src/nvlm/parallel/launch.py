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

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nvlm.errors import UserError

# More processes than this a core would only wait for one another.
CPU_PROCESSES_PER_CORE = 4


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
        try:
            elastic_launch(config, _run_worker)(worker, os.getpid(), message, args)
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
    """Kill this worker once its launcher is gone: dvc's death leaves its children running."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
