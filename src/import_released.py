"""The published model, downloaded as Hugging Face's or Megatron's files, as a checkpoint of ours.

Run with: python src/import_released.py --params model.released --language model.lm_72b \
    --source checkpoints/hf/released_72b --out checkpoints/72b/released
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nvlm.checkpoint.huggingface.importing import import_hf
from nvlm.checkpoint.huggingface.params import load_layout
from nvlm.checkpoint.megatron.importing import ImportOptions, import_megatron
from nvlm.checkpoint.relayout.repartition import repartition
from nvlm.errors import run_command
from nvlm.fetch.model import MEGATRON, SourceParams
from nvlm.params import load_params


@dataclass(frozen=True, kw_only=True)
class ImportingParams:
    """What the files of Megatron's format may not say; null takes what they say."""

    requires: str  # what the stage waits for
    tokenizer: str | None  # directory with its files
    vocabulary: int | None  # rows without padding
    rope_theta: float | None


@dataclass(frozen=True, kw_only=True)
class ReleasedParams:
    """One of ``model.releases``."""

    source: SourceParams
    importing: ImportingParams


def main() -> None:
    """Read the arguments and import the format that was downloaded, in one pipeline stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--params", required=True, help="section of params.yaml: model.released")
    parser.add_argument("--language", required=True, help="section of its decoder: model.lm_72b")
    parser.add_argument("--source", type=Path, required=True, help="what was downloaded")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    released = load_params(arguments.params, ReleasedParams)
    if released.source.format == MEGATRON:
        _import_megatron(arguments.source, arguments.out, released.importing)
        return
    layout = load_layout(arguments.language)
    import_hf(
        arguments.source,
        arguments.out,
        tensor=layout.tensor_parallel,
        vocabulary_multiple=layout.make_vocabulary_divisible_by,
    )


def _import_megatron(source: Path, out: Path, params: ImportingParams) -> None:
    """On the tensor-parallel ranks that it was saved for; its pipeline stages become one."""
    options = ImportOptions(
        tokenizer=Path(params.tokenizer) if params.tokenizer else None,
        vocabulary=params.vocabulary,
        rope_theta=params.rope_theta,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        as_saved = Path(scratch) / "as_saved"
        import_megatron(source, as_saved, options)
        repartition(as_saved, out, pipeline=1)


if __name__ == "__main__":
    run_command(main)
