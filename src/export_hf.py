"""The fine-tuned checkpoint for transformers and vLLM: the layout of nvidia/NVLM-D-72B.

Run with: python src/export_hf.py --checkpoint checkpoints/72b/sft --out checkpoints/72b/hf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.errors import run_command

SHARD_BYTES = 5 * 10**9  # of a weights file, as the published repos have them


def main() -> None:
    """Export a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to read")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    export_hf(arguments.checkpoint, arguments.out, shard_bytes=SHARD_BYTES)


if __name__ == "__main__":
    run_command(main)
