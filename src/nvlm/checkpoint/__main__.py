"""Checkpoints of NVLM: convert, combine, lay out, exchange, look at.

Every verb writes a whole directory or none, and what takes long shows its progress.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.errors import UserError, run_command

if TYPE_CHECKING:
    from nvlm.checkpoint.parts.projector import ProjectorParams

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
DTYPES = ("bfloat16", "float16", "float32")
PATHS = {
    "HF_DIR": "directory with config.json and safetensors",
    "LANGUAGE": "checkpoint of the decoder",
    "VISION": "checkpoint of the tower",
    "IN": "directory to read",
    "OUT": "directory to write; one that exists is replaced at the end",
    "CHECKPOINT": "checkpoint to read",
    "A": "a checkpoint",
    "B": "another one",
}
INIT_STD, SEED = 0.014, 1234  # the scripts' --init-method-std; Megatron's --seed


def main() -> None:
    """Run one verb."""
    arguments = build_parser().parse_args()
    arguments.run(arguments)


def build_parser() -> argparse.ArgumentParser:
    """The command line. What a verb needs is imported when it runs, so that help is quick."""
    parser = argparse.ArgumentParser(prog="python -m nvlm.checkpoint", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], None], text: str, *paths: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        for path in paths:
            name = "source" if path == "IN" else path.lower()  # "in" is a keyword
            added.add_argument(name, type=Path, metavar=path, help=PATHS[path])
        added.set_defaults(run=run)
        return added

    added = verb(
        "convert-vision", _convert_vision, "InternViT from Hugging Face's layout", "HF_DIR", "OUT"
    )
    _tensor(added)
    added.add_argument("--dtype", choices=DTYPES, help="cast to it (default: as it is)")
    added = verb(
        "convert-language",
        _convert_language,
        "Llama, Yi or Qwen2 from Hugging Face's layout, tokenizer included",
        *("HF_DIR", "OUT"),
    )
    _tensor(added)
    _vocabulary_multiple(added)
    added = verb(
        "combine",
        _combine,
        "a language and a vision checkpoint as one, by links, with a fresh projector",
        *("LANGUAGE", "VISION", "OUT"),
    )
    _projector(added)
    added = verb("reshard", _reshard, "any layout to any layout", "IN", "OUT")
    added.add_argument("--tensor", type=int, metavar="N", help="tensor-parallel ranks")
    added.add_argument("--pipeline", type=int, metavar="N", help="pipeline stages")
    added.add_argument(
        "--layers-per-stage", type=int, nargs="+", metavar="N", help="decoder layers, a stage each"
    )
    verb("merge", _merge, "the adapter of a checkpoint folded into its weights", "IN", "OUT")
    added = verb("export-megatron", _export_megatron, "for Megatron-LM", "IN", "OUT")
    added.add_argument(
        "--format",
        choices=("torch", "torch_dist"),
        default="torch",
        help="torch: a file a rank (default); torch_dist: one set of files for every grid",
    )
    added = verb(
        "import-megatron",
        _import_megatron,
        "from Megatron-LM's torch or torch_dist format, running nothing that is pickled in it",
        *("IN", "OUT"),
    )
    added.add_argument("--vocabulary", type=int, metavar="ROWS", help="rows without padding")
    added.add_argument(
        "--tensor",
        type=int,
        metavar="N",
        help="tensor-parallel ranks to lay a torch_dist checkpoint out for (default: who saved it)",
    )
    added.add_argument(
        "--rope-theta", type=float, help="instead of args.rotary_base, 10000 in upstream's files"
    )
    added.add_argument(
        "--vision-heads", type=int, metavar="N", help="of the tower, without dummies"
    )
    added.add_argument("--tokenizer", type=Path, metavar="HF_DIR", help="where its files are")
    added.add_argument(
        "--dtype",
        choices=DTYPES,
        help="cast to it (default: as it is, or as the decoder if that rounds no value)",
    )
    added.add_argument(
        "--fresh-projector", action="store_true", help="draw one where the files have none"
    )
    _projector(added)
    added = verb("export-hf", _export_hf, "NVLM_D for transformers and vLLM", "IN", "OUT")
    added.add_argument(
        "--shard-size", type=_size, default="5GB", help="of a weights file (default: 5GB)"
    )
    added.add_argument(
        "--adapter",
        action="store_true",
        help="the adapter for PEFT in OUT/adapter, beside the base (default: folded in)",
    )
    added = verb("import-hf", _import_hf, "from NVLM_D's layout", "IN", "OUT")
    _tensor(added)
    _vocabulary_multiple(added)
    verb("inspect", _inspect, "what is in a checkpoint", "CHECKPOINT")
    verb("verify", _verify, "read every file and compare its digest", "CHECKPOINT")
    verb("diff", _diff, "the first difference of two checkpoints; exit 1 if any", "A", "B")
    return parser


def _tensor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tensor", type=int, required=True, metavar="N", help="tensor-parallel ranks"
    )


def _vocabulary_multiple(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vocab-multiple",
        type=int,
        default=1,
        metavar="M",
        help="pad the vocabulary to a multiple of M x N (default: 1)",
    )


def _projector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--init-std", type=float, default=INIT_STD, help=f"of a fresh projector ({INIT_STD})"
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"of a fresh projector ({SEED})")


def _size(text: str) -> int:
    """ "5GB", "512MiB" or "1000" in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]I?)?B?", text.strip().upper())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 5GB or 512MiB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def _convert_vision(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.huggingface.convert import convert_vision

    convert_vision(arguments.hf_dir, arguments.out, tensor=arguments.tensor, dtype=arguments.dtype)


def _convert_language(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.huggingface.convert import convert_language

    convert_language(
        arguments.hf_dir,
        arguments.out,
        tensor=arguments.tensor,
        vocabulary_multiple=arguments.vocab_multiple,
    )


def _combine(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.relayout.combine import combine

    params = _projector_params(arguments)
    combine(arguments.vision, arguments.language, arguments.out, params)


def _reshard(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.format.manifest import read_manifest
    from nvlm.checkpoint.relayout.repartition import repartition

    tensor, pipeline = arguments.tensor, arguments.pipeline
    layers = arguments.layers_per_stage
    if tensor is None and pipeline is None and layers is None:
        raise UserError("reshard to what? Give --tensor, --pipeline or --layers-per-stage")
    grid = read_manifest(arguments.source).grid
    if tensor in {None, grid.tensor} and (pipeline or layers):
        # Metadata and links: no need to wait for torch.
        repartition(arguments.source, arguments.out, pipeline=pipeline, layers_per_stage=layers)
        return
    from nvlm.checkpoint.relayout.reshard import reshard

    reshard(
        arguments.source,
        arguments.out,
        tensor=tensor,
        pipeline=pipeline,
        layers_per_stage=layers,
    )


def _merge(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.relayout.merge import merge_adapter

    merge_adapter(arguments.source, arguments.out)


def _export_megatron(arguments: argparse.Namespace) -> None:
    if arguments.format == "torch_dist":
        from nvlm.checkpoint.megatron.dist_exporting import export_torch_dist

        export_torch_dist(arguments.source, arguments.out)
        return
    from nvlm.checkpoint.megatron.exporting import export_megatron

    export_megatron(arguments.source, arguments.out)


def _import_megatron(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.megatron.importing import ImportOptions, import_megatron

    options = ImportOptions(
        vocabulary=arguments.vocabulary,
        rope_theta=arguments.rope_theta,
        vision_heads=arguments.vision_heads,
        tensor=arguments.tensor,
        tokenizer=arguments.tokenizer,
        dtype=arguments.dtype,
        projector=_projector_params(arguments) if arguments.fresh_projector else None,
    )
    decoder = import_megatron(arguments.source, arguments.out, options).architecture.language
    if decoder is not None and decoder.rope_theta == 10_000 and arguments.rope_theta is None:
        print(
            "note: args.rotary_base is 10000, which upstream's converters store for every model: "
            "give --rope-theta if it has another one",
            file=sys.stderr,
        )


def _export_hf(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.huggingface.exporting import export_hf

    export_hf(
        arguments.source,
        arguments.out,
        shard_bytes=arguments.shard_size,
        apart=arguments.adapter,
    )


def _import_hf(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.huggingface.importing import import_hf

    import_hf(
        arguments.source,
        arguments.out,
        tensor=arguments.tensor,
        vocabulary_multiple=arguments.vocab_multiple,
    )


def _inspect(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.format.manifest import read_manifest
    from nvlm.checkpoint.verify.summary import describe

    print(describe(read_manifest(arguments.checkpoint)))


def _verify(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.format.manifest import check_digests, read_manifest

    manifest = read_manifest(arguments.checkpoint)
    check_digests(arguments.checkpoint, manifest)
    total = sum(entry.bytes for entry in manifest.files.values())
    print(f"{arguments.checkpoint}: {len(manifest.files)} files, {total:,} bytes, all as written")


def _diff(arguments: argparse.Namespace) -> None:
    from nvlm.checkpoint.verify.compare import compare

    count = 0
    for comparison in compare(arguments.a, arguments.b):
        if comparison.difference is not None:
            print(f"{comparison.name}: {comparison.difference}")
            sys.exit(1)
        count += 1
    print(f"no difference in {count} tensors and values")


def _projector_params(arguments: argparse.Namespace) -> ProjectorParams:
    from nvlm.checkpoint.parts.projector import ProjectorParams

    try:
        return ProjectorParams(init_std=arguments.init_std, seed=arguments.seed)
    except ValueError as error:
        raise UserError(f"--{str(error).replace('_', '-', 1)}") from error


if __name__ == "__main__":
    run_command(main)
