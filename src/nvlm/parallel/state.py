"""A model out of a checkpoint on disk, and a checkpoint out of a model, one rank at a time.

A rank opens the files of its own tensor-parallel rank and pipeline stage, and no others; only the
frozen vision tower, which every rank holds whole, is merged from all of them.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from nvlm.atomic import publish_directory, temporary_path
from nvlm.checkpoint.format.adapter import adapter_path
from nvlm.checkpoint.format.files import (
    FileEntry,
    link_file,
    read_part,
    read_tensors,
    write_part,
    write_tensors,
)
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION, layer_part, part_path
from nvlm.checkpoint.format.manifest import Manifest, check_digests, read_manifest, write_manifest
from nvlm.checkpoint.parts import language, projector
from nvlm.checkpoint.parts.adapter import adapter_shapes
from nvlm.checkpoint.parts.vision import read_vision_tower
from nvlm.errors import UserError
from nvlm.model.language import Stage, reset_rotary, tie_head
from nvlm.model.lora import add_adapter
from nvlm.model.nvlm import NVLM
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.tensor import apply_tensor_parallel


def load_model(
    checkpoint: Path,
    mesh: Mesh,
    dtype: torch.dtype,
    *,
    trained: Collection[str] = (),
    gather_logits: bool = False,
) -> NVLM:
    """This rank's part of the model in ``checkpoint``, on its device, in ``dtype``.

    All of it, an adapter too, is frozen but the ``trained`` modules, whose parameters are fp32
    masters.

    Raises UserError if the checkpoint is damaged or laid out for another grid than ``mesh``.
    """
    manifest = read_manifest(checkpoint)
    grid = manifest.grid
    if (grid.tensor, grid.pipeline) != (mesh.tensor.size(), mesh.pipeline.size()):
        raise UserError(
            f"{checkpoint} is laid out for tensor {grid.tensor} x pipeline {grid.pipeline}, not "
            f"{mesh.tensor.size()} x {mesh.pipeline.size()}: change the layout, or the grid"
        )
    check_digests(checkpoint, manifest, _files(manifest, stage_of(manifest, mesh), mesh))
    assert manifest.vocabulary is not None
    with torch.device("meta"):
        model = NVLM(manifest.architecture, manifest.vocabulary.padded, stage_of(manifest, mesh))
    apply_tensor_parallel(model, mesh.tensor, gather_logits=gather_logits)
    reset_rotary(model.language_model, mesh.device)
    state = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in _read_shards(checkpoint, manifest, model, mesh):
        is_trained = name.split(".")[0] in trained
        local = tensor.to(mesh.device, torch.float32 if is_trained else dtype).contiguous()
        state[name] = _like(parameters[name], local)
    model.load_state_dict(state, assign=True)
    assert manifest.architecture.language is not None
    tie_head(model.language_model, manifest.architecture.language, model.stage)
    if manifest.adapter is not None:

        def matrices(layer: int) -> dict[str, Tensor]:
            tensors = read_tensors(checkpoint / adapter_path(layer))
            return {name: tensor.to(dtype) for name, tensor in tensors.items()}

        add_adapter(model, mesh.tensor, manifest.adapter, matrices)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trained)
    return model.eval()


def stage_of(manifest: Manifest, mesh: Mesh) -> Stage:
    """The decoder layers of this rank's pipeline stage."""
    layers = manifest.grid.layers_per_stage
    first = sum(layers[: mesh.pipeline_rank])
    return Stage(
        first=first,
        last=first + layers[mesh.pipeline_rank],
        is_first=mesh.is_first,
        is_last=mesh.is_last,
    )


def save_model(
    model: NVLM, source: Path, destination: Path, mesh: Mesh, trained: Collection[str]
) -> None:
    """Write the ``trained`` modules of ``model``, and its adapter, as a checkpoint; hard-link the
    rest of ``source``.

    ``trained``: "vision_projection", "language_model". Every rank calls this. What was frozen has
    the same bytes in both checkpoints, and DVC stores it once.
    """
    manifest = dataclasses.replace(read_manifest(source), adapter=model.adapter)
    partial = temporary_path(destination)
    if mesh.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier(mesh.files)
    dtype: torch.dtype = getattr(torch, manifest.dtype)
    written: dict[str, FileEntry] = {}
    for part, tensors in _core_shards(model, manifest, mesh, trained):
        if mesh.data_rank == 0:
            stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            name, entry = write_part(partial, mesh.tensor_rank, part, stored)
            written[name] = entry
    for name, matrices in _adapter_files(model, manifest):
        if mesh.data_rank == mesh.tensor_rank == 0:
            stored = {key: tensor.to(dtype) for key, tensor in matrices.items()}
            written[name] = write_tensors(partial, name, stored)
    ranks = dist.get_world_size()
    gathered: list[dict[str, FileEntry]] = [{} for _ in range(ranks)]
    dist.all_gather_object(gathered, written, group=mesh.files)
    fresh = {name: entry for entries in gathered for name, entry in entries.items()}
    frozen = sorted(manifest.files.keys() - fresh.keys())
    for name in frozen[dist.get_rank() :: ranks]:  # shared out: where links fail they are copied
        link_file(source, partial, name)
    dist.barrier(mesh.files)
    if mesh.is_main:
        write_manifest(partial, manifest.with_files({**manifest.files, **fresh}))
        publish_directory(partial, destination)
    dist.barrier(mesh.files)


def _files(manifest: Manifest, stage: Stage, mesh: Mesh) -> list[str]:
    """The files that this rank opens."""
    first = [f"{LANGUAGE}.embedding", PROJECTION] if stage.is_first else []
    layers = [layer_part(LANGUAGE, layer) for layer in range(stage.first, stage.last)]
    last = [f"{LANGUAGE}.head"] if stage.is_last else []
    language = manifest.architecture.language
    if language and language.tied_embeddings and stage.is_last and not stage.is_first:
        last.append(f"{LANGUAGE}.embedding")
    files = [part_path(mesh.tensor_rank, part) for part in (*first, *layers, *last)]
    tower = [name for name in manifest.files if f"/{VISION}." in name]
    adapter = []
    if manifest.adapter is not None:
        adapter = [adapter_path(layer) for layer in range(stage.first, stage.last)]
    return [*files, *tower, *adapter]


def _read_shards(
    checkpoint: Path, manifest: Manifest, model: NVLM, mesh: Mesh
) -> Iterator[tuple[str, Tensor]]:
    """Parameter names of ``model`` with this rank's tensors."""
    rank, size = mesh.tensor_rank, mesh.tensor.size()
    architecture = manifest.architecture.language
    assert architecture is not None
    stage = model.stage
    for name, tensor in read_vision_tower(checkpoint).items():
        yield f"vision_model.{name}", tensor
    if stage.is_first:
        for name, tensor in projector.to_model(read_part(checkpoint, rank, PROJECTION)).items():
            yield f"{PROJECTION}.{name}", tensor
        embedding = read_part(checkpoint, rank, f"{LANGUAGE}.embedding")
        yield f"{LANGUAGE}.model.embed_tokens.weight", embedding["word_embeddings.weight"]
    for layer in range(stage.first, stage.last):
        core = read_part(checkpoint, rank, layer_part(LANGUAGE, layer))
        for name, tensor in language.layer_to_hf(core, architecture, size).items():
            yield f"{LANGUAGE}.model.layers.{layer - stage.first}.{name}", tensor
    if stage.is_last:
        head = read_part(checkpoint, rank, f"{LANGUAGE}.head")
        yield f"{LANGUAGE}.model.norm.weight", head["final_layernorm.weight"]
        if architecture.tied_embeddings:
            embedding = read_part(checkpoint, rank, f"{LANGUAGE}.embedding")
            yield f"{LANGUAGE}.lm_head.weight", embedding["word_embeddings.weight"]
        else:
            yield f"{LANGUAGE}.lm_head.weight", head["output_layer.weight"]


def _core_shards(
    model: NVLM, manifest: Manifest, mesh: Mesh, trained: Collection[str]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Parts of the checkpoint with this rank's tensors, for the ``trained`` modules."""
    architecture = manifest.architecture.language
    assert architecture is not None
    stage, decoder = model.stage, model.language_model
    if PROJECTION in trained and stage.is_first:
        assert model.vision_projection is not None
        yield PROJECTION, projector.to_core(_locals(model.vision_projection))
    if LANGUAGE not in trained:
        return
    if stage.is_first:
        weight = _local(decoder.model.embed_tokens.weight)
        yield f"{LANGUAGE}.embedding", {"word_embeddings.weight": weight}
    for index, layer in enumerate(range(stage.first, stage.last)):
        shard = _locals(decoder.model.layers[index])
        core = language.layer_to_core(shard, architecture, mesh.tensor.size())
        yield layer_part(LANGUAGE, layer), core
    if stage.is_last:
        head = {"final_layernorm.weight": _local(decoder.model.norm.weight)}
        if not architecture.tied_embeddings:
            head["output_layer.weight"] = _local(decoder.lm_head.weight)
        yield f"{LANGUAGE}.head", head


def _adapter_files(model: NVLM, manifest: Manifest) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Paths of this stage's part of the adapter with whole matrices, gathered (a collective)."""
    if model.adapter is None:
        return
    architecture = manifest.architecture.language
    assert architecture is not None
    for number, layer in enumerate(model.language_model.model.layers):
        matrices = {}
        for name in adapter_shapes(architecture, model.adapter):
            matrix = _of_data_ranks(layer.get_parameter(name).detach())
            whole = matrix.full_tensor() if isinstance(matrix, DTensor) else matrix
            matrices[name] = whole.cpu()
        yield adapter_path(model.stage.first + number), matrices


def _locals(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: _local(parameter) for name, parameter in module.named_parameters()}


def _local(parameter: Tensor) -> Tensor:
    """This tensor-parallel rank's tensor, gathered over the data-parallel ranks (a collective)."""
    gathered = _of_data_ranks(parameter)
    own = gathered.to_local() if isinstance(gathered, DTensor) else gathered
    return own.detach().cpu().contiguous()


def _of_data_ranks(parameter: Tensor) -> Tensor:
    """``parameter`` gathered over the data-parallel ranks alone (a collective)."""
    if not isinstance(parameter, DTensor):
        return parameter
    names = parameter.device_mesh.mesh_dim_names or ()
    kept = [
        placement if name == "tensor" else Replicate()
        for name, placement in zip(names, parameter.placements, strict=True)
    ]
    return parameter.redistribute(placements=kept)


def _like(parameter: Tensor, local: Tensor) -> Tensor:
    """``local`` as the DTensor shard that ``parameter`` is, or as it is."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
