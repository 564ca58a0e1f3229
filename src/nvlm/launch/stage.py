"""Run a stage's ranks: on this machine, as a job of Slurm, or under a torchrun of one's own.

- This machine (``launch.kind: local``): torchrun's own launcher starts the processes
  (nvlm.launch.local) and stops all when one fails.
- Slurm (``launch.kind: slurm``): nvlm.launch.slurm submits a job that runs the same command under
  torchrun on each of its nodes, and waits for it.
- Several machines without Slurm: the machines share the working directory, and on each of them one
  runs the stage's command under torchrun::

      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 \\
          --rdzv-id sft_72b src/train.py --params train.sft_72b ...

  FIRST is the name of one of the machines. What dvc removes before it runs a stage (its outputs)
  has to be removed by hand; ``dvc commit STAGE`` afterwards takes in what was made.

Under torchrun, on one machine or many, RANK is set, and the worker runs right there: LOCAL_RANK
picks the device (nvlm.parallel.mesh), rank 0 alone reports, and of the same error of many ranks one
is told (nvlm.launch.failure).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nvlm.environment import EnvironmentParams, of_machine
from nvlm.errors import UserError
from nvlm.launch.slurm.job import RUN, run_job
from nvlm.launch.slurm.script import SlurmParams
from nvlm.params import load_params, section_keys

KINDS = ("local", "slurm")
DEVICES = ("auto", "cpu", "cuda")
# What torchrun tells a rank, besides RANK.
OF_A_RANK = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class LaunchParams:
    """Where the ranks of a stage run. No stage depends on it."""

    kind: str  # local: on this machine; slurm: in a job
    device: str  # auto: GPUs where there are some; cpu, whatever there is; cuda, or an error
    # What ranks that are told to stop get to finish a step and to save their state.
    stop_seconds: int
    slurm: SlurmParams | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} should be one of {list(KINDS)}")
        if self.device not in DEVICES:
            raise ValueError(f"device: {self.device!r} should be one of {list(DEVICES)}")
        if self.stop_seconds < 1:
            raise ValueError(f"stop_seconds: {self.stop_seconds} should be 1 or more")
        if self.kind == "slurm" and self.slurm is None:
            raise ValueError("slurm: what conf/launch/slurm.yaml holds is missing")


def launch_stage(
    params: LaunchParams,
    worker: Callable[..., None],
    processes: int,
    *args: Any,
    name: str,
    inputs: Iterable[Path],
    imports: str,
    progress: Callable[[], int],
) -> None:
    """Run ``worker(*args)`` of this stage's script in ``processes`` processes, as ``params`` say.

    ``inputs``: small files that identify what the stage reads, such as a checkpoint's manifest.
    With the command and ``args`` they determine the run: a job of Slurm that was submitted for the
    same ones is waited for, and one whose parameters or inputs have changed since then refuses to
    start. ``name``: of the job, for people. ``imports``: the module with all that a rank imports.
    ``progress``: a number that grows as the run does what a killed one need not do again.
    Raises UserError as ``launch`` and ``run_job`` do. Under an outer launcher a rank that has done
    its work ends here: this does not return.
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
        choose(params.device)
        if RUN in os.environ and os.environ["LOCAL_RANK"] == "0":
            _check_node()
        worker(*args)
        _end_process()
    elif params.kind == "slurm":
        assert params.slurm is not None
        digest = _digest(command, args, inputs)
        run_job(
            params.slurm,
            command,
            processes=processes,
            name=name,
            digest=digest,
            stop_seconds=params.stop_seconds,
            progress=progress,
        )
    else:
        from nvlm.launch.local import launch  # imports torch, which waiting for a job does without

        choose(params.device)
        launch(worker, processes, *args, imports=imports, stop_seconds=params.stop_seconds)


def choose(device: str) -> None:
    """Hide the GPUs of this machine from PyTorch, or see to it that there are some."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "launch.device is cuda and PyTorch sees no GPU here: install its CUDA build and a "
                "driver, or say launch.device=cpu"
            )


def _check_node() -> None:
    """Ask of a job's node what the stage ``environment`` could not ask of a login node."""
    if not section_keys("environment"):
        return
    needed = load_params("environment", EnvironmentParams)
    if lacking := [row.sentence for row in of_machine(needed) if not row.met]:
        raise UserError(f"a node of this job lacks {', '.join(lacking)}: choose another partition")


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
