"""What Parquet files with pictures inside cost: preparation beside tar, and memory.

Run by hand; needs some 4 GB of disk in --directory:

    PYTHONPATH=src python benchmarks/parquet.py --directory /tmp/parquet-benchmark

Two files hold the same rows, photographs' worth of noise as JPEG, as one row group: with pages of a
few rows, and as pyarrow writes where nobody says how large a page may be, 1,024 rows a page. The
memory is what the process grows by while the rows are read, and while they are prepared.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from nvlm.data.published.layouts import Layout
from nvlm.data.published.rows import read_rows
from nvlm.data.shards.datasets import DatasetParams
from nvlm.data.shards.prepare import prepare_dataset

SIDE = 1024  # pixels: some 0.8 MB of noise as JPEG
ROWS_PER_PAGE = {"a page of 8 rows": 8, "one page": 1024}
RUNS = 3
INTERLEAVED = Layout(
    kind="dialogue", annotations=["**/*.parquet"], image="images", fields={"turns": "texts"}
)


def make_files(directory: Path, rows: int) -> None:
    """The two files of ``rows`` rows, and the pictures beside them for tar."""
    generator = np.random.default_rng(0)
    (directory / "pictures").mkdir(parents=True)
    pictures = []
    for number in range(rows):
        buffer = io.BytesIO()
        noise = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "JPEG", quality=75)
        pictures.append(buffer.getvalue())
        (directory / "pictures" / f"{number}.jpg").write_bytes(pictures[-1])
    turns = [{"user": "What is it?", "assistant": "Noise."}]
    table = pyarrow.table(
        {
            "images": [[{"bytes": picture, "path": None}] for picture in pictures],
            "texts": [turns] * rows,
        }
    )
    for name, batch in ROWS_PER_PAGE.items():
        (directory / name).mkdir()
        path = directory / name / "train-00000.parquet"
        parquet.write_table(
            table, path, row_group_size=rows, write_batch_size=batch, data_page_size=2**20
        )


def read(directory: Path) -> None:
    """Read all rows, holding none."""
    for _ in read_rows(next(directory.glob("*.parquet")), ""):
        pass


def prepare(directory: Path) -> None:
    """Prepare the rows as one process, as the stage does."""
    out = directory.with_name("out")
    params = DatasetParams(
        source="published",
        requires=str(directory),
        layout=INTERLEAVED,
        samples=None,
        samples_per_shard=10_000,
        max_skipped=0,
    )
    prepare_dataset(params, out, directory.with_name("metrics.json"))
    shutil.rmtree(out)


WORK: dict[str, Callable[[Path], None]] = {"read": read, "prepare": prepare}


def measured(work: str, directory: Path) -> tuple[float, float]:
    """Seconds, and the MiB that a process grows by, for ``work`` in a process of its own."""
    command = [sys.executable, __file__, "--directory", str(directory), "--work", work]
    result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, mebibytes = json.loads(result.splitlines()[-1])
    return seconds, mebibytes


def work_and_tell(work: str, directory: Path) -> None:
    """Do ``work`` and print its seconds and growth."""
    if work == "prepare":
        import megatron.energon  # noqa: F401 (its import is not the stage's work)
    before = _peak()
    started = time.perf_counter()
    WORK[work](directory)
    print(json.dumps([time.perf_counter() - started, _peak() - before]))


def _peak() -> float:
    """The most MiB that this process has held, as Linux notes it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def tar(directory: Path) -> float:
    """Seconds of ``tar`` of the pictures, flushed to the disk."""
    archive = directory / "x.tar"
    started = time.perf_counter()
    subprocess.run(["tar", "cf", archive, "-C", directory / "pictures", "."], check=True)
    subprocess.run(["sync", archive], check=True)
    seconds = time.perf_counter() - started
    archive.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="scratch directory")
    parser.add_argument("--rows", type=int, default=1000, help="rows of a picture")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work_and_tell(arguments.work, arguments.directory)
        return
    if not (arguments.directory / "pictures").is_dir():
        make_files(arguments.directory, arguments.rows)
    pictures = (arguments.directory / "pictures").iterdir()
    megabytes = sum(path.stat().st_size for path in pictures) / 1e6
    print(f"{megabytes:.0f} MB of pictures in one row group\n")
    print("| | `tar`, MB/s | here, MB/s | ratio | grows by, MiB: reading | preparing |")
    print("|---|---|---|---|---|---|")
    for name in ROWS_PER_PAGE:
        rivals, ours, growth, reading = [], [], [], []
        for _ in range(RUNS):
            rivals.append(megabytes / tar(arguments.directory))
            seconds, grown = measured("prepare", arguments.directory / name)
            ours.append(megabytes / seconds)
            growth.append(grown)
            reading.append(measured("read", arguments.directory / name)[1])
        other, own = np.median(rivals), np.median(ours)
        print(
            f"| {name} | {other:.0f} | {own:.0f} | {own / other:.2f} | "
            f"{np.median(reading):.0f} | {np.median(growth):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
