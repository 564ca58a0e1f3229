"""What data cost: samples from shards, preparation beside tar, memory of a large dataset.

Run by hand; needs scikit-image (its pictures), and some 2 GB of disk in --directory:

    python benchmarks/data.py --directory /tmp/data-benchmark

Prints the tables of benchmarks/README.md. Each pair of rivals is measured in turns, block by block,
in one process on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.data.small import byte_tokenizer
from torch import Tensor

from nvlm.checkpoint.format.architecture import (
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)
from nvlm.data.loading.encoder import NVLMEncoder
from nvlm.data.loading.params import LoaderParams
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset
from nvlm.model.prompts import Turn
from nvlm.model.tiling import Tiling, tile_grid, tile_image

SIZES = [(1024, 768), (2048, 1536)]
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "ihc", "motorcycle_left",
               "motorcycle_right", "retina", "rocket")  # fmt: skip
TILE, MAX_TILES = 448, 6
BLOCK = 25  # images of one rival before the other's turn
TURNS = [Turn(role="user", text="<image>\nWhat is it?"), Turn(role="assistant", text="A picture.")]
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def photographs() -> list[Image.Image]:
    """The real photographs that the two packages bring along."""
    directory = Path(skimage.__file__).parent / "data"
    found = [next(directory.glob(f"{name}.*")) for name in PHOTOGRAPHS]
    pictures = [Image.open(path).convert("RGB") for path in found]
    return pictures + [Image.fromarray(picture) for picture in load_sample_images().images]


def make_pictures(directory: Path, count: int, size: tuple[int, int]) -> None:
    """``count`` JPEG files of ``size``: random crops, mirrored and brightened by chance."""
    rng = np.random.default_rng(0)
    originals = photographs()
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = originals[number % len(originals)]
        share = rng.uniform(0.6, 1.0)
        width, height = picture.width * share, picture.height * share
        left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
        crop = picture.resize(
            size, Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        if rng.integers(2):
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        levels = np.arange(256) * rng.uniform(0.8, 1.2)
        varied = crop.point([int(level) for level in levels.clip(0, 255)] * 3)
        varied.save(directory / f"{number:06d}.jpg", quality=90)
    rows = [{"image": f"{n:06d}.jpg", "caption": f"Picture {n}."} for n in range(count)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "annotations.jsonl").write_text(lines)


def params_of(directory: Path, workers: int, samples_per_shard: int = 250) -> DatasetParams:
    return DatasetParams(
        source="records",
        requires=str(directory),
        samples=None,
        samples_per_shard=samples_per_shard,
        max_skipped=0.0,
        workers=workers,
    )


def stored_images(shards: Path) -> Iterator[bytes]:
    """The images of the shards in ``shards``, from the disk."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    extracted = tar.extractfile(member)
                    assert extracted is not None
                    yield extracted.read()


def build_encoder() -> NVLMEncoder:
    vision = VisionArchitecture(
        hidden_size=3200, layers=45, heads=25, ffn_hidden_size=12800, image_size=TILE,
        patch_size=14, norm_epsilon=1e-6,
    )  # fmt: skip
    language = LanguageArchitecture(
        family="qwen2", hidden_size=8192, layers=80, heads=64, query_groups=8,
        ffn_hidden_size=29568, norm_epsilon=1e-6, rope_theta=1e6, vocabulary=152064,
        max_positions=32768,
    )  # fmt: skip
    params = LoaderParams(
        blend={"x": 1.0}, sequence_length=3200, packing=True, template="chatml",
        max_tiles=MAX_TILES, thumbnail=True, tile_tags=True, workers=0, shuffle_buffer=1, seed=0,
    )  # fmt: skip
    architecture = Architecture(vision=vision, language=language)
    return NVLMEncoder(params, byte_tokenizer(), architecture)


def plain_tiles(image: Image.Image) -> Tensor:
    """InternVL's procedure as published: every tile resized again, float, normalised."""
    image = image.convert("RGB")
    columns, rows = tile_grid(*image.size, TILE, MAX_TILES)
    grid = image.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
    boxes = [(c * TILE, r * TILE) for r in range(rows) for c in range(columns)]
    tiles = [grid.crop((left, top, left + TILE, top + TILE)) for left, top in boxes]
    tiles.append(image)
    resized = [tile.resize((TILE, TILE), Image.Resampling.BICUBIC) for tile in tiles]
    tensors = [torch.from_numpy(np.array(tile)).permute(2, 0, 1) / 255 for tile in resized]
    return torch.stack([(tensor - MEAN) / DEVIATION for tensor in tensors])


def fast_tiles(image: Image.Image) -> NDArray[np.uint8]:
    return tile_image(image, TILE, Tiling(max_tiles=MAX_TILES, thumbnail=True))


def encoding(shards: Path, count: int) -> tuple[float, float]:
    """Images a second, plain and ours, from the shard to tiles and tokens."""
    encoder = build_encoder()
    rivals: list[Callable[[Image.Image], object]] = [plain_tiles, fast_tiles]
    seconds = [0.0, 0.0]
    streams = [stored_images(shards), stored_images(shards)]
    for _ in range(count // BLOCK):
        for rival, tiles in enumerate(rivals):
            started = time.perf_counter()
            for _ in range(BLOCK):
                image = Image.open(io.BytesIO(next(streams[rival])))
                encoder._fitting([image.size], TURNS)
                tiles(image)
            seconds[rival] += time.perf_counter() - started
    return count / seconds[0], count / seconds[1]


def largest_differences(shards: Path, count: int) -> tuple[int, int]:
    """The largest difference of a level: our tiles, and tiles of half-size JPEG decoding."""
    ours = half = 0
    for data, _ in zip(stored_images(shards), range(count), strict=False):
        plain = plain_tiles(Image.open(io.BytesIO(data)))
        levels = ((plain * DEVIATION + MEAN) * 255).round().permute(0, 2, 3, 1).numpy()
        tiles = fast_tiles(Image.open(io.BytesIO(data)))
        ours = max(ours, int(np.abs(tiles - levels).max()))
        small = Image.open(io.BytesIO(data))
        small.draft("RGB", (small.width // 2, small.height // 2))
        thumbnail = np.asarray(small.resize((TILE, TILE), Image.Resampling.BICUBIC))
        half = max(half, int(np.abs(thumbnail - levels[-1]).max()))
    return ours, half


def preparation(pictures: Path, scratch: Path) -> tuple[float, float]:
    """MB/s of ``tar`` and of the stage, in turns, the best of three; both flushed to the disk.

    The stage's include checks, digests and index; not the two seconds in which Energon is imported.
    """
    size = sum(path.stat().st_size for path in pictures.iterdir()) / 1e6
    best = [0.0, 0.0]
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(["tar", "cf", scratch / "x.tar", "-C", pictures, "."], check=True)
        subprocess.run(["sync", scratch / "x.tar"], check=True)
        best[0] = max(best[0], size / (time.perf_counter() - started))
        started = time.perf_counter()
        prepare_dataset(params_of(pictures, 0), scratch / "out", scratch / "metrics.json")
        best[1] = max(best[1], size / (time.perf_counter() - started))
        (scratch / "x.tar").unlink()
        shutil.rmtree(scratch / "out")
    return best[0], best[1]


def memory(directory: Path, samples: int) -> tuple[float, float]:
    """MiB held, shared pages once, at most, by the stage and its children; and its seconds."""
    raw = directory / "many"
    make_pictures(raw, 16, (64, 48))
    rows = [
        {"image": f"{n % 16:06d}.jpg", "caption": f"Picture number {n}."} for n in range(samples)
    ]
    (raw / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"many": asdict(params_of(raw, workers=1, samples_per_shard=10_000))}
    (directory / "params.yaml").write_text(json.dumps(given))
    script = Path("src/prepare_dataset.py").resolve()
    out = ["--params", "many", "--out", "many_out", "--metrics", "many.json"]
    started, largest = time.perf_counter(), 0
    stage = psutil.Popen([sys.executable, str(script), *out], cwd=directory)
    while stage.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [stage, *stage.children(recursive=True)]
            largest = max(largest, sum(process.memory_full_info().pss for process in family))
        time.sleep(0.1)
    return largest / 2**20, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="scratch directory")
    parser.add_argument("--images", type=int, default=1000, help="photographs of each size")
    parser.add_argument("--samples", type=int, default=100_000, help="of the large dataset")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| from shard to encoded sample, one core | plain | here | ratio |\n|---|---|---|---|")
    for size in SIZES:
        name = f"{size[0]}x{size[1]}"
        pictures, shards = arguments.directory / name, arguments.directory / f"{name}.shards"
        if not pictures.is_dir():
            make_pictures(pictures, arguments.images, size)
            prepare_dataset(params_of(pictures, 1), shards, arguments.directory / "metrics.json")
        plain, ours = encoding(shards, arguments.images)
        print(
            f"| {name} JPEG, images/s | {plain:.1f} | {ours:.1f} | {ours / plain:.1f} |", flush=True
        )
        levels = largest_differences(shards, min(arguments.images, 100))
        print(f"| largest difference of a level, of 255 | 0 | {levels[0]} | |")
        print(f"| the same with JPEG decoded at half size | 0 | {levels[1]} | |", flush=True)
    print("\n| preparation, MB/s | `tar` | here | ratio |\n|---|---|---|---|")
    tar, ours = preparation(pictures, arguments.directory)
    print(f"| {name} JPEG, one process | {tar:.0f} | {ours:.0f} | {ours / tar:.2f} |", flush=True)
    mebibytes, seconds = memory(arguments.directory, arguments.samples)
    print(f"\n{arguments.samples} samples: at most {mebibytes:.0f} MiB held, {seconds:.0f} s")


if __name__ == "__main__":
    main()
