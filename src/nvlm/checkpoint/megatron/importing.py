"""Megatron-LM's checkpoints, converted or trained, as a checkpoint of ours.

Of the format ``torch``, a file a rank, or ``torch_dist``, whose ranks are made up here.

Only the weights and what ``args`` say of their architecture are taken; optimizer and random states
are left. Nothing that is pickled in the files is run (``pt_reader``).
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvlm.checkpoint.format.architecture import Architecture, VisionArchitecture
from nvlm.checkpoint.format.files import DTYPES, new_checkpoint
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION, Grid, check_tensor_parallel
from nvlm.checkpoint.format.manifest import Manifest, Vocabulary, write_manifest
from nvlm.checkpoint.format.writing import Job, write_parts
from nvlm.checkpoint.huggingface.convert import TOKENIZER_FILES, link_tokenizer
from nvlm.checkpoint.megatron.args import (
    UNTIED,
    language_from_args,
    sources_from_args,
    vision_from_args,
)
from nvlm.checkpoint.megatron.dist_exporting import CONFIG
from nvlm.checkpoint.megatron.dist_reader import DistRankFile, RankEntry
from nvlm.checkpoint.megatron.names import (
    TIED_HEAD,
    full_name,
    repeats_embedding,
    stage_parts,
)
from nvlm.checkpoint.megatron.pt_reader import PtFile, TensorEntry
from nvlm.checkpoint.megatron.rank_files import (
    RankFile,
    iteration_directory,
    open_distributed,
    open_ranks,
    saved_grid,
)
from nvlm.checkpoint.parts.projector import ProjectorParams, fresh_projector, slice_projector
from nvlm.checkpoint.parts.shapes import core_shapes
from nvlm.errors import UserError

WORD_EMBEDDINGS = "embedding.word_embeddings.weight"
LAYER = re.compile(r"(vision_model|language_model)\.decoder\.layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a file of Megatron's may not say, or say wrongly; None takes what it says."""

    vocabulary: int | None = None  # rows without padding
    rope_theta: float | None = None  # upstream's converters store 10000 whatever the model
    vision_heads: int | None = None  # of the tower, without dummies
    tokenizer: Path | None = None  # a directory with its files
    dtype: str | None = None  # to cast to; None: the files', or the decoder's where they have two
    tensor: int | None = None  # ranks to lay a torch_dist checkpoint out for; None: who saved it
    # Draws the projector that upstream's combined checkpoints lack.
    projector: ProjectorParams | None = None


def import_megatron(source: Path, destination: Path, options: ImportOptions) -> Manifest:
    """Convert the Megatron checkpoint ``source``, on the grid that it is saved for or says.

    Raises UserError if a rank's file is missing or damaged, a tensor is missing, unexpected or of
    another shape, or a file holds more than tensors and plain values; nothing is written then.
    """
    directory, iteration = iteration_directory(source)
    distributed = (directory / CONFIG).is_file()
    ranks = open_distributed(directory, options.tensor) if distributed else open_ranks(directory)
    manifest = _describe(source, ranks, iteration, options)
    projector = _projector(ranks, manifest, options)
    tokenizer = options.tokenizer or source / "tokenizer"
    total = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    with new_checkpoint(destination) as target:
        files = write_parts(target, _jobs(ranks, manifest, projector, options), total, "import")
        if options.tokenizer or any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
            files |= link_tokenizer(tokenizer, target)
        manifest = manifest.with_files(files)
        if distributed:
            # Which stage reads a layer is a note: no file depends on it.
            grid = saved_grid(ranks[0, 0].file, manifest.grid)
            manifest = replace(manifest, grid=grid)
        write_manifest(target, manifest)
    return manifest


def _describe(
    source: Path, ranks: Mapping[tuple[int, int], RankFile], iteration: int, options: ImportOptions
) -> Manifest:
    """The manifest, without files, of what the ranks' files hold."""
    first = ranks[0, 0]
    tensor, pipeline = (max(rank[axis] for rank in ranks) + 1 for axis in (0, 1))
    args = _plain_args(first.file)
    stages = tuple(_count_layers(ranks[0, stage].tensors, LANGUAGE) for stage in range(pipeline))
    vision = language = vocabulary = None
    if any(name.startswith(f"{VISION}.") for name in first.tensors):
        vision = _vision(first, args, tensor, options)
    if any(name.startswith(f"{LANGUAGE}.") for name in first.tensors):
        vocabulary = _vocabulary(first, args, tensor, options)
        args["rotary_base"] = options.rope_theta or args.get("rotary_base")
        language = language_from_args(
            args,
            first.file.path,
            layers=sum(stages),
            qkv_bias=any(
                name.startswith(f"{LANGUAGE}.") and name.endswith("linear_qkv.bias")
                for name in first.tensors
            ),
            vocabulary=vocabulary.true,
        )
    architecture = Architecture(vision=vision, language=language)
    check_tensor_parallel(architecture, tensor)
    parts = [part for part, half in ((VISION, vision), (LANGUAGE, language)) if half]
    return Manifest(
        architecture=architecture,
        grid=Grid(tensor=tensor, pipeline=pipeline, layers_per_stage=stages if language else ()),
        vocabulary=vocabulary,
        dtype=options.dtype or _dtype(ranks),
        sources=sources_from_args(args, parts, source, iteration),
        files={},
    )


def _plain_args(file: PtFile | DistRankFile) -> dict[str, Any]:
    args = file.content.get("args", Namespace()) if isinstance(file.content, dict) else None
    if not isinstance(args, Namespace):
        raise UserError(
            f"{file.path}: args is no Namespace: save it with Megatron's save_checkpoint"
        )
    return dict(vars(args))


def _vision(
    first: RankFile, args: Mapping[str, Any], tensor: int, options: ImportOptions
) -> VisionArchitecture:
    shapes = {name.removeprefix(f"{VISION}."): entry.shape for name, entry in first.tensors.items()}
    try:
        layers = _count_layers(first.tensors, VISION)
        return vision_from_args(
            args, shapes, layers=layers, tensor=tensor, heads=options.vision_heads
        )
    except KeyError as error:
        raise UserError(f"{first.file.path} lacks {VISION}.{error.args[0]}") from error
    except (IndexError, TypeError) as error:
        raise UserError(f"{first.file.path} has no InternViT that is whole ({error})") from error


def _vocabulary(
    first: RankFile, args: Mapping[str, Any], tensor: int, options: ImportOptions
) -> Vocabulary:
    name = f"{LANGUAGE}.{WORD_EMBEDDINGS}"
    if name not in first.tensors:
        raise UserError(f"{first.file.path} lacks {name}")
    padded = first.tensors[name].shape[0] * tensor
    true = options.vocabulary or args.get("vocab_size") or padded
    if not isinstance(true, int) or not 0 < true <= padded:
        raise UserError(f"{first.file.path}: {true!r} rows are not among its {padded}")
    return Vocabulary(true=true, padded=padded)


def _count_layers(names: Mapping[str, object], half: str) -> int:
    found = (LAYER.match(name) for name in names)
    return len({match[2] for match in found if match and match[1] == half})


def _dtype(ranks: Mapping[tuple[int, int], RankFile]) -> str:
    """The dtype of the weights: the decoder's where the tower has another.

    ``internvit_converter.py`` leaves the tower in float32 where transformers loads it so (all 4.x
    do), and ``combine_state_dicts.py`` puts it beside a decoder of bfloat16.
    """
    tensors = ranks[0, 0].tensors
    table = tensors.get(f"{LANGUAGE}.{WORD_EMBEDDINGS}") or next(iter(tensors.values()))
    return _dtype_name(table)


def _check_dtypes(rank: RankFile) -> None:
    for name, entry in rank.tensors.items():
        if _dtype_name(entry) not in DTYPES:
            raise UserError(
                f"{rank.file.path}: {name} is of {_dtype_name(entry)}, not of one of "
                f"{', '.join(DTYPES)}"
            )


def _dtype_name(entry: TensorEntry | RankEntry) -> str:
    return str(entry.dtype).removeprefix("torch.")


def _projector(
    ranks: Mapping[tuple[int, int], RankFile], manifest: Manifest, options: ImportOptions
) -> dict[str, Tensor] | None:
    """A fresh projector where the files have none, as upstream's combined ones."""
    architecture = manifest.architecture
    missing = not any(name.startswith(f"{PROJECTION}.") for name in ranks[0, 0].tensors)
    if not (missing and architecture.vision and architecture.language):
        return None
    if options.projector is None:
        raise UserError(
            f"{ranks[0, 0].file.path} has no {PROJECTION}: draw a fresh one with --fresh-projector"
        )
    return fresh_projector(architecture, options.projector, getattr(torch, manifest.dtype))


def _jobs(
    ranks: Mapping[tuple[int, int], RankFile],
    manifest: Manifest,
    projector: Mapping[str, Tensor] | None,
    options: ImportOptions,
) -> Iterator[Job]:
    """What reads every part; all names and shapes are checked before the first is made."""
    architecture, size = manifest.architecture, manifest.grid.tensor
    padded = manifest.vocabulary.padded if manifest.vocabulary else None
    dtype, exact = getattr(torch, manifest.dtype), options.dtype is None
    jobs: list[Job] = []
    for (tensor, stage), rank in ranks.items():
        _check_dtypes(rank)
        left = set(rank.tensors)
        for part, number in stage_parts(architecture, manifest.grid, stage):
            if part == PROJECTION and projector is not None:
                jobs.append((tensor, part, partial(slice_projector, projector, tensor, size)))
                continue
            chosen: dict[str, Any] = {}
            for name, shape in core_shapes(architecture, part, size=size, padded=padded).items():
                full = full_name(architecture, part, number, name)
                if full not in left:
                    raise UserError(f"{rank.file.path} lacks {full}: save it again")
                if rank.tensors[full].shape != shape:
                    raise UserError(
                        f"{rank.file.path}: {full} has shape {list(rank.tensors[full].shape)}, not "
                        f"{list(shape)}"
                    )
                left.remove(full)
                chosen[name] = rank.tensors[full]
            jobs.append((tensor, part, partial(_read, rank.file, chosen, dtype, exact)))
        tied = full_name(architecture, f"{LANGUAGE}.head", 0, TIED_HEAD)
        if tied in left and repeats_embedding(architecture, manifest.grid, stage):
            left.remove(tied)
            first = ranks[tensor, 0]
            _check_equal(first, f"{LANGUAGE}.{WORD_EMBEDDINGS}", rank, tied)
        if left:
            raise UserError(f"{rank.file.path} has an unexpected tensor {min(left)}: refused")
    return iter(jobs)


def _check_equal(first: RankFile, table: str, last: RankFile, head: str) -> None:
    """Raise UserError unless the copies of tied embeddings are equal."""
    kept: list[Tensor] = []
    for rank, name in ((first, table), (last, head)):
        entry: Any = rank.tensors[name]
        kept += rank.file.read([entry])
    ours, theirs = kept
    if not torch.equal(ours, theirs):
        raise UserError(
            f"{last.file.path}: {head} is not {first.file.path}'s {table}, to which args tie it: "
            f"save it again, or with args.{UNTIED}"
        )


def _read(
    file: PtFile | DistRankFile, entries: Mapping[str, Any], dtype: torch.dtype, exact: bool
) -> dict[str, Tensor]:
    """The tensors of ``entries`` as ``dtype``.

    Raises UserError if ``exact`` and one of another dtype has a value that ``dtype`` would round.
    """
    tensors = dict(zip(entries, file.read(entries.values()), strict=True))
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(dtype)
        if exact and not torch.equal(tensors[name].to(tensor.dtype), tensor):
            raise UserError(
                f"{file.path}: {name} is of {tensor.dtype} beside {dtype}, which would round it: "
                "allow that with --dtype"
            )
    return tensors
