"""Small whole checkpoints, batches, and runs of the engine on a grid, for the tests beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.checkpoint.models import save_language, save_vision
from transformers import PreTrainedTokenizerFast

from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.checkpoint.relayout.repartition import repartition
from nvlm.data.loading.batch import Batch
from nvlm.data.loading.params import LoaderParams
from nvlm.model.nvlm import features_by_row
from nvlm.model.tokens import IGNORED, TEXT
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.state import load_model, save_model
from nvlm.train.params import TrainParams
from nvlm.train.trainer import Trainer

VOCABULARY, LENGTH, TOKENS_PER_TILE = 101, 24, 4


def make_checkpoint(
    directory: Path,
    family: str,
    grid: GridParams,
    *,
    vocabulary: int = VOCABULARY,
    tokenizer: PreTrainedTokenizerFast | None = None,
    tower: str = "6B",
    tied: bool = False,
) -> Path:
    """A combined checkpoint for ``grid``; its Hugging Face halves are in ``directory`` too."""
    save_vision(directory / "hf_vision", like=tower)
    save_language(directory / "hf_language", family, vocabulary=vocabulary, tied=tied)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory / "hf_language")
    convert_vision(directory / "hf_vision", directory / "vision", tensor=grid.tensor)
    convert_language(
        directory / "hf_language", directory / "language", tensor=grid.tensor, vocabulary_multiple=8
    )
    params = ProjectorParams(init_std=0.05, seed=1)
    combine(directory / "vision", directory / "language", directory / "combined", params)
    if grid.pipeline > 1:
        out = directory / "split"
        repartition(directory / "combined", out, pipeline=grid.pipeline)
        return out
    return directory / "combined"


def make_batch(rows: int, seed: int) -> Batch:
    """Random rows of two packed samples; of every three rows, one has no image."""
    generator = torch.Generator().manual_seed(seed)

    def randint(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    visual_index = torch.full((rows, LENGTH), TEXT)
    tiles_per_row = torch.tensor([(row + 1) % 3 for row in range(rows)])
    for row, tiles in enumerate(tiles_per_row.tolist()):
        visual_index[row, 1 : 1 + tiles * TOKENS_PER_TILE] = torch.arange(tiles * TOKENS_PER_TILE)
    segment_ids = torch.ones(rows, LENGTH, dtype=torch.long)
    segment_ids[:, 14:21], segment_ids[:, 21:] = 2, 0
    position_ids = torch.cat([torch.arange(14), torch.arange(7), torch.zeros(3)]).long()
    labels = randint(VOCABULARY, rows, LENGTH)
    labels[randint(2, rows, LENGTH).bool() | (segment_ids == 0)] = IGNORED
    return Batch(
        input_ids=randint(VOCABULARY, rows, LENGTH).where(visual_index == TEXT, 0),
        position_ids=position_ids.expand(rows, -1).contiguous(),
        segment_ids=segment_ids,
        segment_lengths=torch.tensor([[14, 7, 3]] * rows),
        labels=labels,
        visual_index=visual_index,
        tiles=randint(256, int(tiles_per_row.sum()), 3, 24, 24).to(torch.uint8),
        tiles_per_row=tiles_per_row,
        lengths=[21] * rows,
        keys=[[f"{row}.first", f"{row}.second"] for row in range(rows)],
    )


def share(batch: Batch, rank: int, world: int) -> Batch:
    """Rows ``rank`` of ``world`` equal shares of ``batch``."""
    size = batch.input_ids.shape[0] // world
    rows = slice(rank * size, (rank + 1) * size)
    first = int(batch.tiles_per_row[: rank * size].sum())
    tiles = int(batch.tiles_per_row[rows].sum())
    names = (
        *("input_ids", "position_ids", "segment_ids", "segment_lengths", "labels"),
        *("visual_index", "tiles_per_row"),
    )
    return Batch(
        **{name: getattr(batch, name)[rows] for name in names},
        tiles=batch.tiles[first : first + tiles],
        lengths=batch.lengths[rows],
        keys=batch.keys[rows],
    )


def train_params(grid: GridParams, trainable: list[str], steps: int) -> TrainParams:
    loader = LoaderParams(
        blend={"none": 1.0},
        sequence_length=LENGTH,
        packing=True,
        template="chatml",
        max_tiles=6,
        thumbnail=True,
        tile_tags=True,
        workers=0,
        shuffle_buffer=1,
        seed=1,
    )
    return TrainParams(
        trainable=trainable,
        data=loader,
        grid=grid,
        steps=steps,
        global_batch=8,
        micro_batch=2,
        tile_chunk=3,
        lr=1e-3,
        min_lr=1e-4,
        warmup_steps=3,
        betas=[0.9, 0.95],
        weight_decay=0.1,
        clip_grad=1.0,
        stop_above_norm=1e4,
        turn_weighting="token",
        attention_dropout=0.0,
        hidden_dropout=0.0,
        dtype="float32",
        sequence_parallel=grid.tensor > 1,
        deterministic=True,
        recompute_every=0,
        keep_gathered=False,
        compile=False,
        seed=1,
        log_every=1,
        tensorboard=False,
        snapshot_every=100,
        snapshots_kept=2,
    )


def write_logits(checkpoint: Path, grid: GridParams, out: Path) -> None:
    """Worker: the logits (B, S, V) of ``make_batch(6, seed=7)`` on the grid."""
    batch = make_batch(6, seed=7)
    with parallel_mesh(grid) as mesh, torch.no_grad():
        model = load_model(checkpoint, mesh, torch.float32, gather_logits=True)
        inputs = batch.input_ids
        group = mesh.pipeline.get_group()
        for stage in range(grid.pipeline):
            if stage == mesh.pipeline_rank:
                first = {}
                if mesh.is_first:
                    features = model.encode_tiles(batch.tiles)
                    first["features"] = features_by_row(features, batch.tiles_per_row)
                    first["visual_index"] = batch.visual_index
                inputs = model(
                    inputs,
                    position_ids=batch.position_ids,
                    segment_ids=batch.segment_ids,
                    **first,
                )
                if mesh.is_last:
                    inputs = model.language_model.lm_head(inputs)
            elif stage < mesh.pipeline_rank:
                language = model.architecture.language
                assert language is not None
                inputs = torch.empty(*batch.input_ids.shape, language.hidden_size)
            if stage < grid.pipeline - 1:
                dist.broadcast(inputs, group=group, group_src=stage)
        if mesh.is_last and mesh.tensor_rank == 0:
            torch.save(inputs[..., :VOCABULARY], out)


def write_losses(
    checkpoint: Path,
    grid: GridParams,
    trainable: list[str],
    out: Path,
    steps: int = 20,
    changes: dict[str, Any] | None = None,
) -> None:
    """Worker: (loss, gradient norm) of some steps, and the checkpoint after them."""
    with parallel_mesh(grid) as mesh:
        params = replace(train_params(grid, trainable, 20), **(changes or {}))
        trainer = Trainer(params, checkpoint, mesh)
        history = []
        for step in range(1, steps + 1):
            batch = share(make_batch(8, seed=step), mesh.data_rank, grid.data)
            result = trainer.step(step, batch)
            history.append((result.loss, result.gradient_norm))
        save_model(trainer.model, checkpoint, out / "trained", mesh, params.trained)
        if mesh.is_main:
            torch.save(torch.tensor(history, dtype=torch.float64), out / "history.pt")


def write_first_loss(checkpoint: Path, grid: GridParams, dtype: str, out: Path) -> None:
    """Worker: the loss of one step that computes in ``dtype``."""
    params = replace(train_params(grid, ["vision_projection", "language_model"], 20), dtype=dtype)
    with parallel_mesh(grid) as mesh:
        result = Trainer(params, checkpoint, mesh).step(1, make_batch(8, seed=1))
        if mesh.is_main:
            out.write_text(repr(result.loss))
