"""Which run this is: what determines its bytes, where its snapshots lie, and which runs are akin.

Snapshots lie outside of the stage's outputs, which DVC deletes before a run, in a directory that
is named by a digest of all that determines the run's bytes. So a snapshot of other inputs or
parameters is never taken by mistake; and that there is one is said, before any rank starts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvlm.atomic import write_text
from nvlm.data.loading.blend import LEFT_OUT, find_blend
from nvlm.errors import UserError
from nvlm.train.params import TrainParams

RESUME = Path(".resume")  # ignored by git
DESCRIPTION = "run.json"
# Parameters that watch a run, or keep its state: none of them changes a byte of its outputs.
WATCHING = ("online", "tensorboard", "log_every", "snapshot_every", "snapshots_kept", "resume")
# How the work is shared out: the mathematics is the same, the order of sums and samples is not.
SHARING = (
    *("grid.replicate", "grid.shard", "data.workers", "micro_batch", "tile_chunk"),
    *("recompute_every", "keep_gathered", "compile", "deterministic", "sequence_parallel"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, as far as its snapshots are concerned."""

    name: str  # of the stage's output: 72b-sft_split
    determined_by: Mapping[str, Any]  # flat: parameters, and digests of what is read
    resume: str

    @property
    def directory(self) -> Path:
        """Where its snapshots lie."""
        text = json.dumps(self.determined_by, sort_keys=True)
        return RESUME / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def describe(self) -> None:
        """Say beside the snapshots what they are of."""
        text = json.dumps(self.determined_by, sort_keys=True, indent=1) + "\n"
        if not (self.directory / DESCRIPTION).is_file():
            write_text(self.directory / DESCRIPTION, text)


def identify(params: TrainParams, checkpoint: Path, data: Path, out: Path) -> Run:
    """The run that trains ``checkpoint`` on the blend in ``data`` by ``params``.

    The manifest of a checkpoint holds the digest of each of its files, and a dataset's index.uuid
    is derived from its shards; a dataset that is missing has none.
    """
    values = asdict(params)
    determining = {name: value for name, value in values.items() if name not in WATCHING}
    inputs = {"checkpoint": checkpoint / "checkpoint.json"} | {
        f"dataset {name}": index
        for name, index in find_blend(data, params.data.blend).indexes.items()
    }
    if (left_out := data.parent / LEFT_OUT).is_file():
        inputs["samples left out"] = left_out
    digests = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in inputs.items()
    }
    name = f"{out.parent.name}-{out.name}" if out.parent.name else out.name
    return Run(name=name, determined_by=_flat(determining) | digests, resume=params.resume)


def find_snapshots(run: Run) -> Path | None:
    """The directory of snapshots to go on from: the run's own, or with ``reshard`` an akin one.

    Raises UserError where there is an akin one and nobody has said what to do with it: what it has
    cost would be thrown away without a word.
    """
    if steps_in(run.directory):
        return run.directory
    for other in others(run):
        differing = _differences(run, other)
        if not differing.keys() <= set(SHARING):
            continue
        if run.resume == "reshard":
            return other
        raise UserError(
            f"{_told(run, other)}: resume: reshard goes on from there, with other bytes than a run "
            "left alone; to begin anew, python -m nvlm.train snapshots --remove " + other.name
        )
    return None


def unlike(run: Run) -> list[str]:
    """A sentence for each run of other mathematics that has snapshots for the same output."""
    return [
        f"{_told(run, other)}; this run does not go on from there"
        for other in others(run)
        if not _differences(run, other).keys() <= set(SHARING)
    ]


def others(run: Run) -> list[Path]:
    """Directories with whole snapshots of runs that write the same output, the furthest first."""
    found = [path for path in RESUME.glob(f"{run.name}-*") if path != run.directory]
    described = [path for path in found if (path / DESCRIPTION).is_file() and steps_in(path)]
    return sorted(described, key=lambda path: (-steps_in(path)[-1], path.name))


def steps_in(directory: Path) -> list[int]:
    """Steps of the whole snapshots in ``directory``, sorted: their metadata is written last."""
    found: Iterable[Path] = directory.glob("step-*/.metadata")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def forget(snapshot: Path) -> None:
    """Remove ``snapshot``; what a kill leaves of it doesn't look whole."""
    (snapshot / ".metadata").unlink(missing_ok=True)
    shutil.rmtree(snapshot, ignore_errors=True)


def table() -> str:
    """A line for each run that has not ended: its name, last snapshot, snapshots and bytes."""
    lines = [f"{'run':45} {'last step':>9} {'snapshots':>9} {'GB':>9}"]
    for directory in sorted(path.parent for path in RESUME.glob(f"*/{DESCRIPTION}")):
        steps = steps_in(directory)
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        last = steps[-1] if steps else 0
        lines.append(f"{directory.name:45} {last:>9} {len(steps):>9} {size / 1e9:>9.3f}")
    return "\n".join(lines) if lines[1:] else f"no run has left anything in {RESUME}"


def remove(directory: Path) -> None:
    """Remove the state of a run. Raises UserError if ``directory`` holds none."""
    if directory.parent != RESUME or not (directory / DESCRIPTION).is_file():
        raise UserError(f"{directory} holds no run: python -m nvlm.train snapshots lists them")
    for step in steps_in(directory):
        forget(directory / f"step-{step:08d}")
    shutil.rmtree(directory)


def adopt(run: Run, directory: Path) -> None:
    """Make ``directory``, of an akin run, the run's own."""
    if directory != run.directory:
        (directory / DESCRIPTION).unlink()
        shutil.rmtree(run.directory, ignore_errors=True)  # without a whole snapshot
        directory.rename(run.directory)
    run.describe()


def _told(run: Run, other: Path) -> str:
    differing = _differences(run, other).items()
    told = ", ".join(f"{name} {theirs} (here {ours})" for name, (ours, theirs) in differing)
    return f"{other} holds step {steps_in(other)[-1]} of a run with {told}"


def _differences(run: Run, other: Path) -> dict[str, tuple[Any, Any]]:
    ours, theirs = run.determined_by, _description(other)
    return {
        name: (ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    }


def _description(directory: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text())
    except ValueError as error:
        raise UserError(f"{directory / DESCRIPTION} is damaged: remove {directory}") from error
    return content


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
