"""Task 8: lay a checkpoint out for another number of pipeline stages, moving no tensor.

Run with: python src/repartition.py --source checkpoints/72b/pretrained --pipeline-parallel 4 \
    --out checkpoints/72b/pretrained_split
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.checkpoint.relayout.repartition import repartition
from nvlm.errors import run_command


def main() -> None:
    """Split a checkpoint into pipeline stages, or merge it into one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="checkpoint to read")
    parser.add_argument(
        "--pipeline-parallel", type=int, required=True, help="stages of the new layout"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    repartition(arguments.source, arguments.out, pipeline=arguments.pipeline_parallel)


if __name__ == "__main__":
    run_command(main)
