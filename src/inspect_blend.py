"""Task 3: a look at what a training stage will read, and its blend as an Energon metadataset.

Run with: python src/inspect_blend.py --params train.sft_34b.data --data data/sft \\
              --checkpoint checkpoints/34b/combined --blend data/blends/34b/sft.yaml \\
              --report reports/data/34b/sft.md --out plots/data/34b/sft
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.atomic import atomic_directory, write_text
from nvlm.checkpoint.format.manifest import read_manifest
from nvlm.data.loading.blend import find_blend
from nvlm.data.loading.inspection import draw_contact_sheet, draw_histograms, inspect
from nvlm.data.loading.inspection_report import report_text
from nvlm.data.loading.loader import build_loader
from nvlm.data.loading.params import LoaderParams
from nvlm.errors import run_command
from nvlm.model.tokens import load_tokenizer
from nvlm.params import load_params

ROWS, BATCHES = 8, 25  # read: 200 rows
SHOWN = 24  # samples on the contact sheet


def main() -> None:
    """Read the arguments, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section: train.STAGE.data")
    parser.add_argument("--checkpoint", type=Path, required=True, help="its tokenizer and shapes")
    parser.add_argument("--data", type=Path, required=True, help="directory of the datasets")
    parser.add_argument("--blend", type=Path, required=True, help="metadataset to write (YAML)")
    parser.add_argument("--report", type=Path, required=True, help="page to write (Markdown)")
    parser.add_argument("--out", type=Path, required=True, help="directory of plots to write")
    arguments = parser.parse_args()
    params = load_params(arguments.params, LoaderParams)
    architecture = read_manifest(arguments.checkpoint).architecture
    tokenizer = load_tokenizer(arguments.checkpoint / "tokenizer")
    loader = build_loader(
        arguments.data,
        params,
        tokenizer=tokenizer,
        architecture=architecture,
        rows=ROWS,
        rank=0,
        world=1,
    )
    assert architecture.vision is not None and architecture.language is not None
    statistics, samples = inspect(loader, BATCHES, architecture.vision.tokens_per_tile, SHOWN)
    family = architecture.language.family
    with atomic_directory(arguments.out) as partial:
        draw_histograms(statistics, partial / "histograms.png")
        draw_contact_sheet(samples, tokenizer, family, partial / "samples.png")
    blend = find_blend(arguments.data, params.blend)
    write_text(arguments.blend, blend.metadataset(arguments.blend.parent))
    title = arguments.params.removeprefix("train.").removesuffix(".data")
    page = report_text(title, statistics, params, blend, tokenizer)
    write_text(arguments.report, page)


if __name__ == "__main__":
    run_command(main)
