"""Training speed of one process: this engine against a plain transformers loop, in turns.

Run with: python benchmarks/training.py (after make repro)

Same model (the smoke 72B), same samples, same optimizer, fp32. The plain loop does what one writes
first: transformers' classes, batches of whole samples padded to the longest, logits everywhere. The
engine runs as configured, and with its option ``compile``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from nvlm.checkpoint.huggingface.convert import convert_language, convert_vision
from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.data.loading.batch import Batch
from nvlm.data.loading.loader import build_loader
from nvlm.model.nvlm import NVLM
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.params import load_params
from nvlm.train.params import TrainParams
from nvlm.train.trainer import Trainer

PLAIN_BATCH = 16  # samples a padded micro-batch: the fastest of 4, 8, 16, 32 here
STEPS = 8
WAITING_STEPS = 32


def main() -> None:
    """Print tokens a second of each, their ratios, and the share of a step that waits for data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29512", "OMP_NUM_THREADS": "1"}
    params = replace(load_params("train.sft_72b", TrainParams), grid=GridParams(tensor=1))
    with tempfile.TemporaryDirectory() as directory, parallel_mesh(params.grid) as mesh:
        checkpoint = one_process_checkpoint(Path(directory))
        engine, plain = (Trainer(params, checkpoint, mesh) for _ in range(2))
        compiled = Trainer(replace(params, compile=True), checkpoint, mesh)
        loader = build_loader(
            Path("data/sft"),
            params.data,
            tokenizer=load_tokenizer(checkpoint / "tokenizer"),
            architecture=engine.model.architecture,
            rows=params.global_batch,
            rank=0,
            world=1,
        )
        stream = iter(loader)
        batches = list(islice(stream, STEPS))
        samples = [unpack(batch) for batch in batches]
        ways: dict[str, Callable[[], None]] = {
            "engine": lambda: engine_steps(engine, batches),
            "compiled": lambda: engine_steps(compiled, batches),
            "plain": lambda: plain_steps(plain, samples),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.rounds + 1):  # the first warms up
            for name, run in ways.items():
                seconds = timed(run)
                if turn:
                    times[name].append(seconds)
        waiting = waiting_share(engine, stream)
    tokens = sum(int(batch.segment_ids.gt(0).sum()) for batch in batches)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    for name, seconds in medians.items():
        print(
            f"{name:8} {tokens / seconds:8.0f} tokens/s (median of {arguments.rounds}), "
            f"{medians['plain'] / seconds:.2f} times plain"
        )
    print(f"waiting  {waiting:8.1%} of a step, with {params.data.workers} process(es) that read")


def waiting_share(trainer: Trainer, stream: Iterator[Batch]) -> float:
    """The share of the engine's steps in which it waits for the loader."""
    waited = 0.0
    started = time.perf_counter()
    for number in range(1, WAITING_STEPS + 1):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        trainer.step(number, batch)
    return waited / (time.perf_counter() - started)


def one_process_checkpoint(directory: Path) -> Path:
    """The smoke 72B's halves, combined for one rank."""
    convert_vision(Path("checkpoints/hf/vision"), directory / "vision", tensor=1)
    convert_language(
        Path("checkpoints/hf/lm_72b"), directory / "language", tensor=1, vocabulary_multiple=1
    )
    params = ProjectorParams(init_std=0.02, seed=1)
    combine(directory / "vision", directory / "language", directory / "combined", params)
    return directory / "combined"


def timed(run: Callable[[], None]) -> float:
    """Seconds that ``run`` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def engine_steps(trainer: Trainer, batches: list[Batch]) -> None:
    """Optimizer steps on packed rows."""
    for number, batch in enumerate(batches, start=1):
        trainer.step(number, batch)


def unpack(batch: Batch) -> list[dict[str, torch.Tensor]]:
    """The samples of packed rows, each with its own tiles."""
    samples = []
    tiles = iter(batch.tiles.split(batch.tiles_per_row.tolist()))
    per_tile = int(batch.visual_index.max()) + 1
    per_tile //= int(batch.tiles_per_row[batch.visual_index.max(dim=1).values.argmax()])
    for row, row_tiles in enumerate(tiles):
        for segment in range(1, int(batch.segment_ids[row].max()) + 1):
            place = batch.segment_ids[row] == segment
            index = batch.visual_index[row, place]
            visual = index[index >= 0]
            first, last = int(visual[0]) // per_tile, int(visual[-1]) // per_tile + 1
            samples.append(
                {
                    "input_ids": batch.input_ids[row, place],
                    "labels": batch.labels[row, place],
                    "is_visual": index >= 0,
                    "tiles": row_tiles[first:last],
                }
            )
    return samples


def plain_steps(trainer: Trainer, steps: list[list[dict[str, torch.Tensor]]]) -> None:
    """The same samples a step, in padded micro-batches, through transformers' own forward."""
    for samples in steps:
        answers = sum(int(sample["labels"].ne(-100).sum()) for sample in samples)
        for start in range(0, len(samples), PLAIN_BATCH):
            plain_loss(trainer.model, samples[start : start + PLAIN_BATCH], answers).backward()
        torch.nn.utils.clip_grad_norm_(
            [p for p in trainer.model.parameters() if p.requires_grad], trainer.params.clip_grad
        )
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)


def plain_loss(model: NVLM, samples: list[dict[str, torch.Tensor]], answers: int) -> torch.Tensor:
    """Summed loss of a padded micro-batch over ``answers``."""
    decoder = model.language_model
    assert model.vision_projection is not None
    ids = pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    labels = pad_sequence([s["labels"] for s in samples], batch_first=True, padding_value=-100)
    is_visual = pad_sequence([sample["is_visual"] for sample in samples], batch_first=True)
    features = model.encode_tiles(torch.cat([sample["tiles"] for sample in samples]))
    embeds = decoder.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter(is_visual[..., None], model.vision_projection(features))
    logits = decoder(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return losses / answers


if __name__ == "__main__":
    main()
