"""A language stand-in: a small Llama or Qwen2 with a tokenizer of its own, trained within a minute.

Run with: python src/standin_language.py --params standin.lm_34b --out checkpoints/standin/lm_34b
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvlm.atomic import atomic_directory
from nvlm.errors import run_command
from nvlm.params import load_params


def main() -> None:
    """Train and write the model; where the real one is downloaded, write an empty directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", required=True, help="section of params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()

    from nvlm.standin.language import (
        LanguageStandin,
        learn_tokenizer,
        train_language,
        write_language,
    )

    params = load_params(arguments.params, LanguageStandin)
    with atomic_directory(arguments.out) as directory:
        if params.build and params.architecture and params.training:
            tokenizer = learn_tokenizer(params.architecture, params.tokenizer_size)
            decoder = train_language(params.architecture, tokenizer, params.training)
            write_language(directory, decoder, tokenizer, params.shard_size)
        else:
            print("no stand-in: this scale downloads the published language model")


if __name__ == "__main__":
    run_command(main)
