"""Exact resume: what a killed run needs to end with the bytes of one that was not.

Snapshots are written by PyTorch's distributed checkpoint, in the background, under the parameters'
own names, so that another number of data ranks can read them too (``resume: reshard``). They are
removed when the run has succeeded. Random numbers need no state: each step seeds its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from nvlm.errors import UserError
from nvlm.train.curves import Curves
from nvlm.train.runs import Run, adopt, find_snapshots, forget, steps_in
from nvlm.train.telemetry.logs import Logs
from nvlm.train.trainer import Trainer

# Of a rank that waits for others to write or to read theirs.
TIMEOUT = timedelta(hours=2)
LAYERS = "language_model.model.layers."


class Snapshots:
    """Saves and restores model, optimizer, loader and curves of one run."""

    def __init__(
        self, run: Run, trainer: Trainer, loader: Any | None, curves: Curves, logs: Logs
    ) -> None:
        """``loader``: Energon's savable loader on the ranks that read, None on the others; it is
        not yet iterated."""
        self.run, self.directory = run, run.directory
        self.curves, self.logs = curves, logs
        self.read_from(loader)
        self.model, self.optimizer, self.mesh = trainer.model, trainer.optimizer, trainer.mesh
        self.params = trainer.params
        # Saving goes on while the GPUs train: in a group of its own.
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.pending: Future[Any] | None = None

    def read_from(self, loader: Any | None) -> None:
        """Take ``loader`` for the one whose state is saved; it is not yet iterated."""
        self.loader = loader
        if loader is not None:
            loader.worker_init_fn = _deaf_to_others(loader.worker_init_fn)

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state after ``step`` in the background; every rank calls this.

        Raises UserError if the one before could not be written (or this one, if it is to ``wait``).
        """
        self.finish()
        if self.mesh.is_main:
            self.run.describe()
        staged = {name: _copied(value) for name, value in self._state(step).items()}
        self.pending = _in_background(
            partial(save, staged, checkpoint_id=self._path(step), process_group=self.group)
        )
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for the snapshot under way, and forget those before the last that are kept."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        try:
            pending.result()
        except CheckpointException as error:
            raise UserError(
                f"a snapshot in {self.directory} could not be written ({_reason(error)}): make "
                "room there, and run the stage again to go on from the one before"
            ) from None
        if self.mesh.is_main:
            oldest = self._path(steps_in(self.directory)[-self.params.snapshots_kept :][0])
            for path in self.directory.glob("step-*"):
                if path.name < oldest.name:  # whole, or left half-written by a killed run
                    forget(path)

    def restore(self) -> tuple[int, bool]:
        """Load the newest whole snapshot; return its step, 0 if there is none, and whether the
        samples have to be dealt anew, since others shared them out before.

        Raises UserError if it is damaged, or of an akin run that nobody has asked for.
        """
        step = torch.zeros((), dtype=torch.int64)
        if self.mesh.is_main and (found := find_snapshots(self.run)):
            step.fill_(steps_in(found)[-1])
            adopt(self.run, found)
        dist.broadcast(step, src=0, group=self.group)
        if not step:
            return 0, False
        # Tensors are filled in place; what is not a tensor is replaced.
        path = self._path(int(step))
        dealt: dict[str, Any] = {"dealt": None}
        self._load(dealt, path)
        anew = dealt["dealt"] != self._dealt()
        state = self._state(0)
        if anew:
            state.pop(self._loader_key(), None)
        self._load(state, path)
        if anew and self.mesh.is_main:
            print(
                f"note: step {int(step)} was reached by {dealt['dealt']}; from here on samples are "
                f"dealt anew to {self._dealt()}, and bytes differ from those of a run left alone",
                file=sys.stderr,
                flush=True,
            )
        elif self.loader is not None and not anew:
            self.loader.restore_state_rank(state[self._loader_key()])
        self.curves.points = list(state["curves"][0])
        self.logs.restore(state["logs"])
        return int(step), anew

    def remove(self) -> None:
        """Forget all snapshots of this run, which has succeeded."""
        self.finish()
        if self.mesh.is_main:
            for path in self.directory.glob("step-*"):
                forget(path)
            shutil.rmtree(self.directory, ignore_errors=True)

    def _load(self, state: dict[str, Any], path: Path) -> None:
        try:
            load(state, checkpoint_id=path, process_group=self.group)
        except CheckpointException as error:
            raise UserError(
                f"the snapshot {path} is damaged ({_reason(error)}): remove it, and run the stage "
                "again to go on from the one before"
            ) from None

    def _state(self, step: int) -> dict[str, Any]:
        """References to everything a run changes, under names that no grid changes."""
        state: dict[str, Any] = {
            "step": step,
            "dealt": self._dealt(),
            "curves": (list(self.curves.points),),  # a list would be taken apart
            "logs": self.logs.state(),
        }
        for name, parameter in self._trained():
            moments = self.optimizer.state[parameter] or _fresh_moments(parameter)
            self.optimizer.state[parameter] = moments
            state[f"{name}.value"] = parameter.detach()
            state |= {f"{name}.{key}": value for key, value in moments.items()}
        if self.loader is not None:
            state[self._loader_key()] = self.loader.save_state_rank()
        return state

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """What is trained; layers are numbered through all stages."""
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith(LAYERS):
                number, _, rest = name.removeprefix(LAYERS).partition(".")
                yield f"{LAYERS}{int(number) + self.model.stage.first}.{rest}", parameter
            else:
                yield name, parameter

    def _dealt(self) -> str:
        """Who shares out the samples: the loaders' states are of use to the same ones alone."""
        return f"{self.mesh.grid.data} data ranks with {self.params.data.workers} workers each"

    def _loader_key(self) -> str:
        return f"loader.{self.mesh.data_rank:05d}"

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"


def _copied(value: Any) -> Any:
    """``value``, a tensor's memory copied to the CPU: training goes on while it is written."""
    if isinstance(value, DTensor):
        return DTensor.from_local(
            value.to_local().to("cpu", copy=True),
            value.device_mesh,
            value.placements,
            run_check=False,
            shape=value.shape,
            stride=value.stride(),
        )
    return value.to("cpu", copy=True) if isinstance(value, Tensor) else value


def _in_background(function: Callable[[], Any]) -> Future[Any]:
    """Call ``function`` on a thread that nothing waits for: a rank that fails meanwhile must not
    stay for the others' part of a snapshot."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def _reason(error: CheckpointException) -> str:
    """What went wrong at the first of the ranks at which something did, in a line."""
    rank, (exception, _) = min(error.failures.items())
    return f"rank {rank}: {str(exception).splitlines()[0] if str(exception) else repr(exception)}"


def _deaf_to_others(start: Callable[[int], None]) -> Callable[[int], None]:
    """``start`` of a loader's worker, which afterwards heeds a SIGTERM of its rank alone.

    Slurm, systemd and timeout(1) send theirs to every process. A worker that died of it would take
    its rank along, and with it the state that the rank is about to save.
    """

    def started(worker: int) -> None:
        start(worker)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()

    return started


def _end_for(rank: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
        pass
    os._exit(0)


def _fresh_moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first step, as PyTorch lays it out."""
    zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device), **zeros}
