"""Whether a training stage fits its cards, without the cards: memory and batch arithmetic by rank.

Every pipeline stage's model is built on the meta device and sharded by the engine's own code, in a
process group of the true size in which nobody else is (PyTorch's "fake" backend).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from tqdm import tqdm

from nvlm.checkpoint.format.adapter import TARGETS, Adapter
from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.layout import even_grid, padded_rows
from nvlm.checkpoint.parts.adapter import adapter_shapes
from nvlm.errors import UserError
from nvlm.model.language import Stage
from nvlm.model.lora import add_adapter
from nvlm.model.nvlm import NVLM
from nvlm.parallel.data import apply_data_parallel
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import Mesh
from nvlm.parallel.tensor import apply_tensor_parallel
from nvlm.train.checks import check_sequence
from nvlm.train.lora import LoraParams
from nvlm.train.params import TrainParams
from nvlm.train.planning.cost import Card, Rates, step_time
from nvlm.train.planning.memory import ModelState, RankMemory, model_state, rank_memory, unit_sizes

GIB = 2**30
META = torch.device("meta")
# Of a card, for what no formula has: fragments, the CUDA context, buffers of NCCL and cuBLAS.
RESERVED = 0.1
TENSOR_SIZES, PIPELINE_SIZES = (1, 2, 4, 8), (1, 2, 4, 8, 16)  # within a node of 8; over nodes
# What is planned beside a fine-tuning: an adapter of every layer, on cards of one node.
ADAPTED = LoraParams(rank=16, alpha=32.0, dropout=0.0, targets=list(TARGETS))
ADAPTED_GPUS = {"34b": 4, "72b": 8}
LABELS = {
    "parameters": "parameters, fp32 shard",
    "frozen": "frozen modules",
    "gradients": "gradients, fp32 shard *",
    "optimizer": "AdamW's moments, shard",
    "gathered": "gathered by FSDP2 *",
    "accumulated": "gradients to reduce *",
    "batch": "tokens, pixels, features",
    "tower": "vision tower's pass *",
    "activations": "activations *",
    "logits": "logits and loss *",
    "clipping": "gradient norm *",
}


@dataclass(frozen=True, kw_only=True)
class Market:
    """The cards to be had, what they reach, and their price."""

    card: Card
    rates: Rates
    price: float  # $ a GPU-hour


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs on its grid."""

    params: TrainParams
    stages: list[RankMemory]  # of a rank of each pipeline stage
    layers: int  # decoder layers a stage
    tiles: int  # most tiles that a row can have

    @property
    def peak(self) -> int:
        """Bytes on the fullest rank."""
        return max(memory.peak for memory in self.stages)

    @property
    def snapshot(self) -> int:
        """Bytes of one snapshot: masters and moments of every parameter that is trained, once."""
        ranks = self.params.grid.tensor * self.params.grid.shard
        return ranks * sum(memory.parameters + memory.optimizer for memory in self.stages)

    def fits(self, memory_gib: float) -> bool:
        """Whether the fullest rank fits a card of ``memory_gib``, with ``RESERVED`` of it spare."""
        return self.peak <= (1 - RESERVED) * memory_gib * GIB


def plan_run(params: TrainParams, architecture: Architecture, padded_vocabulary: int) -> Plan:
    """Plan a run of ``architecture`` by ``params``.

    Raises UserError if the model does not divide by the grid, or a row cannot hold an image.
    """
    tiles = check_sequence(params.data, architecture)
    if params.data.packing:  # as many as there is room for
        assert architecture.vision
        tiles = params.data.sequence_length // architecture.vision.tokens_per_tile
    grid = even_grid(
        architecture, tensor=params.grid.tensor, pipeline=params.grid.pipeline
    ).layers_per_stage
    states: dict[tuple[bool, bool], tuple[ModelState, list[int]]] = {}
    memories = []
    with rehearsal(params.grid) as mesh:
        for stage, layers in enumerate(grid):
            ends = stage == 0, stage == len(grid) - 1
            if ends not in states:  # the stages between the first and the last are alike
                place = Stage(first=0, last=layers, is_first=ends[0], is_last=ends[1])
                with torch.device("meta"):
                    model = NVLM(architecture, padded_vocabulary, place)
                states[ends] = _shard(model, params, mesh)
            state, units = states[ends]
            memories.append(
                rank_memory(
                    architecture,
                    params,
                    state,
                    units,
                    stage=stage,
                    layers=layers,
                    padded_vocabulary=padded_vocabulary,
                    tiles=tiles,
                )
            )
    return Plan(params=params, stages=memories, layers=grid[0], tiles=tiles)


def plan_grids(
    params: TrainParams, architecture: Architecture, multiple: int, gpus: int
) -> list[Plan]:
    """Plans of the same run on every grid of ``gpus`` ranks that model and batch divide by.

    ``multiple``: of the vocabulary's padding. Raises UserError if there is no such grid.
    """
    assert architecture.language
    plans = []
    for grid in tqdm(list(_grids(params, architecture, gpus)), desc="grids", disable=None):
        padded = padded_rows(
            architecture.language.vocabulary, multiple=multiple, tensor=grid.tensor
        )
        plans.append(plan_run(replace(params, grid=grid), architecture, padded))
    if not plans:
        raise UserError(
            f"no grid of {gpus} GPUs divides the model and the global batch of "
            f"{params.global_batch}: choose another --gpus"
        )
    return plans


def _grids(params: TrainParams, architecture: Architecture, gpus: int) -> Iterator[GridParams]:
    assert architecture.language
    only_projector = "language_model" not in params.trainable  # of which one stage has all
    for tensor in TENSOR_SIZES:
        for pipeline in (1,) if only_projector else PIPELINE_SIZES:
            if gpus % (tensor * pipeline) or architecture.language.layers % pipeline:
                continue
            shard = gpus // (tensor * pipeline)
            groups, ffn = architecture.language.query_groups, architecture.language.ffn_hidden_size
            if (
                groups % tensor
                == ffn % tensor
                == params.global_batch % (shard * params.micro_batch)
                == 0
            ):
                yield GridParams(tensor=tensor, pipeline=pipeline, shard=shard)


def _shard(model: NVLM, params: TrainParams, mesh: Mesh) -> tuple[ModelState, list[int]]:
    """Shard a stage's ``model`` as ``Trainer`` does; its state, and its FSDP2 units."""
    compute: torch.dtype = getattr(torch, params.dtype)
    apply_tensor_parallel(model, mesh.tensor)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in params.trained)
    if params.lora is not None:
        adapter = params.lora.adapter
        add_adapter(model, mesh.tensor, adapter, partial(_unwritten, model, adapter))
    units = unit_sizes(model)
    if mesh.grid.data > 1 or compute != torch.float32:
        apply_data_parallel(model, mesh, compute, keep_gathered=params.keep_gathered)
    return model_state(model, compute), units


def _unwritten(model: NVLM, adapter: Adapter, _layer: int) -> dict[str, torch.Tensor]:
    """The matrices of a layer, without values."""
    assert model.architecture.language
    shapes = adapter_shapes(model.architecture.language, adapter)
    return {name: torch.empty(shape, device=META) for name, shape in shapes.items()}


@contextmanager
def rehearsal(grid: GridParams, device: torch.device = META) -> Iterator[Mesh]:
    """The mesh of ``grid`` as its first rank sees it, with no other process behind it."""
    dist.init_process_group("fake", rank=0, world_size=grid.processes, store=FakeStore())
    try:
        whole = init_device_mesh(
            "cuda" if device.type == "cuda" else "cpu",
            (grid.pipeline, grid.replicate, grid.shard, grid.tensor),
            mesh_dim_names=("pipeline", "replicate", "shard", "tensor"),
        )
        yield Mesh(
            grid=grid,
            device=device,
            whole=whole,
            data=whole["replicate", "shard"]._flatten("data"),
            replica=whole["pipeline", "tensor"]._flatten("replica"),
            files=None,
        )
    finally:
        dist.destroy_process_group()


def describe(plan: Plan, memory_gib: float) -> str:
    """The plan as text: memory of a rank of each stage in GiB, and the batch arithmetic."""
    params, grid = plan.params, plan.params.grid
    rows = params.global_batch // grid.data
    micro_batches = rows // params.micro_batch
    stages = [f"stage {number}" for number in range(grid.pipeline)]
    lines = [
        f"grid: tensor {grid.tensor} x pipeline {grid.pipeline} x replicate {grid.replicate} x "
        f"shard {grid.shard}, GPUs: {grid.processes}; {plan.layers} decoder layers a stage",
        f"step: {params.global_batch} rows = {grid.data} data ranks x {micro_batches} micro-batches"
        f" x {params.micro_batch}; {params.global_batch * params.data.sequence_length:,} tokens, "
        f"at most {params.global_batch * plan.tiles:,} tiles",
    ]
    if grid.pipeline > 1:
        idle = (grid.pipeline - 1) / (micro_batches + grid.pipeline - 1)
        lines.append(f"pipeline: 1F1B, {idle:.0%} of the time idle")
    lines.append(_row("GiB a rank", stages))
    for field in fields(RankMemory):
        values = [getattr(memory, field.name) / GIB for memory in plan.stages]
        lines.append(_row(LABELS[field.name], [f"{value:.2f}" for value in values]))
    lines.append(_row("peak", [f"{memory.peak / GIB:.2f}" for memory in plan.stages]))
    lines.append("* not all at once: the peak has the largest of what is held together")
    verdict = "fits" if plan.fits(memory_gib) else "does not fit"
    lines.append(f"{verdict} {memory_gib:g} GiB with {RESERVED:.0%} of it spare")
    return "\n".join(lines)


def describe_time(plan: Plan, architecture: Architecture, market: Market) -> str:
    """Seconds of a step by what they go to, and what the whole run takes and costs."""
    params, ranks = plan.params, plan.params.grid.processes
    time = step_time(params, architecture, market.card, market.rates, plan.tiles)
    shares = [(f.name, getattr(time, f.name)) for f in fields(time) if f.name != "model_flops"]
    told = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in shares if value)
    hours = params.steps * time.seconds / 3600
    snapshot = plan.snapshot / 1e9
    return "\n".join(
        [
            f"a step, expected: {time.seconds:.2f} s ({told}); {time.model_flops:.3g} FLOPs, "
            f"{time.utilization(market.card, ranks):.0%} of the cards' peak",
            f"the run, expected: {params.steps:,} steps in {rounded(hours)} hours, "
            f"{rounded(hours * ranks)} GPU-hours, {hours * ranks * market.price:,.0f} $ at "
            f"{market.price:g} $ a GPU-hour",
            f"snapshots: {snapshot:,.1f} GB each, {params.snapshots_kept + 1} of them at once: "
            f"{(params.snapshots_kept + 1) * snapshot:,.0f} GB of disk",
        ]
    )


def describe_grids(plans: Sequence[Plan], architecture: Architecture, market: Market) -> str:
    """A line a grid: those that fit first, the fastest of them first."""
    lines = [
        f"{'tensor':>6} {'pipeline':>8} {'shard':>5} {'micro-batches':>13} {'peak GiB':>8} "
        f"{'s a step':>8} {'of peak':>7} {'GPU-hours':>9}"
    ]
    times = {
        id(plan): step_time(plan.params, architecture, market.card, market.rates, plan.tiles)
        for plan in plans
    }
    memory = market.card.memory_gib
    for plan in sorted(plans, key=lambda p: (not p.fits(memory), times[id(p)].seconds)):
        grid, time = plan.params.grid, times[id(plan)]
        micro_batches = plan.params.global_batch // (grid.data * plan.params.micro_batch)
        verdict = "fits" if plan.fits(memory) else "does not fit"
        hours = plan.params.steps * time.seconds / 3600 * grid.processes
        lines.append(
            f"{grid.tensor:>6} {grid.pipeline:>8} {grid.shard:>5} {micro_batches:>13} "
            f"{plan.peak / GIB:>8.1f} {time.seconds:>8.2f} "
            f"{time.utilization(market.card, grid.processes):>7.0%} {hours:>9,.0f}  {verdict}"
        )
    return "\n".join(lines)


def rounded(number: float) -> str:
    """A number of hours, with a decimal where it is small."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _row(label: str, values: list[str]) -> str:
    return f"  {label:26}" + "".join(f"{value:>10}" for value in values)
