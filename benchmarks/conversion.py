"""What conversion costs at true width: memory, speed beside cp, layout changes, storage.

Run by hand, in a directory on the disk to be measured (some 60 GB for 8 layers):

    python benchmarks/conversion.py --directory /scratch/conversion

Makes a Qwen2-72B of few layers and an InternViT-6B out of random bits, converts them in processes
of their own, and prints the table of benchmarks/README.md. What the disk lacks room for is left
out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nvlm.checkpoint.format.architecture import Architecture, LanguageArchitecture
from nvlm.checkpoint.format.files import safetensors_header
from nvlm.checkpoint.format.layout import LANGUAGE, PROJECTION, VISION, padded_rows, part_names
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.checkpoint.format.published import INTERNVIT_6B, QWEN2_72B
from nvlm.checkpoint.huggingface.convert import language_shapes, vision_shapes
from nvlm.checkpoint.parts.shapes import core_shapes

RANKS, MULTIPLE = 8, 128
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Run:
    """A process that has ended."""

    seconds: float
    cpu: float  # seconds of all threads, the kernel's for them included
    peak: int  # bytes resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="scratch, on the disk to use")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8], help="of the decoder")
    parser.add_argument("--speed-layers", type=int, default=2, help="of the decoder beside cp")
    parser.add_argument("--repeats", type=int, default=5, help="of each, in turn")
    parser.add_argument("--branch", type=Path, default=Path("checkpoints"), help="for storage")
    arguments = parser.parse_args()
    if arguments.speed_layers not in arguments.layers or max(arguments.layers) % 4:
        parser.error("--speed-layers should be one of --layers, the largest of which 4 divides")
    arguments.directory.mkdir(parents=True, exist_ok=True)
    storage(arguments.branch)
    make_language(arguments.directory, arguments.layers)
    memory_language(arguments.directory, arguments.layers)
    memory_vision(arguments.directory)
    layout_change(arguments.directory, max(arguments.layers))
    speed(arguments.directory, arguments.speed_layers, arguments.repeats)


def measured(command: Sequence[str]) -> Run:
    """Run ``command`` and take the kernel's word for its peak."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return Run(
        seconds=time.perf_counter() - start,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=usage.ru_maxrss * 1024,
    )


def nvlm(*words: str | Path) -> Run:
    return measured([sys.executable, "-m", "nvlm.checkpoint", *map(str, words)])


def convert(model: Path, out: Path) -> Run:
    options = ("--tensor", str(RANKS), "--vocab-multiple", str(MULTIPLE))
    return nvlm("convert-language", model, out, *options)


def room(directory: Path, needed: int, what: str) -> bool:
    free = shutil.disk_usage(directory).free
    if free < needed + 2 * GIB:
        print(f"| {what} | left out: {needed / GIB:.0f} GiB needed, {free / GIB:.0f} free |")
        return False
    return True


def total_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def write_random(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 that no compression makes smaller."""
    block = np.random.default_rng(len(path.name)).bytes(64 << 20)
    tensors = {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in shapes.items()}
    with path.open("wb") as file:
        file.write(safetensors_header(tensors, {"format": "pt"}))
        for tensor in tensors.values():
            for start in range(0, tensor.nbytes, len(block)):
                file.write(block[: min(len(block), tensor.nbytes - start)])


def language(layers: int) -> LanguageArchitecture:
    return LanguageArchitecture(**{**vars(QWEN2_72B), "layers": layers})


def make_language(directory: Path, counts: Sequence[int]) -> None:
    """``directory/qwen2_N`` for every N: a file a layer, shared between them by links."""
    shapes = language_shapes(language(max(counts)))
    needed = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    if not room(directory, needed * 2, f"Qwen2-72B of {max(counts)} layers"):
        sys.exit(1)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": QWEN2_72B.hidden_size,
        "intermediate_size": QWEN2_72B.ffn_hidden_size,
        "num_attention_heads": QWEN2_72B.heads,
        "num_key_value_heads": QWEN2_72B.query_groups,
        "vocab_size": QWEN2_72B.vocabulary,
        "rms_norm_eps": QWEN2_72B.norm_epsilon,
        "rope_theta": QWEN2_72B.rope_theta,
        "max_position_embeddings": QWEN2_72B.max_positions,
        "tie_word_embeddings": False,
    }
    first = directory / f"qwen2_{max(counts)}"
    for count in sorted(counts, reverse=True):
        model = directory / f"qwen2_{count}"
        model.mkdir(exist_ok=True)
        files: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, shape in language_shapes(language(count)).items():
            layer = name.split(".")[2] if name.startswith("model.layers.") else name.split(".")[-2]
            files.setdefault(f"{layer}.safetensors", {})[name] = shape
        for file, content in files.items():
            if model == first:
                write_random(model / file, content)
            elif not (model / file).exists():
                os.link(first / file, model / file)
        weight_map = {name: file for file, content in files.items() for name in content}
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
        (model / "tokenizer.json").write_text("{}")
    os.sync()


def memory_language(directory: Path, counts: Sequence[int]) -> None:
    for count in counts:
        model, out = directory / f"qwen2_{count}", directory / "memory"
        run = convert(model, out)
        size = total_bytes(model)
        print(
            f"| Qwen2-72B, {count} of 80 layers, {size / 1e9:.1f} GB, to TP={RANKS} | "
            f"peak {run.peak / GIB:.2f} GiB, {run.seconds:.0f} s |",
            flush=True,
        )
        if count != max(counts):
            shutil.rmtree(out)
    (directory / "memory").rename(directory / "core")


def memory_vision(directory: Path) -> None:
    shapes = vision_shapes(INTERNVIT_6B)
    size = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    if not room(directory, 2 * size, "InternViT-6B"):
        return
    model, out = directory / "internvit", directory / "tower"
    model.mkdir(exist_ok=True)
    write_random(model / "model.safetensors", shapes)
    config = {
        "architectures": ["InternVisionModel"],
        "hidden_size": INTERNVIT_6B.hidden_size,
        "num_hidden_layers": INTERNVIT_6B.layers,
        "num_attention_heads": INTERNVIT_6B.heads,
        "intermediate_size": INTERNVIT_6B.ffn_hidden_size,
        "image_size": INTERNVIT_6B.image_size,
        "patch_size": INTERNVIT_6B.patch_size,
        "layer_norm_eps": INTERNVIT_6B.norm_epsilon,
        "qk_normalization": True,
        "qkv_bias": False,
        "norm_type": "rms_norm",
        "hidden_act": "gelu",
    }
    (model / "config.json").write_text(json.dumps(config))
    run = nvlm("convert-vision", model, out, "--tensor", str(RANKS))
    print(
        f"| InternViT-6B, all 45 layers, {size / 1e9:.1f} GB, to TP={RANKS} | "
        f"peak {run.peak / GIB:.2f} GiB, {run.seconds:.0f} s |",
        flush=True,
    )
    shutil.rmtree(model)
    shutil.rmtree(out)


def layout_change(directory: Path, layers: int) -> None:
    core = directory / "core"
    runs = [nvlm("reshard", core, directory / "split", "--pipeline", "4") for _ in range(5)]
    seconds = statistics.median(run.seconds for run in runs)
    name = next(iter(read_manifest(core).files))
    linked = (directory / "split" / name).samefile(core / name)
    print(f"| PP 1→4 of {layers} layers | {seconds:.2f} s, files linked: {linked} |")
    shutil.rmtree(directory / "split")
    if room(directory, total_bytes(core), "TP 8→4"):
        run = nvlm("reshard", core, directory / "four", "--tensor", "4")
        print(f"| TP 8→4 of {layers} layers (rewrites) | {run.seconds:.0f} s |", flush=True)
        shutil.rmtree(directory / "four")
    shutil.rmtree(core)


def speed(directory: Path, layers: int, repeats: int) -> None:
    """cp, the same with its flush, and a conversion (which flushes): in turn.

    CPU seconds stand beside the rates, because these depend on what else the machine does.
    """
    model = directory / f"qwen2_{layers}"
    size = total_bytes(model)
    rates, cpu = dict[str, list[float]](), dict[str, list[float]]()
    copy, out = directory / "copy", directory / "converted"
    for _ in range(repeats):
        copied = measured(["cp", "-r", str(model), str(copy)])
        flushed = measured(["sync", *(str(path) for path in copy.iterdir())])
        shutil.rmtree(copy)
        os.sync()
        converted = convert(model, out)
        shutil.rmtree(out)
        os.sync()
        for name, seconds, used in (
            ("cp", copied.seconds, copied.cpu),
            ("cp and sync", copied.seconds + flushed.seconds, copied.cpu + flushed.cpu),
            ("convert-language", converted.seconds, converted.cpu),
        ):
            rates.setdefault(name, []).append(size / seconds)
            cpu.setdefault(name, []).append(used)
        print({name: f"{values[-1] / 1e6:.0f} MB/s" for name, values in rates.items()}, flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(
            f"| {name}, {size / 1e9:.1f} GB, median of {repeats} | {rate / 1e6:.0f} MB/s, "
            f"{rate / medians['cp']:.2f} of cp, {rate / medians['cp and sync']:.2f} of cp and "
            f"sync; {statistics.median(cpu[name]):.1f} s of CPU |"
        )


def storage(branch: Path) -> None:
    """Bytes that DVC keeps over bytes that the outs add up to: at true shapes, and measured."""
    whole = Architecture(vision=INTERNVIT_6B, language=QWEN2_72B)
    padded = padded_rows(QWEN2_72B.vocabulary, multiple=MULTIPLE, tensor=RANKS)
    sizes = dict.fromkeys((VISION, PROJECTION, LANGUAGE), 0)
    for part in part_names(whole):
        shapes = core_shapes(whole, part, size=RANKS, padded=padded).values()
        sizes[part.partition(".")[0]] += sum(2 * torch.Size(s).numel() for s in shapes) * RANKS
    tower, projector, decoder = sizes.values()
    # core/vision, core/lm_72b; combined, pretrained, pretrained_split, sft_split, sft.
    outs = tower + decoder + 5 * (tower + projector + decoder)
    # Projectors of combined, pretraining and fine-tuning; the decoder before and after the latter.
    kept = tower + 3 * projector + 2 * decoder
    source = 2 * (INTERNVIT_PARAMETERS + QWEN2_PARAMETERS)
    print(f"| storage, true shapes | {kept / 1e9:.0f} of {outs / 1e9:.0f} GB: {kept / outs:.2f} |")
    print(f"| with the downloads | {(kept + source) / (outs + source):.2f} |")
    names = ("core/vision", "core/lm_72b", *(f"72b/{name}" for name in BRANCH))
    found = [branch / name for name in names if (branch / name / "checkpoint.json").is_file()]
    entries = [entry for path in found for entry in read_manifest(path).files.values()]
    total = sum(entry.bytes for entry in entries)
    unique = sum({entry.sha256: entry.bytes for entry in entries}.values())
    if total:
        print(
            f"| storage, smoke, {len(found)} of {len(names)} outs | {unique / 1e6:.1f} of "
            f"{total / 1e6:.1f} MB: {unique / total:.2f} |"
        )


BRANCH = ("combined", "pretrained", "pretrained_split", "sft_split", "sft")
INTERNVIT_PARAMETERS, QWEN2_PARAMETERS = 5_536_496_000, 72_706_203_648

if __name__ == "__main__":
    main()
