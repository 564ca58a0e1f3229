"""Start one process a rank on this machine, by torchrun's own launcher, and end them together."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nvlm.errors import UserError
from nvlm.launch.orphan import Ancestors

# More processes than this a core would only wait for one another.
CPU_PROCESSES_PER_CORE = 4
# What ranks get to stop, where nobody says otherwise.
SECONDS_TO_STOP = 7
# What stops a run. What is ignored when it starts (nohup ignores SIGHUP) stays so.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# With transformers: seconds, once rather than once a rank.
RANKS_IMPORT = "nvlm.parallel.state"


def launch(
    worker: Callable[..., None],
    processes: int,
    *args: Any,
    imports: str = RANKS_IMPORT,
    stop_seconds: int = SECONDS_TO_STOP,
) -> None:
    """Run ``worker(*args)`` in ``processes`` processes here with torchrun's environment set.

    ``worker`` must be importable by name; ``imports``: the module with all that it imports;
    ``stop_seconds``: what ranks that are told to stop get to finish a step and save their state.
    Raises UserError if the machine is too small, or with the message of a worker's UserError.
    """
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
        start_method=_start_method(imports),
        shutdown_timeout=stop_seconds,
        signals_to_handle=",".join(number.name for number in _heeded()),
    )
    with tempfile.TemporaryDirectory(prefix="nvlm-launch-") as directory:
        message = Path(directory) / "error"
        threading.Thread(target=_stop_when_orphaned, args=(stop_seconds,), daemon=True).start()
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


def _start_method(imports: str) -> str:
    """Forked ranks share what this process has imported, but locks of its threads stay locked in
    them and CUDA does not survive a fork: a stage forks its ranks, a process that ran more has them
    forked by a server without threads.
    """
    if torch.cuda.is_available() or threading.active_count() > 1:
        multiprocessing.set_forkserver_preload([imports])
        return "forkserver"
    import_module(imports)
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


def _stop_when_orphaned(stop_seconds: int) -> None:
    """Stop the ranks once who started this run is gone."""
    ancestors = Ancestors()
    while not ancestors.gone():
        time.sleep(1)
    ranks = [psutil.Process(rank.pid) for rank in multiprocessing.active_children()]
    for rank in ranks:
        rank.terminate()
    for rank in psutil.wait_procs(ranks, timeout=stop_seconds)[1]:
        rank.kill()
