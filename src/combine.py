"""Task 6: vision tower, fresh projector and language model in one checkpoint.

Run with: python src/combine.py --vision checkpoints/core/vision \
    --language checkpoints/core/lm_34b --out checkpoints/34b/combined
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.checkpoint.parts.projector import ProjectorParams
from nvlm.checkpoint.relayout.combine import combine
from nvlm.errors import run_command
from nvlm.params import load_params


def main() -> None:
    """Combine two converted halves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vision", type=Path, required=True, help="checkpoint of the tower")
    parser.add_argument("--language", type=Path, required=True, help="checkpoint of the decoder")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    projector = load_params("model.projector", ProjectorParams)
    combine(arguments.vision, arguments.language, arguments.out, projector)


if __name__ == "__main__":
    run_command(main)
