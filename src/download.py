"""Task 2: download one half of the model at its pinned revision, or take it from a directory.

Run with: python src/download.py --params model.vision --out checkpoints/hf/vision
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.errors import run_command
from nvlm.fetch.model import SourceParams, download
from nvlm.params import load_params


def main() -> None:
    """Read the arguments and fetch the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", required=True, help="section of params.yaml: model.NAME")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    download(load_params(arguments.params, SourceParams), arguments.out)


if __name__ == "__main__":
    run_command(main)
