"""The fine-tuned checkpoint for Megatron-LM: its `torch` format, on the checkpoint's own grid.

Run with: python src/export_megatron.py --checkpoint checkpoints/72b/sft \
    --out checkpoints/72b/megatron
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.checkpoint.megatron.exporting import export_megatron
from nvlm.errors import run_command


def main() -> None:
    """Export a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to read")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    export_megatron(arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    run_command(main)
