"""The files of a Megatron checkpoint, opened by tensor and pipeline rank, whatever its format.

``torch`` has a file a rank; of ``torch_dist``, whose tensors are whole, ranks are made up here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nvlm.checkpoint.format.layout import Grid
from nvlm.checkpoint.huggingface.weights import read_json
from nvlm.checkpoint.megatron.dist_exporting import CONFIG
from nvlm.checkpoint.megatron.dist_reader import DistRankFile, RankEntry, read_stored
from nvlm.checkpoint.megatron.exporting import FILE, LATEST
from nvlm.checkpoint.megatron.names import with_prefix
from nvlm.checkpoint.megatron.pt_reader import PtFile, TensorEntry
from nvlm.errors import UserError

RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")


@dataclass(frozen=True, kw_only=True)
class RankFile:
    """A rank's file: its tensors by the names of a combined file."""

    file: PtFile | DistRankFile
    tensors: Mapping[str, TensorEntry | RankEntry]


def iteration_directory(source: Path) -> tuple[Path, int]:
    """The directory of the latest iteration, which ``source`` may itself be.

    ``internvit_converter.py`` writes an iteration without noting it as the latest: the only one
    counts then.
    """
    latest = source / LATEST
    if latest.is_file():
        text = latest.read_text(errors="replace").strip()
        if text != "release" and not text.isdecimal():
            raise UserError(f"{latest} holds {text[:40]!r}, not a number: put the iteration there")
        return (
            (source / "release", 0)
            if text == "release"
            else (source / f"iter_{int(text):07d}", int(text))
        )
    iterations = sorted(source.glob("iter_*"))
    if len(iterations) > 1:
        raise UserError(
            f"{source} has {len(iterations)} iterations and no {LATEST}: give one of them, such as "
            f"{iterations[-1].name}"
        )
    directory = iterations[0] if iterations else source
    found = re.fullmatch(r"iter_(\d+)", directory.name)
    return directory, int(found[1]) if found else 0


def open_ranks(directory: Path) -> dict[tuple[int, int], RankFile]:
    """The files of a full grid, by tensor and pipeline rank."""
    grid = {}
    for path in sorted(directory.glob("mp_rank_*")):
        found = RANK.fullmatch(path.name)
        if not found:
            raise UserError(f"{path} is of a layout that is not supported (experts?)")
        grid[int(found[1]), int(found[2] or 0)] = path / FILE
    if not grid:
        raise UserError(
            f"{directory} has neither mp_rank_TT directories nor {CONFIG}: give a checkpoint of "
            "Megatron's torch or torch_dist format (--ckpt-format)"
        )
    tensor, pipeline = (max(rank[axis] for rank in grid) + 1 for axis in (0, 1))
    for rank in ((t, p) for t in range(tensor) for p in range(pipeline)):
        if rank not in grid:
            raise UserError(f"{directory} lacks tensor rank {rank[0]} of pipeline rank {rank[1]}")
    return {rank: _open_rank(path) for rank, path in sorted(grid.items())}


def open_distributed(directory: Path, tensor: int | None) -> dict[tuple[int, int], RankFile]:
    """The ranks of one pipeline stage, ``tensor`` of them or as many as saved it, that find their
    share in a ``torch_dist`` checkpoint."""
    config = read_json(directory / CONFIG)
    if config.get("sharded_backend") != "torch_dist":
        raise UserError(
            f"{directory / CONFIG} is of {config.get('sharded_backend')!r}: save it with "
            "--ckpt-format torch_dist or torch"
        )
    stored = read_stored(directory)
    size = tensor or DistRankFile(directory, 0, 1, stored).saved("tensor")
    files = {(rank, 0): DistRankFile(directory, rank, size, stored) for rank in range(size)}
    return {rank: RankFile(file=file, tensors=file.tensors) for rank, file in files.items()}


def saved_grid(file: PtFile | DistRankFile, grid: Grid) -> Grid:
    """``grid`` with the pipeline stages of whoever saved a ``torch_dist`` checkpoint."""
    assert isinstance(file, DistRankFile)
    stages = file.stages()
    if sum(stages) != sum(grid.layers_per_stage):
        return grid
    return replace(grid, pipeline=len(stages), layers_per_stage=stages)


def _open_rank(path: Path) -> RankFile:
    file = PtFile(path)
    content = file.content
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        virtual = isinstance(content, dict) and "model0" in content
        what = "holds virtual pipeline stages" if virtual else "has no model"
        raise UserError(f"{path} {what}: not supported")
    model = content["model"]
    tensors = {full: model[name] for full, name in with_prefix(map(str, model)).items()}
    for name, entry in tensors.items():
        if not isinstance(entry, TensorEntry):
            raise UserError(f"{path}: {name} is not a tensor: refused")
    return RankFile(file=file, tensors=tensors)
