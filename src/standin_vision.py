"""The vision stand-in: a small InternViT in Hugging Face layout, trained within a minute.

Run with: python src/standin_vision.py --out checkpoints/standin/vision
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.atomic import atomic_directory
from nvlm.errors import run_command
from nvlm.params import load_params


def main() -> None:
    """Train and write the tower; where the real one is downloaded, write an empty directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default="standin.vision", help="section of params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()

    from nvlm.standin.vision import VisionStandin, train_vision
    from nvlm.standin.vision_layout import write_vision

    params = load_params(arguments.params, VisionStandin)
    with atomic_directory(arguments.out) as directory:
        if params.build and params.architecture and params.training:
            tower = train_vision(params.architecture, params.training)
            write_vision(directory, tower, params.architecture)
        else:
            print("no stand-in: this scale downloads the published vision tower")


if __name__ == "__main__":
    run_command(main)
