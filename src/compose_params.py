"""Compose conf/ into params.yaml, byte for byte as `dvc exp run` does.

Run with: python src/compose_params.py [scale=full] [train.sft_72b.lr=1e-5] ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.atomic import write_text
from nvlm.errors import run_command
from nvlm.params import composed


def main() -> None:
    """Write the composed parameters; an unknown key or group leaves the file alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="groups and values, such as scale=full")
    parser.add_argument("--out", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    write_text(arguments.out, composed(arguments.overrides))


if __name__ == "__main__":
    run_command(main)
