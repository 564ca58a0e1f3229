"""Exact resume: what a killed run needs to end with the bytes of one that was not.

Snapshots live outside the stage's outputs (DVC deletes those before a run), in a directory named by
the digest of everything that determines the run, so that a snapshot of other inputs or parameters
is never taken. They are written by PyTorch's distributed checkpoint, in the background, and removed
when the run has succeeded. Random numbers need no state: each step seeds its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from nvlm.errors import UserError
from nvlm.train.curves import Curves
from nvlm.train.params import TrainParams
from nvlm.train.telemetry.logs import Logs
from nvlm.train.trainer import Trainer

KEPT = 2  # the newest may be half-written when a machine dies


def run_digest(params: TrainParams, checkpoint: Path, data: Path) -> str:
    """Sixteen hex digits of all that determines a run: parameters, checkpoint, datasets.

    What only watches a run is left out: scores on the way, and TensorBoard.

    The manifest of a checkpoint holds the digest of each of its files, and a dataset's index.uuid
    is derived from its shards.
    """
    determining = replace(params, online=None, tensorboard=False)
    digest = hashlib.sha256(repr(sorted(asdict(determining).items())).encode())
    digest.update((checkpoint / "checkpoint.json").read_bytes())
    for name in sorted(params.data.blend):
        digest.update((data / name / ".nv-meta" / "index.uuid").read_bytes())
    return digest.hexdigest()[:16]


class Snapshots:
    """Saves and restores model, optimizer, loader and curves of one run."""

    def __init__(
        self, directory: Path, trainer: Trainer, loader: Any | None, curves: Curves, logs: Logs
    ) -> None:
        """``loader``: Energon's savable loader on the ranks that read, None on the others; it is
        not yet iterated."""
        self.directory, self.loader = directory, loader
        self.curves, self.logs = curves, logs
        if loader is not None:
            loader.worker_init_fn = _deaf_to_others(loader.worker_init_fn)
        self.model, self.optimizer, self.mesh = trainer.model, trainer.optimizer, trainer.mesh
        self.group = dist.new_group(backend="gloo")  # saving goes on while the GPUs train
        self.pending: Future[Any] | None = None

    def save(self, step: int, *, wait: bool = False) -> None:
        """Save the state after ``step`` in the background; every rank calls this.

        Raises UserError if the one before could not be written (or this one, if it is to ``wait``).
        """
        self.finish()
        result = async_save(
            self._state(step), checkpoint_id=self._path(step), process_group=self.group
        )
        assert isinstance(result, Future)
        self.pending = result
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for the snapshot under way, and forget those before the last ``KEPT``."""
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
            oldest = self._path(self._steps()[-KEPT:][0])
            for path in self.directory.glob("step-*"):
                if path.name < oldest.name:  # whole, or left half-written by a killed run
                    _forget(path)

    def restore(self) -> int:
        """Load the newest whole snapshot; return its step, 0 if there is none.

        Raises UserError if it is damaged.
        """
        step = torch.tensor(max(self._steps(), default=0))
        dist.broadcast(step, src=0, group=self.group)
        if not step:
            return 0
        state = self._state(0)
        # Tensors are filled in place; what is not a tensor is replaced in ``state``.
        path = self._path(int(step))
        try:
            load(state, checkpoint_id=path, process_group=self.group)
        except CheckpointException as error:
            raise UserError(
                f"the snapshot {path} is damaged ({_reason(error)}): remove it, and run the stage "
                "again to go on from the one before"
            ) from None
        if self.loader is not None:
            self.loader.restore_state_rank(state[self._rank()]["loader"])
        self.curves.points = list(state["curves"])
        self.logs.restore(state["logs"])
        return int(step)

    def remove(self) -> None:
        """Forget all snapshots of this run, which has succeeded."""
        self.finish()
        if self.mesh.is_main:
            for path in self.directory.glob("step-*"):
                _forget(path)
            shutil.rmtree(self.directory, ignore_errors=True)

    def _state(self, step: int) -> dict[str, Any]:
        """References to everything a run changes. A run goes on only on the same grid (the digest
        sees to that), so each rank saves what it holds, under names of its own."""
        own: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                moments = self.optimizer.state[parameter] or _fresh_moments(parameter)
                self.optimizer.state[parameter] = moments
                own[f"{name}.value"] = _local(parameter)
                own |= {f"{name}.{key}": _local(value) for key, value in moments.items()}
        if self.loader is not None:
            own["loader"] = self.loader.save_state_rank()
        return {
            "step": step,
            "curves": list(self.curves.points),
            "logs": self.logs.state(),
            self._rank(): own,
        }

    def _rank(self) -> str:
        return f"rank_{dist.get_rank():05d}"

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        """Steps of the whole snapshots: the metadata file is written last."""
        found: Iterable[Path] = self.directory.glob("step-*/.metadata")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def _forget(snapshot: Path) -> None:
    """Remove ``snapshot``; what a kill leaves of it doesn't look whole."""
    (snapshot / ".metadata").unlink(missing_ok=True)
    shutil.rmtree(snapshot, ignore_errors=True)


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


def _local(tensor: Tensor) -> Tensor:
    """The plain tensor that this rank holds of ``tensor``, sharing its memory."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached
