"""Task 4: convert the InternViT from Hugging Face's layout to a sharded checkpoint.

Run with: python src/convert_vision.py --source checkpoints/hf/vision --out checkpoints/core/vision
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.checkpoint.huggingface.convert import convert_vision
from nvlm.checkpoint.huggingface.params import load_layout
from nvlm.errors import run_command


def main() -> None:
    """Convert for the tensor-parallel size in params.yaml."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    layout = load_layout()
    convert_vision(arguments.source, arguments.out, tensor=layout.tensor_parallel)


if __name__ == "__main__":
    run_command(main)
