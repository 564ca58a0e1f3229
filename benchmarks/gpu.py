"""Training speed on one GPU: this engine against a plain transformers loop, in turns.

Run with: python benchmarks/gpu.py
          python benchmarks/gpu.py --tensor 8

A few layers of Qwen2-72B at true width, the projector and InternViT-6B, with random weights made on
the card: a fine-tuning step of the recipe, 3,200 tokens a row, bf16 with fp32 masters. Both do the
same samples with the same optimizer. The plain loop does what one writes first: autocast, samples
padded to the longest, all logits. With --tensor one rank of so many is run, its true shapes and
dispatch on PyTorch's "fake" process group, without the wire: the engine as it is beside the same
with one of its policies switched off. Without CUDA, or with --toy, the same runs at toy width: a
check of this script, whose figures say nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from gpu_ways import Setting, Step, engine, make_row, one_rank, plain, with_a_mask
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile

from compose_params import composed
from nvlm.checkpoint.format.architecture import Architecture
from nvlm.checkpoint.format.published import INTERNVIT_6B, QWEN2_72B
from nvlm.errors import UserError, run_command
from nvlm.model.flops import peak_flops
from nvlm.parallel.mesh import parallel_mesh
from nvlm.params import parse_params
from nvlm.train.params import TrainParams
from nvlm.train.planning.plan import rehearsal

GIB = 2**30
# What a matrix product is called: CUDA's kernels (cuBLAS's nvjet among them; attention's fused
# kernels are products too), and PyTorch's operations on a CPU.
KERNELS = ("gemm", "nvjet", "cutlass", "flash", "fmha")
OPERATIONS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product_flash_attention")
# What of the engine's policies is switched off, one at a time.
OFF: dict[str, dict[str, bool | int]] = {
    "attention by a mask": {"mask": True},
    "gathered anew each micro-batch": {"keep_gathered": False},
    "layers run again": {"recompute_every": 1},
    "whole sequences": {"sequence_parallel": False},
    "deterministic kernels": {"deterministic": True},
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One turn of one way."""

    seconds: float  # a step
    memory: int | None  # most bytes of the card that tensors took
    outside: float  # share of the time outside matrix products


def main() -> None:
    arguments = parse_arguments()
    counts = ("layers", "tower_layers", "vocabulary", "rows", "steps", "rounds", "tensor")
    if too_few := [name for name in counts if getattr(arguments, name) < 1]:
        raise UserError(f"--{too_few[0].replace('_', '-')} should be 1 or more")
    toy = arguments.toy or not torch.cuda.is_available()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    # What PyTorch asks for where the engine's runs give the same bytes every time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    params, architecture = toy_scale(arguments) if toy else true_scale(arguments)
    ways, running = {"engine": engine, "plain": plain}, parallel_mesh(params.grid)
    if arguments.tensor > 1:
        ways = {"engine": one_rank, **{name: partial(switched, off) for name, off in OFF.items()}}
        running = rehearsal(
            params.grid, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )
    with running as mesh:
        setting = Setting(
            params=params,
            architecture=architecture,
            samples=[make_row(params, architecture, row) for row in range(params.global_batch)],
            mesh=mesh,
        )
        found: dict[str, list[Measured]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, prepare in ways.items():
                found[name].append(measure(prepare, setting, arguments.steps))
        print(table(setting, found, toy=toy))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="of the decoder's 80 (%(default)s)")
    parser.add_argument(
        "--tower-layers", type=int, default=45, help="of the vision tower's 45 (%(default)s)"
    )
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=19072,
        help="rows of embedding and head (%(default)s: one rank's share of 152,576 at TP=8)",
    )
    parser.add_argument("--rows", type=int, default=8, help="a step, one at a time (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="in a turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (%(default)s)")
    parser.add_argument("--tensor", type=int, default=1, help="ranks, of which one is run")
    parser.add_argument("--compile", action="store_true", help="the engine's decoder layers")
    parser.add_argument("--recompute", action="store_true", help="in both, to fit more layers")
    parser.add_argument("--toy", action="store_true", help="toy width; always so without CUDA")
    return parser.parse_args()


def true_scale(arguments: argparse.Namespace) -> tuple[TrainParams, Architecture]:
    """The recipe's fine-tuning of the 72B, on one rank."""
    content = OmegaConf.create(composed(["scale=full"])).train.sft_72b
    params = replace(
        parse_params(
            {**content, "grid": {"tensor": arguments.tensor}}, TrainParams, "train.sft_72b"
        ),
        global_batch=arguments.rows,
        micro_batch=1,
        compile=arguments.compile,
        recompute_every=int(arguments.recompute),
        sequence_parallel=arguments.tensor > 1,
    )
    params = replace(params, data=replace(params.data, packing=True))
    architecture = Architecture(
        vision=replace(INTERNVIT_6B, layers=arguments.tower_layers),
        language=replace(QWEN2_72B, layers=arguments.layers, vocabulary=arguments.vocabulary),
    )
    return params, architecture


def toy_scale(arguments: argparse.Namespace) -> tuple[TrainParams, Architecture]:
    """The same at a width for a CPU, in fp32 where there is no card."""
    params, true = true_scale(arguments)
    assert true.vision and true.language
    vision = replace(
        true.vision,
        hidden_size=24,
        heads=3,
        ffn_hidden_size=48,
        layers=min(2, arguments.tower_layers),
        image_size=24,
        patch_size=6,
    )
    language = replace(
        true.language, hidden_size=64, heads=4, query_groups=2, ffn_hidden_size=128, vocabulary=101
    )
    return (
        replace(
            params,
            data=replace(params.data, sequence_length=96),
            dtype="bfloat16" if torch.cuda.is_available() else "float32",
        ),
        Architecture(vision=vision, language=language),
    )


def switched(off: dict[str, bool | int], setting: Setting) -> Step:
    """One rank's step with one policy switched ``off``."""
    if off.get("mask"):
        return with_a_mask(setting)
    return one_rank(replace(setting, params=replace(setting.params, **off)))


def measure(prepare: Callable[[Setting], Step], setting: Setting, steps: int) -> Measured:
    """Make a model, warm it up, time it, profile one step more, and let it go."""
    cuda = setting.mesh.device.type == "cuda"
    step = prepare(setting)
    step()
    step()
    synchronize(cuda)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(cuda)
    seconds = (time.perf_counter() - started) / steps
    memory = torch.cuda.max_memory_allocated() if cuda else None
    outside = time_outside_products(step, cuda)
    del step
    gc.collect()  # FSDP2's modules and hooks refer to one another
    if cuda:
        torch.cuda.empty_cache()
    return Measured(seconds=seconds, memory=memory, outside=outside)


def synchronize(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def time_outside_products(step: Step, cuda: bool) -> float:
    """Share of a step's kernel time (of its operations' own time on a CPU) that multiplies none."""
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        step()
        synchronize(cuda)
    names = KERNELS if cuda else OPERATIONS
    times = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    products = sum(
        value
        for key, value in times.items()
        if any((name in key.lower()) if cuda else key.startswith(name) for name in names)
    )
    return 1 - products / sum(times.values())


def table(setting: Setting, found: dict[str, list[Measured]], *, toy: bool) -> str:
    """Medians of the ways, with the name of what they were measured on."""
    device = setting.mesh.device
    language, vision = setting.architecture.language, setting.architecture.vision
    assert language and vision
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    tokens = sum(len(sample) for row in setting.samples for sample in row)
    peak = None if toy else peak_flops(device)
    rounds = len(found["engine"])
    rows: dict[str, list[str]] = {"tokens/s": [], "TFLOP/s": [], "model FLOPs utilization": []}
    rows |= {"peak memory, GiB": [], "time outside matrix products": []}
    rates, ranks = [], setting.params.grid.tensor
    for measured in found.values():
        seconds = statistics.median(turn.seconds for turn in measured)
        rate = setting.flops / ranks / seconds
        rates.append(tokens / seconds)
        memory = measured[0].memory and max(turn.memory or 0 for turn in measured)
        values = (
            f"{tokens / seconds:,.0f}",
            f"{rate / 1e12:.3g}",
            f"{rate / peak:.1%}" if peak else "-",
            f"{memory / GIB:.1f}" if memory else "-",
            f"{statistics.median(turn.outside for turn in measured):.1%}",
        )
        for row, value in zip(rows.values(), values, strict=True):
            row.append(value)
    others = list(zip(found, rates, strict=True))[1:]
    share = f"one of {ranks} tensor ranks, " if ranks > 1 else ""
    width = "toy width" if toy else f"hidden size {language.hidden_size}"
    lines = [
        f"{card}, torch {torch.__version__}; {share}{width}, {language.layers} decoder layers and "
        f"{vision.layers} of the tower, vocabulary {language.vocabulary}; {len(setting.samples)} "
        f"rows of {setting.params.data.sequence_length} tokens a step; median of {rounds}",
        "",
        f"| | {' | '.join(found)} |",
        "|---|" + "---|" * len(found),
        *(f"| {label} | {' | '.join(values)} |" for label, values in rows.items()),
        "",
        *(f"engine over {name}: {rates[0] / rate:.2f}" for name, rate in others),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
