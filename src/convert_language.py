"""Task 5: convert a language model from Hugging Face's layout to a sharded checkpoint.

Run with: python src/convert_language.py --params model.lm_34b --source checkpoints/hf/lm_34b \
    --out checkpoints/core/lm_34b
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.checkpoint.huggingface.convert import convert_language
from nvlm.checkpoint.huggingface.params import load_layout
from nvlm.errors import run_command


def main() -> None:
    """Convert for the tensor-parallel size and the vocabulary's padding in params.yaml."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", required=True, help="section of params.yaml")
    parser.add_argument("--source", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    layout = load_layout(arguments.params)
    convert_language(
        arguments.source,
        arguments.out,
        tensor=layout.tensor_parallel,
        vocabulary_multiple=layout.make_vocabulary_divisible_by,
    )


if __name__ == "__main__":
    run_command(main)
